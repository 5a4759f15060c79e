"""LoRA adapters in vLLM on a CPU: each computed for those rows of a batch that asked for it, and nothing for the rest.

vLLM 0.32's own way there multiplies every row with the matrices of a slot for adapters. For rows without one that slot
is number -1, which is the last: while that one is taken, such rows are answered with somebody's adapter. And while none
is taken, multiplying with its zeros costs up to half of the tokens a second (docs/benchmarks.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

Groups = Sequence[tuple[int, torch.Tensor]]
"""Slots that are asked for, and which rows ask for each."""


class CpuExecutor(UniProcExecutor):  # type: ignore[misc]  # vllm has no types
    """vLLM's worker in the engine's own process, with adapters as they are computed here.

    By default there is another process, to bind threads to cores, which is off here; that would cost a third of the
    start, 370 MB, and a core that only waits for the other.
    """

    def _init_executor(self) -> None:
        chosen = f"{AdaptersOnCpu.__module__}.{AdaptersOnCpu.__qualname__}"
        type(current_platform).get_punica_wrapper = classmethod(lambda _platform: chosen)
        super()._init_executor()


class AdaptersOnCpu(PunicaWrapperCPU):  # type: ignore[misc]  # vllm has no types
    """What vLLM's layers ask for adapters' part of their outputs.

    Stacked matrices have the shape (slots, 1, rows, columns), those of an adapter padded with zeros.
    """

    _tokens: Groups = ()
    _sampled: Groups = ()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take note of which rows of a batch ask for which adapter."""
        super().update_metadata(*args, **kwargs)
        self._tokens = groups(self.token_lora_indices)
        self._sampled = groups(self.sampler_indices)

    def add_lora_linear(self, *args: Any, **kwargs: Any) -> None:
        """Add ``scale * (x @ A) @ B`` to a linear layer's outputs."""
        if self._tokens:
            super().add_lora_linear(*args, **kwargs)

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        shrink(self._tokens, y, x, w_t_all, scale)

    def _apply_expand(
        self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, *columns: int, add_inputs: bool = True
    ) -> None:
        assert add_inputs  # noqa: S101 - nothing on a CPU asks for another way
        first, count = columns
        expand(self._tokens, y[:, first : first + count], x, w_t_all)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> None:
        """Add ``x @ B``; vLLM has looked the rows of A up."""
        expand(self._tokens, y, x, lora_b_stacked)

    def add_lora_logits(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, lora_b_stacked: torch.Tensor,
        scale: float, **_kwargs: Any,
    ) -> None:  # fmt: skip
        """Add ``scale * (x @ A) @ B``; y has a row for each token that is sampled."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        low_rank = x.new_zeros((len(x), lora_b_stacked.size(-1)))
        shrink(self._sampled, low_rank, x, lora_a_stacked, scale)
        expand(self._sampled, y, low_rank, lora_b_stacked)


def groups(slots: torch.Tensor) -> Groups:
    """Return which rows ask for which slot; those that ask for none have -1."""
    return [(slot, (slots == slot).nonzero().flatten()) for slot in slots.unique().tolist() if slot >= 0]


def shrink(asked: Groups, y: torch.Tensor, x: torch.Tensor, stacked: torch.Tensor, scale: float) -> None:
    """Set ``y = scale * x @ A`` in the rows that ask for an adapter."""
    for slot, rows in asked:
        lora_a = stacked[slot].flatten(0, -2).to(y.dtype)
        y[rows, : len(lora_a)] = scale * (x[rows].to(y.dtype) @ lora_a.T)


def expand(asked: Groups, y: torch.Tensor, x: torch.Tensor, stacked: torch.Tensor) -> None:
    """Add ``x @ B`` to the rows of y that ask for an adapter."""
    for slot, rows in asked:
        lora_b = stacked[slot].flatten(0, -2)[: y.shape[-1]].to(y.dtype)
        y[rows, : len(lora_b)] += x[rows].to(y.dtype) @ lora_b.T
