"""Writing a model bundle where the farm looks for it."""

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow.fs
import safetensors.numpy
from pydantic import JsonValue, ValidationError

from cloudfarm.errors import InvalidInputError
from cloudfarm.training.bundle import MANIFEST, WEIGHTS, Arrays, BundleFile, DataCard, Manifest, resolve

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
    try:
        manifest = Manifest(
            name=name,
            kind=kind,
            framework=framework,
            created_at=datetime.now(UTC),
            spec=dict(spec),
            metrics=dict(metrics),
            data=card,
            config=dict(config),
            files={WEIGHTS: BundleFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())},
            example_input=None if example_input is None else dict(example_input),
        )
    except ValidationError as bad:
        raise InvalidInputError(f"the model {name!r} cannot be published: {bad}") from bad
    root = (outbox or os.environ.get(OUTBOX) or "models").rstrip("/")
    filesystem, path = resolve(f"{root}/{name}")
    filesystem.create_dir(path, recursive=True)
    if filesystem.get_file_info(f"{path}/{MANIFEST}").type != pyarrow.fs.FileType.NotFound:
        filesystem.delete_file(f"{path}/{MANIFEST}")
    _write(filesystem, f"{path}/{WEIGHTS}", content)
    _write(filesystem, f"{path}/{MANIFEST}", manifest.model_dump_json(indent=2).encode() + b"\n")
    return f"{root}/{name}"


def _write(filesystem: Any, path: str, content: bytes) -> None:
    aside = f"{path}.{uuid4().hex}.part"
    try:
        with filesystem.open_output_stream(aside) as stream:
            stream.write(content)
        filesystem.move(aside, path)
    except BaseException:
        if filesystem.get_file_info(aside).type != pyarrow.fs.FileType.NotFound:
            filesystem.delete_file(aside)
        raise
