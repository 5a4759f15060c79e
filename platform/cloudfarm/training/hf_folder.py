"""Hugging Face folders as model bundles: what of one may be served, and how one is fetched.

The libraries that load such a folder run code for whoever asks in the right place: a pickle of weights, a Python file
named by ``auto_map``, a module named in the configuration of an adapter. So a folder is held to what needs none of it:
safetensors, and text files from the closed list of :data:`~cloudfarm.training.bundle.FileName`.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import safetensors
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cloudfarm.domain.bundles import CAUSAL_LM, LORA_ADAPTER, MANIFEST, TEXT_EMBEDDING
from cloudfarm.training.bundle import BundleError, Directory, FileName, Manifest, manifest_in

KINDS = (CAUSAL_LM, TEXT_EMBEDDING, LORA_ADAPTER)

MODEL_WEIGHTS = "model.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MAX_TEXT_BYTES = 64 << 20
MAX_RANK = 64
MAX_ADAPTER_BYTES = 1 << 30
"""Of all its files. With rank 64 on all linear layers of 8 billion weights an adapter in float32 has 0.7 GB."""

_ADAPTER_KEYS = {
    "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""What an adapter's configuration may say; every other key has to be there for nothing (null, false, empty)."""
_file_name = TypeAdapter(FileName)


class CausalLmSpec(BaseModel):
    """The ``spec`` of a ``causal-lm``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    context_tokens: int = Field(ge=16, le=1 << 24)
    """The most tokens that prompt and answer may have together."""
    architecture: str = Field(max_length=100)
    licence: str = Field(max_length=200)


class EmbeddingSpec(BaseModel):
    """The ``spec`` of a ``text-embedding`` model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dimensions: int = Field(ge=1, le=1 << 16)
    max_tokens: int = Field(ge=8, le=1 << 20)
    """Of one text."""
    licence: str = Field(max_length=200)


