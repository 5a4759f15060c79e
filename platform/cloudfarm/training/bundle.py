"""A model bundle: a directory with ``model.json`` and the weights, and how to read one that a stranger wrote.

``model.json`` is written last, so a directory that has one is whole. It names every file with its size and
SHA-256. A reader trusts nothing: weights are safetensors only (a pickle can run code), file names are plain
names in the bundle's own directory, and on a local disk no symbolic link or special file is followed, since
the farm reads bundles that tenants wrote with more rights than theirs. Beside its weights a bundle may hold the
small text files that a Hugging Face folder has (``hf_folder``).

This module imports neither Ray nor torch.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow.fs
import safetensors
import safetensors.numpy
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from cloudfarm.domain.bundles import MANIFEST, MAX_MANIFEST_BYTES, manifest_digest, weights_version
from cloudfarm.errors import CloudfarmError, NotFoundError

WEIGHTS = "weights.safetensors"
MAX_WEIGHTS_BYTES = 64 << 30
COPIED_BYTES = 4 << 20

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
"""A model's name: lower-case letters, digits, dots and hyphens, at most 63."""
FileName = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,99}\.safetensors"
        r"|(config|generation_config|adapter_config|model\.safetensors\.index)\.json"
        r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
        r"|(tokenizer|spiece|sentencepiece\.bpe)\.model|vocab\.txt|merges\.txt|chat_template\.jinja"
        r"|README\.md|LICENSE)$"
    ),
]
"""Weights by any plain name, and the other files of a Hugging Face folder by theirs."""
Arrays = dict[str, npt.NDArray[Any]]


class BundleError(CloudfarmError):
    """A model bundle is not whole, was changed, or has something in it that is not allowed."""

    code: ClassVar[str] = "bad_bundle"
    status: ClassVar[int] = 422
    title: ClassVar[str] = "The model bundle is not valid"


