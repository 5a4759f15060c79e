"""Files of the farm and its tenants over ``pyarrow.fs``: a local folder, or ``s3://bucket/prefix``.

A file is written aside and then moved, so a reader finds it whole or not at all. pyarrow's calls block, so
each runs in a thread.
"""

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow.fs as pa_fs

from cloudfarm.errors import (
    InvalidInputError,
    NotFoundError,
    StorageFullError,
    StorageRefusedError,
    TooLargeError,
    UnavailableError,
)

T = TypeVar("T")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,254}")
_ASIDE = ".part-"
"""Begins the name of a file that is being written; no part begins with a dot, so no reader can name one."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP})


class FileArtifacts:
    """Implements :class:`cloudfarm.ports.Artifacts`.

    Args:
        root: a folder (made when it is first written to) or a URI that pyarrow understands.
        filesystem: instead of the one that the root names; for tests.
    """

    def __init__(self, root: str, *, filesystem: Any = None) -> None:
        if filesystem is not None:
            self._fs, self._root = filesystem, root.rstrip("/")
        elif "://" in root:
            self._fs, path = pa_fs.FileSystem.from_uri(root)
            self._root = path.rstrip("/")
        else:
            self._fs, self._root = pa_fs.LocalFileSystem(), str(Path(root).absolute())
        self._shown_root = root.rstrip("/") if "://" in root else self._root

    def uri(self, *parts: str) -> str:
        """Return where the parts lie."""
        return "/".join((self._shown_root, *checked_parts(parts)))

    async def write(self, *parts: str, data: AsyncIterator[bytes], max_bytes: int) -> int:
        """Store a file whole or not at all and return its size.

        Raises:
            TooLargeError: if there is more than ``max_bytes``; the rest is not read.
            StorageFullError: if there is no room.
        """
        path = self._path(parts)
        folder = path.rpartition("/")[0]
        aside = f"{folder}/{_ASIDE}{uuid4().hex}"
        size = 0
        await self._call(lambda: self._fs.create_dir(folder, recursive=True))
        try:
            stream = await self._call(lambda: self._fs.open_output_stream(aside))
            try:
                async for chunk in data:
                    size += len(chunk)
                    if size > max_bytes:
                        raise TooLargeError(f"{parts[-1]} is over {max_bytes} bytes", max_bytes=max_bytes)
                    if chunk:
                        await self._call(partial(stream.write, chunk))
            finally:
                await self._call(stream.close)
            await self._call(lambda: self._fs.move(aside, path))
        except BaseException:
            # Cancelled, too large, disk full: the aside goes, what was there before stays.
            await asyncio.shield(self._remove(aside))
            raise
        return size

    async def read(self, *parts: str, max_bytes: int | None = None) -> bytes:
        """Return a file.

        Raises:
            NotFoundError: if there is none.
            TooLargeError: if it has more than ``max_bytes``; the rest is not read.
        """
        path = self._path(parts)

        def work() -> bytes:
            with self._fs.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read() if max_bytes is None else stream.read(max_bytes + 1))

        content = await self._call(work)
        if max_bytes is not None and len(content) > max_bytes:
            raise TooLargeError(f"{parts[-1]} is over {max_bytes} bytes", max_bytes=max_bytes)
        return content

    async def exists(self, *parts: str) -> bool:
        """Whether there is such a file."""
        path = self._path(parts)
        info = await self._call(lambda: self._fs.get_file_info(path))
        return bool(info.type == pa_fs.FileType.File)

    async def modified_ms(self, *parts: str) -> int | None:
        """Return when a file was last written, or None if there is no such file."""
        path = self._path(parts)
        info = await self._call(lambda: self._fs.get_file_info(path))
        if info.type != pa_fs.FileType.File or info.mtime_ns is None:
            return None
        return int(info.mtime_ns // 1_000_000)

    async def list(self, *parts: str) -> Sequence[str]:
        """Return the names in a folder, sorted; empty if there is none. What is no text cannot be named, nor listed."""
        selector = pa_fs.FileSelector(self._path(parts), allow_not_found=True)
        found = await self._call(lambda: self._fs.get_file_info(selector))
        names = (_name(info) for info in found)
        return sorted(name for name in names if name is not None and not name.startswith(_ASIDE))

    async def delete(self, *parts: str) -> None:
        """Remove a file or folder; missing is fine."""
        if not parts:
            raise InvalidInputError("the root itself is not deleted")
        await self._remove(self._path(parts))

    def _path(self, parts: Sequence[str]) -> str:
        return "/".join((self._root, *checked_parts(parts)))

    async def _remove(self, path: str) -> None:
        def work() -> None:
            kind = self._fs.get_file_info(path).type
            if kind == pa_fs.FileType.Directory:
                self._fs.delete_dir(path)
            elif kind != pa_fs.FileType.NotFound:
                self._fs.delete_file(path)

        try:
            await self._call(work)
        except NotFoundError:
            return  # somebody else removed it between the two calls

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise _translated(error) from error


def checked_parts(parts: Sequence[str]) -> Sequence[str]:
    """Return the parts of a path if each may name a file or folder.

    Raises:
        InvalidInputError: for the first that might lead out of the root, or that some file system refuses.
    """
    for part in parts:
        if _PART.fullmatch(part) is None:
            raise InvalidInputError(
                f"{part[:80]!a} cannot name a file: letters, digits and '_.+@-', no leading dot"
            )
    return parts


def _name(info: Any) -> str | None:
    try:
        return str(info.base_name)
    except UnicodeDecodeError:
        return None


def _translated(error: OSError) -> Exception:
    if error.errno in _GONE or isinstance(error, FileNotFoundError):
        return NotFoundError("there is no such file")
    if error.errno in _NO_ROOM:
        return StorageFullError("the artifact store has no room left; nothing was written")
    if error.errno in _REFUSED:
        return StorageRefusedError(f"the artifact store refuses this file: {os.strerror(error.errno)}")
    return UnavailableError(f"the artifact store does not answer: {type(error).__name__}: {error}")
