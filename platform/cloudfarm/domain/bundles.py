"""What the farm reads from a model's manifest, which a tenant wrote: nothing in it is taken for granted."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cloudfarm.domain.json_values import check_json
from cloudfarm.errors import InvalidInputError

CAUSAL_LM = "causal-lm"
TEXT_EMBEDDING = "text-embedding"
LORA_ADAPTER = "lora-adapter"
SERVE_APP = "serve-app"
"""A tenant's own Serve application: code, and no model."""
ANSWERED_AS_OPENAI = frozenset({CAUSAL_LM, TEXT_EMBEDDING})
"""Kinds of models whose services speak OpenAI's API."""
MANIFEST = "model.json"
"""The file of a bundle that describes it, written last."""
MAX_MANIFEST_BYTES = 1 << 20
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
"""By which a registered model can be named."""


def check_name(name: str) -> None:
    """Refuse a name by which nobody could name a model; raises InvalidInputError."""
    if re.fullmatch(MODEL_NAME, name) is None:
        raise InvalidInputError("a model's name has letters, digits and '_.-' only, and begins with no '_.-'")


def parse_manifest(content: bytes) -> Mapping[str, Any]:
    """Return the manifest that a tenant wrote, if the farm can keep and show it; raises InvalidInputError."""
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as bad:  # the latter for "[[[[..."
        raise InvalidInputError(f"{MANIFEST} is not JSON: {bad}") from bad
    if not isinstance(manifest, dict):
        raise InvalidInputError(f"{MANIFEST} is not a JSON object")
    check_json(manifest, what=MANIFEST)
    return manifest


MAX_CONTEXT_TOKENS = 1 << 24
"""No model of a farm takes more."""


def kind_of(manifest: Mapping[str, Any]) -> str:
    """Return which program can serve the model; empty if the manifest does not say."""
    kind = manifest.get("kind")
    return kind if isinstance(kind, str) else ""


def context_of(manifest: Mapping[str, Any]) -> int:
    """Return how many tokens a language model's prompt and answer may have together; 0 if the manifest does not say."""
    spec = manifest.get("spec")
    tokens = spec.get("context_tokens") if isinstance(spec, Mapping) else None
    return tokens if type(tokens) is int and 0 < tokens <= MAX_CONTEXT_TOKENS else 0


def version_of(manifest: Mapping[str, Any]) -> str | None:
    """Return the short name of exactly these weights, or None if the manifest does not tell of any."""
    files = manifest.get("files")
    if not isinstance(files, Mapping) or not files:
        return None
    hashes = [file.get("sha256") if isinstance(file, Mapping) else None for _, file in sorted(files.items())]
    return weights_version(map(str, hashes)) if all(isinstance(each, str) for each in hashes) else None


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a manifest says, in whatever order and layout it says it.

    A bundle stays where its tenant wrote it and can write again: by this what is loaded is known for what was
    registered.
    """
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def weights_version(sha256s: Iterable[str]) -> str:
    """Return a short name for files of these hashes, in their names' order: 12 digits of a hash of their hashes."""
    return hashlib.sha256("".join(sha256s).encode()).hexdigest()[:12]


def adapts(adapter: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether the one manifest is of a LoRA adapter made for the weights of the other."""
    spec = adapter.get("spec")
    if kind_of(adapter) != LORA_ADAPTER or kind_of(base) != CAUSAL_LM or not isinstance(spec, Mapping):
        return False
    version = version_of(base)
    return version is not None and spec.get("base") == version
