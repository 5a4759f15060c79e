"""The artifact store's promises, on a local disk and on pyarrow's file system in memory."""

import asyncio
import errno
import os
from pathlib import Path

import pyarrow.fs as pa_fs
import pytest

from cloudfarm.artifacts import FileArtifacts, _translated
from cloudfarm.errors import (
    InvalidInputError,
    NotFoundError,
    StorageFullError,
    StorageRefusedError,
    TooLargeError,
    UnavailableError,
)
from cloudfarm.ports import Artifacts
from cloudfarm.testing.memory_artifacts import MemoryArtifacts

HERE = ("tenants", "alpha", "packages")


@pytest.fixture(params=["memory", "local", "subtree", "mock"])
def artifacts(request, tmp_path: Path) -> Artifacts:
    if request.param == "memory":
        return MemoryArtifacts()
    if request.param == "local":
        return FileArtifacts(str(tmp_path / "artifacts"))
    if request.param == "subtree":
        below = pa_fs.SubTreeFileSystem(str(tmp_path), pa_fs.LocalFileSystem())
        return FileArtifacts("root", filesystem=below)
    return FileArtifacts("bucket/prefix", filesystem=pa_fs._MockFileSystem())


async def pieces(*chunks: bytes):
    for chunk in chunks:
        yield chunk


async def put(artifacts: Artifacts, name: str, *chunks: bytes, max_bytes: int = 1000) -> int:
    return await artifacts.write(*HERE, name, data=pieces(*chunks), max_bytes=max_bytes)


async def test_write_and_read(artifacts: Artifacts):
    assert not await artifacts.exists(*HERE, "a.zip")
    assert await put(artifacts, "a.zip", b"one", b"", b"two") == 6
    assert await artifacts.exists(*HERE, "a.zip")
    assert await artifacts.read(*HERE, "a.zip") == b"onetwo"
    assert await put(artifacts, "empty.zip") == 0
    assert await artifacts.read(*HERE, "empty.zip") == b""


async def test_write_again_replaces(artifacts: Artifacts):
    await put(artifacts, "a.zip", b"a longer one")
    await put(artifacts, "a.zip", b"new")
    assert await artifacts.read(*HERE, "a.zip") == b"new"


async def test_a_folder_is_no_file(artifacts: Artifacts):
    await put(artifacts, "a.zip", b"x")
    assert not await artifacts.exists(*HERE)


async def test_list(artifacts: Artifacts):
    assert await artifacts.list(*HERE) == []
    for name in ("b", "a", "c"):
        await put(artifacts, name, b"x")
    assert await artifacts.list(*HERE) == ["a", "b", "c"]
    assert await artifacts.list("tenants") == ["alpha"]


async def test_when_a_file_was_written(artifacts: Artifacts):
    assert await artifacts.modified_ms(*HERE, "a.zip") is None
    await put(artifacts, "a.zip", b"x")
    first_ms = await artifacts.modified_ms(*HERE, "a.zip")
    assert first_ms is not None
    assert first_ms > 1_500_000_000_000  # milliseconds since 1970
    await put(artifacts, "a.zip", b"y")
    assert (await artifacts.modified_ms(*HERE, "a.zip") or 0) >= first_ms
    assert await artifacts.modified_ms(*HERE) is None  # a folder


async def test_delete_files_and_folders_and_nothing(artifacts: Artifacts):
    await put(artifacts, "a", b"x")
    await put(artifacts, "b", b"x")
    await artifacts.delete(*HERE, "a")
    assert await artifacts.list(*HERE) == ["b"]
    await artifacts.delete("tenants", "alpha")
    assert await artifacts.list(*HERE) == []
    await artifacts.delete("tenants", "alpha")
    with pytest.raises(InvalidInputError):
        await artifacts.delete()


async def test_missing(artifacts: Artifacts):
    with pytest.raises(NotFoundError):
        await artifacts.read(*HERE, "none")


async def test_no_more_is_read_than_may_be(artifacts: Artifacts):
    await put(artifacts, "a", b"x" * 100)
    assert await artifacts.read(*HERE, "a", max_bytes=100) == b"x" * 100
    with pytest.raises(TooLargeError):
        await artifacts.read(*HERE, "a", max_bytes=99)


async def test_a_name_that_is_no_text_is_not_listed(tmp_path: Path):
    artifacts = FileArtifacts(str(tmp_path))
    await put(artifacts, "a", b"x")
    os.mkdir(os.fsencode(tmp_path.joinpath(*HERE)) + b"/\xff\xfe")  # noqa: PTH102 - a path of bytes
    assert await artifacts.list(*HERE) == ["a"]


async def test_a_file_that_the_system_refuses_is_not_one_that_may_come_back(tmp_path: Path):
    artifacts = FileArtifacts(str(tmp_path))
    await put(artifacts, "a", b"x")
    (tmp_path.joinpath(*HERE) / "loop").symlink_to("loop")
    with pytest.raises(StorageRefusedError):
        await artifacts.read(*HERE, "loop")
    assert isinstance(_translated(PermissionError(errno.EACCES, "no")), StorageRefusedError)


