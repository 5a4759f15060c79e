"""A language model behind the gateway beside the same engine by itself, from nothing to the first token, and memory."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from statistics import median
from typing import Any

import httpx
import psutil

from benchmarks.figures import Row, Series
from benchmarks.running_farm import BenchFarm, BenchmarkError, clean_env, until
from benchmarks.serving import TITLES
from cloudfarm.raylayer.launcher import procs
from cloudfarm.training.default_models import SMOLLM2, prepare

SERVICE, SLEEPER = "chat", "sleeper"
SHAPE = {"gpus": "0.5", "cpus": 2, "memory": "6GiB"}
BATCHES = (1, 4, 16)
PROMPT_WORDS, TOKENS = 40, 48
FIRSTS, FIRST_WORDS = 40, 4
"""Requests a turn for the time to the first token, and words of a prompt: short, for the way to be seen beside it."""
CONTEXT_TOKENS = 8192
STREAMS = 1000
IDLE_MINUTES = 0.1
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

Say = Callable[[str], None]


def prompts(rng: random.Random, count: int, words: int = PROMPT_WORDS) -> list[str]:
    """Return prompts of one length that were never asked before, so that no cache of prefixes helps anybody."""
    return [f"{rng.random()} " + " ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


def client_of_many() -> httpx.AsyncClient:
    """Return a client of as many connections as there are requests."""
    return httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None), trust_env=False)


class Gateway:
    """The farm's front door, asked as any client of OpenAI's API would."""

    def __init__(self, farm: BenchFarm, service: str) -> None:
        self.service = service
        made = farm.tenant.post("/v1/keys", {"user": "bench", "services": [service]})
        self._url = f"{farm.local.url}/v1/completions"
        self._headers = {"Authorization": f"Bearer {made['secret']}"}

    async def answers(self, asked: Sequence[str], tokens: int) -> dict[str, Any]:
        """Stream the answers to several prompts at once; returns what :mod:`benchmarks.bare_vllm` prints."""
        async with client_of_many() as client:
            began_s = time.perf_counter()
            seen = await asyncio.gather(*(self.answer(client, prompt, tokens) for prompt in asked))
            seconds = time.perf_counter() - began_s
        return {
            "seconds": seconds,
            "tokens": sum(count for _, count in seen),
            "first_ms": [1000 * (first_s - began_s) for first_s, _ in seen],
        }

    async def answer(self, client: httpx.AsyncClient, prompt: str, tokens: int) -> tuple[float, int]:
        """Stream one answer; returns when its first token came, and how many came."""
        body = {
            "model": self.service, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        first_s, last = 0.0, ""
        async with client.stream("POST", self._url, json=body, headers=self._headers) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    first_s = first_s or time.perf_counter()
                    last = line
        return first_s, json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"]

    async def hold(self, count: int, held: asyncio.Event, enough: asyncio.Event) -> None:
        """Keep so many streams open until told."""
        begun = 0

        async def one(client: httpx.AsyncClient) -> None:
            nonlocal begun
            body = {
                "model": self.service,
                "prompt": "go",
                "max_tokens": 2000,
                "ignore_eos": True,
                "stream": True,
            }
            begun += 1
            if begun == count:
                held.set()
            try:
                async with (
                    asyncio.timeout(None),
                    client.stream("POST", self._url, json=body, headers=self._headers),
                ):
                    await enough.wait()
            except httpx.HTTPError:
                if not enough.is_set():
                    raise

        async with client_of_many() as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(count)]
            await enough.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Bare:
    """vLLM in a process of its own."""

    def __init__(self, folder: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_vllm", folder, str(CONTEXT_TOKENS)],
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


def measure(farm: BenchFarm, turns: int, say: Say) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of tokens a second and first tokens, and the front door's memory beside them."""
    publish(farm, say)
    rows: list[Row] = []
    with service(farm, SERVICE):
        farm.wait(f"/v1/services/{SERVICE}", "RUNNING")
        say("a bare engine beside it")
        bare = Bare(str(prepare(SMOLLM2)))
        try:
            gateway = Gateway(farm, SERVICE)
            rows += [side_by_side(gateway, bare, batch, turns, say) for batch in BATCHES]
            rows += asyncio.run(first_tokens(gateway, bare, turns, say))
        finally:
            bare.close()
        memory = asyncio.run(streams(farm, say))
    return rows, {"engine": bare.about, "front_door_memory_mb": memory}


def side_by_side(gateway: Gateway, bare: Bare, batch: int, turns: int, say: Say) -> Row:
    """Return the row of tokens a second with so many requests at once, in turns."""
    rng = random.Random(batch)  # noqa: S311 - words to ask about
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        seen = (
            asyncio.run(gateway.answers(prompts(rng, batch), TOKENS)),
            bare.answers(prompts(rng, batch), TOKENS),
        )
        if turn:  # the first finds cold caches
            for side, found in enumerate(seen):
                assert found["tokens"] == batch * TOKENS
                rates[side].append(found["tokens"] / found["seconds"])
            say(f"  batch {batch}, turn {turn}: {rates[0][-1]:.1f} v {rates[1][-1]:.1f} tokens/s")
    return Row(6, f"batch {batch}: tokens a second", "1/s", Series.of(rates[0]), Series.of(rates[1]), False)


