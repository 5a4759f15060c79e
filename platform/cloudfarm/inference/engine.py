"""What generates tokens: the port, and which engine a machine has."""

import importlib.util
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from cloudfarm.domain.generation import Piece, Sampling
from cloudfarm.errors import InvalidInputError
from cloudfarm.inference.memory import cpu_cache_bytes, float32_bytes, memory_bytes, own_cache_bytes

EngineName = Literal["vllm", "transformers"]


@dataclass(frozen=True, slots=True)
class LocalAdapter:
    """An adapter that was fetched and checked."""

    number: int
    """From 1, another for each adapter."""
    folder: Path


class Engine(Protocol):
    """A causal language model in memory. Requests come checked (``asked``), in tokens."""

    context_tokens: int
    """The most that a prompt and its answer may have together: the model's, or less where memory is short."""
    vocabulary: int

    @property
    def cache_tokens(self) -> int | None:
        """How many tokens, prompt and answer, all choices of a request may have together; None: any number."""
        ...

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, max_tokens: int, adapter: LocalAdapter | None
    ) -> AsyncGenerator[Piece]:
        """Answer. Closing the generator ends the work.

        Tokens are counted as they are generated: also the one that ends the answer, and those of which no text comes
        because a character is not whole or a stop text begins.

        Raises:
            BundleError: the engine cannot load the adapter.
        """
        ...

    def running(self) -> int:
        """Return how many requests are being answered."""
        ...

    def check(self) -> None:
        """Raise if the engine answers nothing any more."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what the engine is: ``name``, ``version``, ``device``, ``dtype``."""
        ...

    def close(self) -> None:
        """End the engine and give its memory back."""
        ...


def open_engine(folder: Path, context_tokens: int, name: EngineName | None = None) -> Engine:
    """Return an engine with the model of a checked Hugging Face folder.

    That is vLLM where it is installed and, on a CPU, the lease's memory has room for it; else transformers.

    Args:
        folder: what was fetched by ``hf_folder.fetch_bundle``.
        context_tokens: the model's.
        name: another choice.

    Raises:
        InvalidInputError: that engine is not installed, or has no room.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever looked for anywhere else
    memory, weights = memory_bytes(), float32_bytes(folder)
    cache = cpu_cache_bytes(memory, weights)
    has_room = cache is not None or torch.cuda.is_available()
    if name == "vllm" and not (_is_installed("vllm") and has_room):
        raise InvalidInputError("vLLM is not installed here, or the lease has not enough memory for it")
    # Either takes seconds to import, and one of them is enough.
    if name == "vllm" or (name is None and has_room and _is_installed("vllm")):
        from cloudfarm.inference.vllm_engine import VllmEngine  # noqa: PLC0415

        return VllmEngine(folder, context_tokens, cache)
    from cloudfarm.inference.transformers_engine import TransformersEngine  # noqa: PLC0415

    on_gpu = torch.cuda.is_available()
    return TransformersEngine(folder, context_tokens, None if on_gpu else own_cache_bytes(memory, weights))


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None