async def test_too_large_keeps_what_was_there(artifacts: Artifacts):
    await put(artifacts, "a", b"before")
    read = 0

    async def endless():
        nonlocal read
        while True:
            read += 1
            yield b"x" * 100

    with pytest.raises(TooLargeError):
        await artifacts.write(*HERE, "a", data=endless(), max_bytes=1000)
    assert read == 11
    assert await artifacts.read(*HERE, "a") == b"before"
    assert await artifacts.list(*HERE) == ["a"]
    assert await put(artifacts, "a", b"x" * 1000) == 1000  # the limit itself is allowed


async def test_an_upload_that_breaks_off_leaves_nothing(artifacts: Artifacts):
    async def broken():
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await artifacts.write(*HERE, "a", data=broken(), max_bytes=1000)
    assert await artifacts.list(*HERE) == []


async def test_a_cancelled_upload_leaves_nothing(artifacts: Artifacts):
    begun = asyncio.Event()

    async def stuck():
        yield b"half"
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(artifacts.write(*HERE, "a", data=stuck(), max_bytes=1000))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await artifacts.list(*HERE) == []


async def test_a_reader_never_sees_a_half(artifacts: Artifacts):
    await put(artifacts, "a", b"old")
    seen: list[object] = []

    async def watched():
        for _ in range(3):
            yield b"new"
            seen.append((await artifacts.read(*HERE, "a"), await artifacts.list(*HERE)))

    await artifacts.write(*HERE, "a", data=watched(), max_bytes=1000)
    assert seen == [(b"old", ["a"])] * 3
    assert await artifacts.read(*HERE, "a") == b"newnewnew"


async def test_no_half_file_stays_on_the_disk(tmp_path: Path):
    """Listing does not show them, so here the disk itself is looked at."""
    artifacts = FileArtifacts(str(tmp_path))

    async def broken():
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await artifacts.write(*HERE, "a", data=broken(), max_bytes=1000)
    with pytest.raises(TooLargeError):
        await put(artifacts, "a", b"x" * 2000)
    await put(artifacts, "b", b"x")
    disk = pa_fs.LocalFileSystem()
    found = disk.get_file_info(pa_fs.FileSelector(str(tmp_path), recursive=True))
    assert [each.base_name for each in found if each.is_file] == ["b"]


@pytest.mark.parametrize(
    "part",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "a\\b",
        "a\0b",
        ".hidden",
        "-rf",
        "a b",
        "é",
        "a\nb",
        "x" * 256,
        "~",
        "$HOME",
    ],
)
async def test_parts_that_would_leave_the_root(artifacts: Artifacts, part):
    for parts in ((part,), ("tenants", part), (part, "a")):
        with pytest.raises(InvalidInputError):
            await artifacts.read(*parts)
        with pytest.raises(InvalidInputError):
            await artifacts.exists(*parts)
        with pytest.raises(InvalidInputError):
            await artifacts.list(*parts)
        with pytest.raises(InvalidInputError):
            artifacts.uri(*parts)
        with pytest.raises(InvalidInputError):
            await artifacts.delete(*parts)
        with pytest.raises(InvalidInputError):
            await artifacts.write(*parts, data=pieces(b"x"), max_bytes=10)


async def test_a_uri_is_read_by_pyarrow_on_any_host(tmp_path: Path):
    artifacts = FileArtifacts(str(tmp_path))
    await put(artifacts, "a", b"x")
    assert pa_fs.LocalFileSystem().open_input_stream(artifacts.uri(*HERE, "a")).read() == b"x"
    by_uri = FileArtifacts(f"file://{tmp_path}")
    filesystem, path = pa_fs.FileSystem.from_uri(by_uri.uri(*HERE, "a"))
    assert filesystem.open_input_stream(path).read() == b"x"
    assert by_uri.uri().startswith("file://")


async def test_a_file_is_read_as_it_was_written(tmp_path: Path):
    """A name ending in .gz is read as it is: pyarrow would guess a compression from it."""
    artifacts = FileArtifacts(str(tmp_path))
    await put(artifacts, "a.gz", b"not gzip")
    assert await artifacts.read(*HERE, "a.gz") == b"not gzip"


class _FailingStream:
    def __init__(self, stream, error: OSError) -> None:
        self._stream, self._error = stream, error

    def write(self, _data: bytes) -> None:
        raise self._error

    def close(self) -> None:
        self._stream.close()


class _Failing:
    """A local disk on which every write fails."""

    def __init__(self, error: OSError) -> None:
        self._local, self._error = pa_fs.LocalFileSystem(), error

    def __getattr__(self, name: str):
        return getattr(self._local, name)

    def open_output_stream(self, path: str) -> _FailingStream:
        return _FailingStream(self._local.open_output_stream(path), self._error)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StorageFullError), (errno.EDQUOT, StorageFullError), (errno.EIO, UnavailableError)],
)
async def test_a_disk_that_fails(tmp_path: Path, number, kind):
    broken = FileArtifacts(str(tmp_path), filesystem=_Failing(OSError(number, "failed")))
    with pytest.raises(kind) as caught:
        await put(broken, "a", b"x")
    assert type(caught.value) is kind
    assert await broken.list(*HERE) == []


async def test_a_disk_that_is_really_full():
    """/dev/full says ENOSPC to every write; what pyarrow makes of it is what counts."""
    stream = pa_fs.LocalFileSystem().open_output_stream("/dev/full")
    with pytest.raises(OSError, match=r"[Nn]o space") as caught:
        stream.write(b"x" * 10_000_000)
    stream.close()
    assert isinstance(_translated(caught.value), StorageFullError)
