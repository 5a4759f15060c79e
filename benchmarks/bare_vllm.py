"""vLLM by itself, with the settings of the farm's engine: ``python -m benchmarks.bare_vllm FOLDER TOKENS NAME``.

It is asked in two ways. Over HTTP, by vLLM's own server, which is what one would run without a farm. And in its
process, with no way to it at all: it reads lists of prompts from its input, as JSON lines ``{"prompts": [...],
"tokens": 64}``, has them answered at once, and prints what it saw of each list as a JSON line. The engine is made by
the farm's own code, so that nothing differs but the way to it.
"""

import asyncio
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
import vllm
from vllm.entrypoints.launchers.api_server.entry import build_and_serve
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

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


def serve(engine: Any, folder: str, name: str) -> tuple[str, asyncio.Task[Any]]:
    """Let vLLM's own server answer for the engine; returns its URL, and the task that serves."""
    options = ["--model", folder, "--served-model-name", name, "--uvicorn-log-level", "warning"]
    asked = make_arg_parser(FlexibleArgumentParser()).parse_args([*options, "--disable-uvicorn-access-log"])
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    return url, asyncio.create_task(build_and_serve(engine, url, listening, asked))


async def main() -> None:
    """Serve until the input ends."""
    folder, context_tokens, name = sys.argv[1:]
    ours: Any = open_engine(Path(folder), int(context_tokens), "vllm")
    engine = ours._engine  # noqa: SLF001 - vLLM's own
    url, serving = serve(engine, folder, name)
    print(json.dumps({**ours.describe(), "url": url}), flush=True)
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
    serving.cancel()
    await asyncio.wait((serving,))
    ours.close()


if __name__ == "__main__":
    uvloop.run(main())  # as vLLM itself runs its server
