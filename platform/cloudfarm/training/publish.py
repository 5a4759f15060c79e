"""Writing a model bundle where the farm looks for it."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow.fs
import safetensors.numpy
from pydantic import JsonValue, ValidationError

from cloudfarm.domain.bundles import MANIFEST
from cloudfarm.errors import InvalidInputError
from cloudfarm.training.bundle import (
    COPIED_BYTES,
    WEIGHTS,
    Arrays,
    BundleFile,
    DataCard,
    Manifest,
    resolve,
)
from cloudfarm.training.hf_folder import check_folder, check_sizes

OUTBOX = "CLOUDFARM_MODEL_OUTBOX"
"""Environment variable with the path or URI to publish to; the farm sets it in every lease."""


def publish_model(
    name: str,
    weights: Arrays,
    *,
    kind: str,
    spec: Mapping[str, JsonValue],
    config: Mapping[str, JsonValue],
    metrics: Mapping[str, float],
    card: DataCard,
    framework: str = "torch",
    example_input: Mapping[str, JsonValue] | None = None,
    outbox: str | None = None,
) -> str:
    """Write the bundle ``<outbox>/<name>/`` and return its path or URI.

    ``model.json`` goes first when an older bundle is replaced and comes last when the new one is whole, each
    file by rename, so a reader never takes a part for the whole. On a farm the steward registers each bundle
    that it finds in the outbox after the job has succeeded as a new version of the model.

    Args:
        name: the model's name (``bundle.Name``).
        weights: arrays by parameter name.
        kind: which program can serve it, for example ``windpower-forecaster``.
        spec: what that program needs to build the model.
        config: the training run's settings.
        metrics: figures on held-out rows, units in the names.
        card: what the model was trained on.
        framework: what made the weights.
        example_input: a request that the service answers.
        outbox: path or URI; default ``$CLOUDFARM_MODEL_OUTBOX``, else ``./models``.

    Raises:
        InvalidInputError: a name, figure or setting that a manifest cannot hold.
    """
    content = safetensors.numpy.save({key: np.ascontiguousarray(array) for key, array in weights.items()})
    manifest = _manifest(
        name=name,
        kind=kind,
        framework=framework,
        spec=dict(spec),
        metrics=dict(metrics),
        data=card,
        config=dict(config),
        files={WEIGHTS: BundleFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())},
        example_input=None if example_input is None else dict(example_input),
    )
    root, filesystem, path = _open_place(name, outbox)
    _write(filesystem, f"{path}/{WEIGHTS}", content)
    _write(filesystem, f"{path}/{MANIFEST}", manifest.model_dump_json(indent=2).encode() + b"\n")
    return f"{root}/{name}"


def publish_folder(
    name: str,
    folder: Path,
    *,
    kind: str,
    spec: Mapping[str, JsonValue],
    config: Mapping[str, JsonValue],
    metrics: Mapping[str, float],
    card: DataCard,
    framework: str = "transformers",
    outbox: str | None = None,
) -> str:
    """Write a Hugging Face folder as the bundle ``<outbox>/<name>/`` and return its path or URI.

    It is there all at once, as :func:`publish_model` says. Files are copied a piece at a time.

    Args:
        name: the model's name (``bundle.Name``).
        folder: with what ``save_pretrained`` of a model and of its tokenizer wrote, or of an adapter.
        kind: ``causal-lm``, ``text-embedding`` or ``lora-adapter``.
        spec: as ``hf_folder`` says for the kind.
        config: the training run's settings.
        metrics: figures on held-out rows, units in the names.
        card: what the model was trained on.
        framework: what made the weights.
        outbox: path or URI; default ``$CLOUDFARM_MODEL_OUTBOX``, else ``./models``.

    Raises:
        BundleError: something in the folder may not be served; the message names the file.
        InvalidInputError: a name, figure or setting that a manifest cannot hold.
    """
    names = check_folder(folder, kind, dict(spec))
    sizes = {each: (folder / each).stat().st_size for each in names}
    check_sizes(kind, sizes)
    draft = _manifest(
        name=name,
        kind=kind,
        framework=framework,
        spec=dict(spec),
        metrics=dict(metrics),
        data=card,
        config=dict(config),
        files={each: BundleFile(bytes=size, sha256="0" * 64) for each, size in sizes.items()},
    )
    root, filesystem, path = _open_place(name, outbox)
    files = {each: _copy(folder / each, filesystem, f"{path}/{each}") for each in names}
    manifest = draft.model_copy(update={"files": files})
    _write(filesystem, f"{path}/{MANIFEST}", manifest.model_dump_json(indent=2).encode() + b"\n")
    return f"{root}/{name}"


def _manifest(*, name: str, **members: Any) -> Manifest:
    try:
        return Manifest(name=name, created_at=datetime.now(UTC), **members)
    except ValidationError as bad:
        raise InvalidInputError(f"the model {name!r} cannot be published: {bad}") from bad


def _open_place(name: str, outbox: str | None) -> tuple[str, pyarrow.fs.FileSystem, str]:
    """Return the outbox, and where in which file system the bundle goes; an older one is none from now on."""
    root = (outbox or os.environ.get(OUTBOX) or "models").rstrip("/")
    filesystem, path = resolve(f"{root}/{name}")
    filesystem.create_dir(path, recursive=True)
    if filesystem.get_file_info(f"{path}/{MANIFEST}").type != pyarrow.fs.FileType.NotFound:
        filesystem.delete_file(f"{path}/{MANIFEST}")
    return root, filesystem, path


def _copy(source: Path, filesystem: pyarrow.fs.FileSystem, path: str) -> BundleFile:
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as file, _renamed(filesystem, path) as stream:
        while piece := file.read(COPIED_BYTES):
            digest.update(piece)
            size += len(piece)
            stream.write(piece)
    return BundleFile(bytes=size, sha256=digest.hexdigest())


def _write(filesystem: pyarrow.fs.FileSystem, path: str, content: bytes) -> None:
    with _renamed(filesystem, path) as stream:
        stream.write(content)


@contextmanager
def _renamed(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[Any]:
    """Give a stream to a file aside that becomes ``path`` when all is written, and nothing when it fails."""
    aside = f"{path}.{uuid4().hex}.part"
    try:
        with filesystem.open_output_stream(aside) as stream:
            yield stream
        filesystem.move(aside, path)
    except BaseException:
        if filesystem.get_file_info(aside).type != pyarrow.fs.FileType.NotFound:
            filesystem.delete_file(aside)
        raise