class AdapterSpec(BaseModel):
    """The ``spec`` of a ``lora-adapter``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: str = Field(pattern=r"^[0-9a-f]{12}$")
    """The version of the bundle that it was trained on (``Manifest.version``)."""
    base_name: str = Field(max_length=100)
    rank: int = Field(ge=1, le=MAX_RANK)


Spec = TypeVar("Spec", bound=BaseModel)
_SPECS: dict[str, type[BaseModel]] = {
    CAUSAL_LM: CausalLmSpec,
    TEXT_EMBEDDING: EmbeddingSpec,
    LORA_ADAPTER: AdapterSpec,
}


def fetch_bundle(uri: str, into: Path, digest: str | None = None) -> Manifest:
    """Copy a bundle that holds a Hugging Face folder into the new folder ``into``, and return its manifest.

    Whoever loads the copy reads what was checked, whatever happens to the bundle meanwhile. ``into`` is there only
    when it is whole.

    Args:
        uri: a path or URI of the bundle.
        into: made here.
        digest: of the manifest that is wanted (``manifest_digest``); None: whichever is there.

    Raises:
        NotFoundError: there is no bundle there, or it is still being written.
        BundleError: the bundle is not valid: a file is missing, was changed, is a link, or may not be served; or it is
            another one.
    """
    aside = into.with_name(f".{into.name}.{uuid4().hex}.part")
    try:
        with Directory(uri) as directory:
            manifest = manifest_in(directory, digest)
            aside.mkdir(parents=True)
            check_sizes(manifest.kind, {name: file.bytes for name, file in manifest.files.items()})
            for name, expected in manifest.files.items():
                directory.copy(name, expected, aside / name)
        check_folder(aside, manifest.kind, manifest.spec)
        aside.rename(into)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def check_sizes(kind: str, sizes: Mapping[str, int]) -> None:
    """Refuse files that are too large, before any is copied; raises BundleError.

    Whoever asks for an adapter has a replica of somebody else's fetch it while others are answered.
    """
    for name, size in sizes.items():
        if not name.endswith(".safetensors") and size > MAX_TEXT_BYTES:
            raise BundleError(f"{name} has more than the {MAX_TEXT_BYTES} bytes of a text file")
    if kind == LORA_ADAPTER:
        if beside := sorted(n for n in sizes if n.endswith(".safetensors") and n != ADAPTER_WEIGHTS):
            raise BundleError(f"{beside[0]}: an adapter's weights are {ADAPTER_WEIGHTS} and nothing else")
        if (total := sum(sizes.values())) > MAX_ADAPTER_BYTES:
            raise BundleError(f"the adapter has {total} bytes, more than {MAX_ADAPTER_BYTES}")


def check_folder(folder: Path, kind: str, spec: Any) -> list[str]:
    """Return the names of the files of a Hugging Face folder after looking into it.

    Raises:
        BundleError: something in it may not be served; the message names the file.
    """
    if kind not in KINDS:
        raise BundleError(f"a {kind} is not a Hugging Face folder; one of {', '.join(KINDS)} is")
    _check_spec(_SPECS[kind], kind, spec)
    names = _plain_names(folder)
    for name in names:
        if name.endswith(".safetensors"):
            weight_shapes(folder / name)
        elif name.endswith(".json"):
            _refuse_code(name, _json(folder / name))
    if kind == LORA_ADAPTER:
        _check_adapter(folder, names, spec["rank"])
    else:
        _check_model(folder, names)
    return names


def checked_spec(form: type[Spec], manifest: Manifest) -> Spec:
    """Return the spec of a manifest in the form of its kind; raises BundleError."""
    return _check_spec(form, manifest.kind, manifest.spec)


def _check_spec(form: type[Spec], kind: str, spec: Any) -> Spec:
    try:
        return form.model_validate(spec)
    except ValidationError as bad:
        raise BundleError(f"the spec is not that of a {kind}: {bad}") from bad


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of a safetensors file, of which only the header is read.

    Raises:
        BundleError: it is no such file.
    """
    try:
        with safetensors.safe_open(path, framework="np") as arrays:
            return {name: tuple(arrays.get_slice(name).get_shape()) for name in arrays.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as bad:
        raise BundleError(f"{path.name} is not a readable safetensors file: {bad}") from bad


def _plain_names(folder: Path) -> list[str]:
    names = []
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as refused:
        raise BundleError(f"{folder} is not a folder that can be read: {refused.strerror}") from refused
    for entry in found:
        if entry.name == MANIFEST:
            continue  # of the bundle that this folder was, or is going to be
        if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
            raise BundleError(
                f"{entry.name} is a folder, a link or a special file; a bundle holds plain files"
            )
        try:
            _file_name.validate_python(entry.name)
        except ValidationError as bad:
            raise BundleError(
                f"{entry.name} may not be in a bundle: it holds safetensors and a few text files by their names "
                "(pickles and Python files run code)"
            ) from bad
        names.append(entry.name)
    return names


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise BundleError(f"{path.name} has more than the {MAX_TEXT_BYTES} bytes of a text file")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as bad:
        raise BundleError(f"{path.name} is not JSON: {bad}") from bad
    if not isinstance(content, dict):
        raise BundleError(f"{path.name} is not a JSON object")
    return content


def _refuse_code(name: str, content: dict[str, Any]) -> None:
    """Refuse what has a library import code: at any depth, since configurations hold configurations."""
    if name in ("vocab.json", "tokenizer.json", "added_tokens.json", MODEL_INDEX):
        return  # vocabularies: the keys are words
    waiting: list[Any] = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            for key in ("auto_map", "trust_remote_code", "custom_pipelines"):
                if each.get(key):
                    raise BundleError(f"{name}: {key} would run code that comes with the model")
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _check_model(folder: Path, names: list[str]) -> None:
    if "config.json" not in names:
        raise BundleError("config.json is missing")
    if MODEL_INDEX in names:
        parts = _json(folder / MODEL_INDEX).get("weight_map")
        if not isinstance(parts, dict) or not all(
            isinstance(part, str) and part.endswith(".safetensors") and part in names
            for part in parts.values()
        ):
            raise BundleError(f"{MODEL_INDEX} names files that are not in the bundle")
    elif MODEL_WEIGHTS not in names:
        raise BundleError(f"neither {MODEL_WEIGHTS} nor {MODEL_INDEX} is there")
    if not {"tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"} & set(names):
        raise BundleError("the tokenizer is missing")


def _check_adapter(folder: Path, names: list[str], rank: int) -> None:
    if missing := {ADAPTER_CONFIG, ADAPTER_WEIGHTS} - set(names):
        raise BundleError(f"{min(missing)} is missing")
    config = _json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise BundleError(f"{ADAPTER_CONFIG}: peft_type is not LORA")
    if beyond := sorted(key for key, value in config.items() if value and key not in _ADAPTER_KEYS):
        plain = [key for key in beyond if not (key == "bias" and config[key] == "none")]
        if plain:
            raise BundleError(f"{ADAPTER_CONFIG}: {plain[0]} is not served; plain LoRA is")
    if config.get("r") != rank:
        raise BundleError(f"{ADAPTER_CONFIG}: r is {config.get('r')}, but the bundle's spec says {rank}")
    if not isinstance(config.get("init_lora_weights", True), bool):
        raise BundleError(f"{ADAPTER_CONFIG}: init_lora_weights is neither true nor false")
    _check_scale(config)
    shapes = weight_shapes(folder / ADAPTER_WEIGHTS)
    _check_targets(config.get("target_modules"), shapes)
    for name, shape in shapes.items():
        if len(shape) != 2 or rank not in shape:  # noqa: PLR2004 - a matrix
            raise BundleError(f"{ADAPTER_WEIGHTS}: {name} is not of rank {rank}")


def _check_scale(config: dict[str, Any]) -> None:
    for key, below in (("lora_alpha", math.inf), ("lora_dropout", 1.0)):
        value = config.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
            raise BundleError(f"{ADAPTER_CONFIG}: {key} is {value!r}")


def _check_targets(targets: Any, weights: Iterable[str]) -> None:
    """Refuse what names other modules than it has weights for: an engine would notice only as it loads it."""
    if (
        not isinstance(targets, list)
        or not targets
        or not all(isinstance(each, str) and re.fullmatch(r"[A-Za-z0-9_.]{1,100}", each) for each in targets)
    ):
        raise BundleError(f"{ADAPTER_CONFIG}: target_modules is not a list of names")
    modules = {name.rpartition(".lora_")[0] for name in weights}
    named = {module: {each for each in targets if f".{module}".endswith(f".{each}")} for module in modules}
    if unnamed := sorted(module for module, names in named.items() if not names):
        raise BundleError(f"{ADAPTER_CONFIG}: {unnamed[0] or 'what it has weights for'} is no target module")
    if idle := sorted(set(targets).difference(*named.values())):
        raise BundleError(f"{ADAPTER_WEIGHTS} has nothing for the target module {idle[0]}")