async def first_tokens(gateway: Gateway, bare: Bare, turns: int, say: Say) -> list[Row]:
    """Return the rows of the time to the first token of single requests, one here and one there, and what is added."""
    rng = random.Random(0)  # noqa: S311 - words to ask about
    sides: tuple[list[float], list[float]] = ([], [])
    async with client_of_many() as client:
        for _ in range(turns):
            firsts: tuple[list[float], list[float]] = ([], [])
            for _ in range(FIRSTS):
                ours, theirs = prompts(rng, 2, FIRST_WORDS)
                began_s = time.perf_counter()
                first_s, _ = await gateway.answer(client, ours, 1)
                firsts[0].append(1000 * (first_s - began_s))
                firsts[1].extend(bare.answers([theirs], 1)["first_ms"])
            for side, found_ms in enumerate(firsts):
                sides[side].append(median(found_ms))
            say(f"  first token, p50 of {FIRSTS}: {sides[0][-1]:.1f} v {sides[1][-1]:.1f} ms")
    added = [ours_ms - theirs_ms for ours_ms, theirs_ms in zip(*sides, strict=True)]
    return [
        Row(6, "time to the first token, p50", "ms", Series.of(sides[0]), Series.of(sides[1])),
        Row(6, "added to the first token", "ms", Series.of(added)),
    ]


async def streams(farm: BenchFarm, say: Say) -> dict[str, float]:
    """Return the front door's memory at rest and with many streams open, in MB."""
    pid = next(pid for pid in farm.every_pid() if procs.title(pid).startswith(TITLES["front door"]))

    def memory_mb() -> float:
        return round(psutil.Process(pid).memory_full_info().pss / 1e6, 1)

    before = memory_mb()
    held, enough = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(Gateway(farm, SERVICE).hold(STREAMS, held, enough))
    await held.wait()
    most = before
    for _ in range(30):
        await asyncio.sleep(1)
        open_now = sum(
            connection.status == psutil.CONN_ESTABLISHED
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.laddr.port == farm.local.settings.port
        )
        if open_now >= STREAMS:
            most = max(most, memory_mb())
    enough.set()
    await holding
    if most == before:
        raise BenchmarkError(f"there were never {STREAMS} streams open at once")
    say(f"  front door: {before} MB at rest, {most} MB with {STREAMS} streams")
    return {
        "at rest": before,
        f"with {STREAMS} open streams": most,
        "a stream, kB": round(1000 * (most - before) / STREAMS, 1),
    }


def cold_starts(farm: BenchFarm, turns: int, say: Say) -> dict[str, Any]:
    """Return what a request to a sleeping service waits for, in seconds."""
    publish(farm, say)
    parts: dict[str, list[float]] = {}
    with service(farm, SLEEPER, min_replicas=0, max_replicas=1, idle_minutes=IDLE_MINUTES):
        gateway = Gateway(farm, SLEEPER)
        for turn in range(turns):
            sleep(farm)
            began_s = time.time()
            found = asyncio.run(gateway.answers(["Once upon a time"], 1))
            first_s = began_s + found["first_ms"][0] / 1000
            for part, seconds in split(farm, began_s, first_s).items():
                parts.setdefault(part, []).append(seconds)
            say(f"  cold start {turn + 1}: {first_s - began_s:.1f} s")
    return {part: Series.of(runs).to_json() for part, runs in parts.items()}


def sleep(farm: BenchFarm) -> None:
    """Wait until a service sleeps and holds no lease."""

    def asleep() -> bool:
        found = farm.tenant.get(f"/v1/services/{SLEEPER}")
        return found["status"] == "IDLE" and not found["leases"]

    until(asleep, f"{SLEEPER} to fall asleep")


def split(farm: BenchFarm, began_s: float, first_s: float) -> dict[str, float]:
    """Cut the time from a request to its first token where the farm noted what had come about."""
    (lease_id,) = farm.tenant.get(f"/v1/services/{SLEEPER}")["leases"]
    lease = farm.tenant.get(f"/v1/leases/{lease_id}")
    running = next(event for event in farm.tenant.get("/v1/events") if event["kind"] == "revision.running")
    moments = [
        began_s,
        *(datetime.fromisoformat(lease[moment]).timestamp() for moment in ("created", "granted", "started")),
        datetime.fromisoformat(running["at"]).timestamp(),
        first_s,
    ]
    names = ("request -> lease asked for", "lease", "node", "replica and model load", "to the first token")
    found = {name: moments[at + 1] - moments[at] for at, name in enumerate(names)}
    return {**found, "all": first_s - began_s}


def publish(farm: BenchFarm, say: Say) -> None:
    """Let the tenant publish the model as it would: by a job."""
    say("publishing SmolLM2-135M by a job")
    job = farm.tenant.post(
        "/api/jobs/",
        {
            "entrypoint": "python -m cloudfarm.training.default_models smollm2",
            "metadata": {"gpus": "0", "memory": "5GiB"},
        },
    )["submission_id"]

    def ended() -> bool:
        found = farm.tenant.get(f"/api/jobs/{job}")
        if found["status"] in ("FAILED", "STOPPED"):
            raise BenchmarkError(found["message"])
        return bool(found["status"] == "SUCCEEDED")

    until(ended, "the model")


@contextmanager
def service(farm: BenchFarm, name: str, **scaling: Any) -> Iterator[None]:
    """Keep the model answering under a name; ends it afterwards."""
    farm.tenant.post("/v1/services", {"model": SMOLLM2.name, "name": name, **SHAPE, **scaling})
    try:
        yield
    finally:
        farm.tenant.delete(f"/v1/services/{name}")
        until(
            lambda: name not in [each["name"] for each in farm.tenant.get("/v1/services")],
            f"{name} to be gone",
        )
