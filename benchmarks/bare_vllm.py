"""vLLM by itself, with the settings of the farm's engine: ``python -m benchmarks.bare_vllm FOLDER``.

Reads one list of prompts after the other from its input, as JSON lines ``{"prompts": [...], "tokens": 64}``, has them
answered at once, and prints what it saw of each list as a JSON line. The engine is made by the farm's own code, so that
nothing differs but the way to it; the prompts are given to vLLM itself.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import vllm

from cloudfarm.inference.engine import open_engine


async def answer(engine: Any, name: str, prompt: str, tokens: int) -> tuple[float, int]:
    """Return when the first token came, and how many came."""
    params = vllm.SamplingParams(
        temperature=0,
        ignore_eos=True,
        max_tokens=tokens,
        output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
    )
    first_s, count = 0.0, 0
    async for output in engine.generate(prompt, params, name):
        first_s = first_s or time.perf_counter()
        count += len(output.outputs[0].token_ids)
    return first_s, count


async def main() -> None:
    """Serve lists of prompts until the input ends."""
    ours: Any = open_engine(Path(sys.argv[1]), int(sys.argv[2]), "vllm")
    engine = ours._engine  # noqa: SLF001 - vLLM's own
    print(json.dumps(dict(ours.describe())), flush=True)
    number = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        began_s = time.perf_counter()
        number += 1
        seen = await asyncio.gather(
            *(
                answer(engine, f"{number}.{place}", prompt, asked["tokens"])
                for place, prompt in enumerate(asked["prompts"])
            )
        )
        seconds = time.perf_counter() - began_s
        firsts = [1000 * (first_s - began_s) for first_s, _ in seen]
        print(
            json.dumps({"seconds": seconds, "tokens": sum(count for _, count in seen), "first_ms": firsts}),
            flush=True,
        )
    ours.close()


if __name__ == "__main__":
    asyncio.run(main())