class BundleFile(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int = Field(ge=0, le=MAX_WEIGHTS_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DataCard(BaseModel):
    """What a model was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    source: str
    licence: str
    attribution: str = ""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """``model.json``.

    Attributes:
        kind: which program can serve it; ``spec`` has that kind's own schema (features, normalisation,
            horizon ...).
        metrics: figures measured on rows that training never saw, units in the names.
        config: the training run's settings.
        example_input: a request that the service answers, taken from real data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = 1
    name: Name
    kind: Name
    framework: str
    created_at: AwareDatetime
    spec: dict[str, JsonValue]
    metrics: dict[str, FiniteFloat]
    data: DataCard
    config: dict[str, JsonValue]
    files: dict[FileName, BundleFile] = Field(min_length=1)
    example_input: dict[str, JsonValue] | None = None

    @property
    def version(self) -> str:
        """A short name for exactly these weights: 12 hexadecimal digits of a hash of their hashes."""
        return weights_version(self.files[name].sha256 for name in sorted(self.files))


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked: the manifest and every array of every file."""

    manifest: Manifest
    weights: Arrays


def read_manifest(uri: str) -> Manifest:
    """Return the manifest of the bundle at ``uri`` (a path or URI) without reading its weights.

    Raises:
        NotFoundError: there is no bundle there, or it is still being written.
        BundleError: the manifest is not valid.
    """
    with Directory(uri) as directory:
        return manifest_in(directory)


def read_bundle(uri: str, digest: str | None = None) -> Bundle:
    """Return the bundle at ``uri`` after checking the size and SHA-256 of every file.

    Args:
        uri: a path or URI.
        digest: as :func:`manifest_in`.

    Raises:
        NotFoundError: there is no bundle there, or it is still being written.
        BundleError: the bundle is not valid (see the module's docstring), or another one.
    """
    with Directory(uri) as directory:
        manifest = manifest_in(directory, digest)
        weights: Arrays = {}
        for name, expected in manifest.files.items():
            try:
                content = directory.read(name, expected.bytes)
            except FileNotFoundError as gone:
                raise BundleError(f"{uri}: {name} is missing") from gone
            if len(content) != expected.bytes or hashlib.sha256(content).hexdigest() != expected.sha256:
                raise BundleError(f"{uri}: {name} is not the file that {MANIFEST} describes")
            try:
                arrays = safetensors.numpy.load(content)
            except (safetensors.SafetensorError, KeyError, ValueError) as bad:
                raise BundleError(f"{uri}: {name} is not a readable safetensors file: {bad}") from bad
            if twice := weights.keys() & arrays.keys():
                raise BundleError(f"{uri}: {min(twice)} is in two files")
            weights |= arrays
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise BundleError(f"{uri}: the weights hold numbers that are not finite")
    return Bundle(manifest, weights)


def list_bundles(outbox: str) -> list[str]:
    """Return the URIs of the bundles in ``outbox``, by name: its sub-directories with a manifest, unread."""
    filesystem, path = resolve(outbox)
    inside = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in inside if info.type == pyarrow.fs.FileType.Directory)
    manifests = filesystem.get_file_info([f"{path}/{name}/{MANIFEST}" for name in names])
    found = [
        name for name, info in zip(names, manifests, strict=True) if info.type == pyarrow.fs.FileType.File
    ]
    return [f"{outbox.rstrip('/')}/{name}" for name in found]


def resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system and the path in it of a URI or of a local path."""
    if "://" in uri:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        return filesystem, path.rstrip("/")
    return pyarrow.fs.LocalFileSystem(), os.path.abspath(uri)  # noqa: PTH100 - Path.resolve would follow links


def manifest_in(directory: "Directory", digest: str | None = None) -> Manifest:
    """Return the manifest of an opened bundle.

    Args:
        directory: the bundle.
        digest: of the manifest that is wanted (``manifest_digest``); None: whichever is there.

    Raises:
        NotFoundError, BundleError: as :func:`read_manifest`, and if it is another manifest.
    """
    try:
        content = directory.read(MANIFEST, MAX_MANIFEST_BYTES)
    except FileNotFoundError as gone:
        raise NotFoundError(f"{directory.uri} holds no model bundle ({MANIFEST} is not there)") from gone
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as bad:
        raise BundleError(f"{directory.uri}: {MANIFEST} is not valid: {bad}") from bad
    if digest is not None and manifest_digest(json.loads(content)) != digest:
        raise BundleError(
            f"{directory.uri} has changed since it was registered: its {MANIFEST} is another one now; register it anew"
        )
    return manifest


class Directory:
    """Reads plain files of one directory; on a local disk by its descriptor, so nothing can be swapped in."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._filesystem, self._path = resolve(uri)
        self._fd: int | None = None

    def __enter__(self) -> Self:
        if isinstance(self._filesystem, pyarrow.fs.LocalFileSystem):
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError as gone:
                raise NotFoundError(f"{self.uri} does not exist") from gone
            except OSError as refused:
                raise BundleError(f"{self.uri} is not a plain directory: {refused.strerror}") from refused
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def read(self, name: str, limit: int) -> bytes:
        """Return the file's bytes; ``BundleError``, before reading, for more than ``limit`` of them."""
        with self.open(name, limit) as file:
            return file.read(limit)

    def copy(self, name: str, expected: BundleFile, to: Path) -> None:
        """Copy a file that is what the manifest says, a piece at a time; ``BundleError`` for any other."""
        digest, size = hashlib.sha256(), 0
        try:
            with self.open(name, expected.bytes) as file, to.open("xb") as copied:
                while size <= expected.bytes and (piece := file.read(COPIED_BYTES)):  # it may still grow
                    digest.update(piece)
                    size += len(piece)
                    copied.write(piece)
        except FileNotFoundError as gone:
            raise BundleError(f"{self.uri}: {name} is missing") from gone
        if size != expected.bytes or digest.hexdigest() != expected.sha256:
            raise BundleError(f"{self.uri}: {name} is not the file that {MANIFEST} describes")

    @contextmanager
    def open(self, name: str, limit: int) -> Iterator[BinaryIO]:
        """Open a plain file of at most ``limit`` bytes."""
        if self._fd is None:
            self._refuse_large(name, self._filesystem.get_file_info(f"{self._path}/{name}").size or 0, limit)
            with self._filesystem.open_input_stream(f"{self._path}/{name}") as stream:
                yield stream
            return
        try:
            # O_NONBLOCK: opening a FIFO must not hang the reader.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fd)
        except FileNotFoundError:
            raise
        except OSError as refused:
            raise BundleError(f"{self.uri}: {name} is not a plain file: {refused.strerror}") from refused
        with open(file, "rb") as opened:  # noqa: PTH123 - a descriptor, not a path
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{self.uri}: {name} is not a plain file")
            self._refuse_large(name, found.st_size, limit)
            yield opened

    def _refuse_large(self, name: str, size: int, limit: int) -> None:
        if size > limit:
            raise BundleError(f"{self.uri}: {name} has {size} bytes, more than the {limit} that it may have")
