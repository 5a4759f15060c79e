"""What room for LoRA adapters costs those who ask for none, on a CPU: ``python -m benchmarks.adapters``.

Three engines in turns: without adapters, with them as vLLM computes them, and as the farm does
(:mod:`cloudfarm.inference.vllm_cpu`). No adapter is loaded, and none is asked for.
"""

import asyncio
import os
import random
import time
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from cloudfarm.inference import vllm_cpu, vllm_engine
from cloudfarm.training.default_models import SMOLLM2, prepare
from cloudfarm.training.hf_folder import MAX_RANK

# isort: split
# After vllm_engine, which sets what vLLM reads when it is imported.
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.uniproc_executor import UniProcExecutor

BATCHES, TOKENS, TURNS = (1, 4, 16), 24, 5
CACHE_BYTES = 1 << 30


def engine(executor: type[Any], **adapters: Any) -> Any:
    """Return an engine with the settings of the farm's."""
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(prepare(SMOLLM2)),
            max_model_len=-1,
            disable_log_stats=True,
            dtype="float32",
            enforce_eager=True,
            kv_cache_memory_bytes=CACHE_BYTES,
            max_num_seqs=vllm_engine.CPU_SEQUENCES,
            distributed_executor_backend=executor,
            **adapters,
        )
    )


async def rate(asked: Any, batch: int, rng: random.Random) -> float:
    """Return tokens a second with so many requests at once."""
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=TOKENS)

    async def answer() -> None:
        prompt = tokens_input([rng.randrange(1000, 40_000) for _ in range(40)])
        async for _ in asked.generate(prompt, params, str(rng.random())):
            pass

    began_s = time.perf_counter()
    await asyncio.gather(*(answer() for _ in range(batch)))
    return batch * TOKENS / (time.perf_counter() - began_s)


async def main() -> None:
    """Print the tokens a second of each, and the ratios to the one without."""
    room: dict[str, Any] = {
        "enable_lora": True,
        "max_lora_rank": MAX_RANK,
        "max_loras": vllm_engine.MAX_ADAPTERS,
        "max_cpu_loras": vllm_engine.MAX_ADAPTERS_KEPT,
    }
    engines = {
        "none": engine(UniProcExecutor),
        "vLLM's own": engine(UniProcExecutor, **room),
        "the farm's": engine(vllm_cpu.CpuExecutor, **room),
    }
    rng = random.Random(0)  # noqa: S311 - tokens of prompts
    for batch in BATCHES:
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(TURNS + 1):
            for name, asked in engines.items():
                found = await rate(asked, batch, rng)
                if turn:  # the first finds cold caches
                    rates[name].append(found)
        for name, found_all in rates.items():
            ratio = median(ours / none for ours, none in zip(found_all, rates["none"], strict=True))
            print(
                f"batch {batch}: {name:11} {median(found_all):5.1f} tokens/s, {ratio:.2f} of none", flush=True
            )
    for each in engines.values():
        each.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
