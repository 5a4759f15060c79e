"""A language model behind the gateway beside the same engine by itself, from nothing to the first token, and memory."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from statistics import median
from typing import Any

import aiohttp
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

FARM, SERVER, BARE = "the farm", "vLLM's own server", "vLLM in its process"

Say = Callable[[str], None]


def prompts(rng: random.Random, count: int, words: int = PROMPT_WORDS) -> list[str]:
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

    def __init__(self, folder: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_vllm", folder, str(CONTEXT_TOKENS), SERVICE],
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


Sides = Mapping[str, Endpoint | Bare]


def measure(farm: BenchFarm, turns: int, say: Say) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of tokens a second and first tokens, and the front door's memory beside them."""
    publish(farm, say)
    rows: list[Row] = []
    with service(farm, SERVICE):
        farm.wait(f"/v1/services/{SERVICE}", "RUNNING")
        say("a bare engine beside it")
        with (
            closing(Endpoint.of_farm(farm, SERVICE)) as ours,
            closing(Bare(str(prepare(SMOLLM2)))) as bare,
            closing(Endpoint(bare.about["url"], SERVICE)) as server,
        ):
            sides: Sides = {FARM: ours, SERVER: server, BARE: bare}
            for batch in BATCHES:
                rows += tokens_a_second(sides, batch, turns, say)
            rows += first_tokens(sides, turns, say)
        with closing(Endpoint.of_farm(farm, SERVICE)) as ours:
            memory = asyncio.run(streams(farm, ours, say))
    return rows, {"engine": bare.about, "front_door_memory_mb": memory}


def tokens_a_second(sides: Sides, batch: int, turns: int, say: Say) -> list[Row]:
    """Return the rows of tokens a second with so many requests at once, in turns."""
    rng = random.Random(batch)  # noqa: S311 - words to ask about
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            found = side.answers(prompts(rng, batch), TOKENS)
            assert found["tokens"] == batch * TOKENS
            if turn:  # the first finds cold caches
                rates[name].append(found["tokens"] / found["seconds"])
        if turn:
            say(f"  batch {batch}, turn {turn}: {told(rates)} tokens/s")
    ours = Series.of(rates[FARM])
    return [
        Row(6, f"batch {batch}: tokens a second, v {name}", "1/s", ours, Series.of(rates[name]), False)
        for name in (SERVER, BARE)
    ]


def first_tokens(sides: Sides, turns: int, say: Say) -> list[Row]:
    """Return the rows of the time to the first token of single requests, by turns, and of what is added to it."""
    rng = random.Random(0)  # noqa: S311 - words to ask about
    p50_ms: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        firsts_ms: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(FIRSTS):
            for name, side in sides.items():
                firsts_ms[name] += side.answers(prompts(rng, 1, FIRST_WORDS), 1)["first_ms"]
        for name, found_ms in firsts_ms.items():
            p50_ms[name].append(median(found_ms))
        say(f"  first token, p50 of {FIRSTS}: {told(p50_ms)} ms")
    rows = []
    for name in (SERVER, BARE):
        added = [ours - theirs for ours, theirs in zip(p50_ms[FARM], p50_ms[name], strict=True)]
        rows += [
            Row(6, f"first token, p50, v {name}", "ms", Series.of(p50_ms[FARM]), Series.of(p50_ms[name])),
            Row(6, f"added to the first token, v {name}", "ms", Series.of(added)),
        ]
    return rows


def told(figures: Mapping[str, Sequence[float]]) -> str:
    """Return the last figure of each side."""
    return ", ".join(f"{name} {found[-1]:.1f}" for name, found in figures.items())


async def streams(farm: BenchFarm, ours: Endpoint, say: Say) -> dict[str, float]:
    """Return the front door's memory at rest and with many streams open, in MB."""
    pid = next(pid for pid in farm.every_pid() if procs.title(pid).startswith(TITLES["front door"]))

    def memory_mb() -> float:
        return round(psutil.Process(pid).memory_full_info().pss / 1e6, 1)

    before = memory_mb()
    held, enough = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(ours.hold(STREAMS, held, enough))
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
    with (
        service(farm, SLEEPER, min_replicas=0, max_replicas=1, idle_minutes=IDLE_MINUTES),
        closing(Endpoint.of_farm(farm, SLEEPER)) as ours,
    ):
        for turn in range(turns):
            sleep(farm)
            began_s = time.time()
            found = ours.answers(["Once upon a time"], 1)
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
