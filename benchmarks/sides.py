"""Ways to a language model, asked alike: over HTTP, or in the engine's own process."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import aiohttp

from benchmarks.running_farm import BenchFarm, BenchmarkError, clean_env

CONTEXT_TOKENS = 8192
WORDS = (
    "wind",
    "solar",
    "turbine",
    "grid",
    "harvest",
    "harbour",
    "ferry",
    "steel",
    "lathe",
    "sensor",
    "orchard",
)


def prompts(rng: random.Random, count: int, words: int) -> list[str]:
    """Return prompts of one length that were never asked before, so that no cache of prefixes helps anybody."""
    return [f"{rng.random()} " + " ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


async def client_of_many() -> aiohttp.ClientSession:
    """Return a client of as many connections as there are requests."""
    # vLLM's server closes a connection after five seconds of silence.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600))


class Endpoint:
    """Something that speaks OpenAI's API, asked as any client would ask it."""

    def __init__(self, url: str, model: str, secret: str = "") -> None:
        self._url = f"{url}/v1/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._runner = asyncio.Runner()
        self._client = self._runner.run(client_of_many())

    @classmethod
    def of_farm(cls, farm: BenchFarm, service: str) -> "Endpoint":
        """Return the farm's front door, with a key of its own."""
        made = farm.tenant.post("/v1/keys", {"user": "bench", "services": [service]})
        return cls(farm.local.url, service, made["secret"])

    def answers(self, asked: Sequence[str], tokens: int) -> dict[str, Any]:
        """Stream the answers to several prompts at once; returns what :mod:`benchmarks.bare_vllm` prints."""
        return self._runner.run(self._answers(asked, tokens))

    def close(self) -> None:
        """Close its connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    async def _answers(self, asked: Sequence[str], tokens: int) -> dict[str, Any]:
        began_s = time.perf_counter()
        seen = await asyncio.gather(*(self._answer(prompt, tokens) for prompt in asked))
        seconds = time.perf_counter() - began_s
        return {
            "seconds": seconds,
            "tokens": sum(count for _, count in seen),
            "first_ms": [1000 * (first_s - began_s) for first_s, _ in seen],
        }

    async def _answer(self, prompt: str, tokens: int) -> tuple[float, int]:
        """Stream one answer; returns when its first token came, and how many came."""
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        first_s, last = 0.0, b""
        async with self._client.post(self._url, json=body, headers=self._headers) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    first_s = first_s or time.perf_counter()
                    last = line
        return first_s, json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"]

    async def hold(self, count: int, held: asyncio.Event, enough: asyncio.Event) -> None:
        """Keep so many streams open until told."""
        begun = 0

        async def one(client: aiohttp.ClientSession) -> None:
            nonlocal begun
            body = {
                "model": self._model,
                "prompt": "go",
                "max_tokens": 2000,
                "ignore_eos": True,
                "stream": True,
            }
            begun += 1
            if begun == count:
                held.set()
            try:
                async with client.post(self._url, json=body, headers=self._headers):
                    await enough.wait()
            except aiohttp.ClientError:
                if not enough.is_set():
                    raise

        async with await client_of_many() as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(count)]
            await enough.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Bare:
    """vLLM in a process of its own, asked in that process; its own server is at ``about["url"]``."""

    def __init__(self, folder: str, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_vllm", folder, str(CONTEXT_TOKENS), name],
            env=clean_env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.about = self._line()

    def answers(self, asked: Sequence[str], tokens: int) -> dict[str, Any]:
        """Have several prompts answered at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": asked, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise BenchmarkError("the bare engine has ended")
