"""A language model behind the gateway beside the same engine by itself, and the gateway's memory."""

import asyncio
import random
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks import small_model
from benchmarks.figures import Row, Series, median_interval
from benchmarks.running_farm import BenchFarm, BenchmarkError, until
from benchmarks.serving import TITLES
from benchmarks.sides import Bare, Endpoint, prompts
from cloudfarm.raylayer.launcher import procs
from cloudfarm.training.default_models import SMOLLM2, prepare

SERVICE = "chat"
SHAPE = {"gpus": "0.5", "cpus": 2, "memory": "6GiB"}
BATCHES = (1, 4, 16)
WORDS_A_PROMPT, TOKENS = 12, 24
STREAMS = 1000

FARM, SERVER, BARE = "the farm", "vLLM's own server", "vLLM in its process"

Say = Callable[[str], None]
Sides = Mapping[str, Endpoint | Bare]


def measure(farm: BenchFarm, turns: int, say: Say) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of tokens a second and first tokens, and the front door's memory beside them.

    The first token is asked of a model for which the engine takes milliseconds: what the way to it adds would drown in
    the unevenness of 100 ms. Tokens a second of that one, too, for what the gateway does at a GPU's speed.
    """
    rows: list[Row] = []
    publish(farm, "python -m cloudfarm.training.default_models smollm2", say)
    with beside(farm, SMOLLM2.name, prepare(SMOLLM2), say) as sides:
        for batch in BATCHES:
            rows += tokens_a_second(sides, batch, TOKENS, 6 * turns, say=say)
        about = sides[BARE].about  # type: ignore[union-attr]
        with closing(Endpoint.of_farm(farm, SERVICE)) as ours:
            memory = asyncio.run(streams(farm, ours, say))
    publish(farm, f"python {shlex.quote(small_model.__file__)}", say)
    with beside(farm, small_model.NAME, small_model.make(farm.base), say) as sides:
        rows += first_tokens(sides, 50 * turns, say)
        rows += tokens_a_second(sides, BATCHES[-1], 4 * TOKENS, 4 * turns, say=say, model="small model, ")
    return rows, {"engine": about, "front_door_memory_mb": memory}


@contextmanager
def beside(farm: BenchFarm, model: str, folder: Path, say: Say) -> Iterator[Sides]:
    """Serve a model on the farm, and by a bare engine in the two ways to that."""
    with service(farm, model, SERVICE):
        farm.wait(f"/v1/services/{SERVICE}", "RUNNING")
        say(f"{model}: a bare engine beside the farm's")
        with (
            closing(Endpoint.of_farm(farm, SERVICE)) as ours,
            closing(Bare(str(folder), SERVICE)) as bare,
            closing(Endpoint(bare.about["url"], SERVICE)) as server,
        ):
            yield {FARM: ours, SERVER: server, BARE: bare}


def tokens_a_second(
    sides: Sides, batch: int, tokens: int, rounds: int, *, say: Say, model: str = ""
) -> list[Row]:
    """Return the rows of tokens a second with so many requests at once."""

    def ask(side: Endpoint | Bare, rng: random.Random) -> float:
        found = side.answers(prompts(rng, batch, WORDS_A_PROMPT), tokens)
        assert found["tokens"] == batch * tokens
        return float(found["tokens"] / found["seconds"])

    rates = in_turns(sides, rounds, ask)
    say(f"  {model}batch {batch}: {told(rates)} tokens/s")
    rows = []
    for name in (SERVER, BARE):
        ratios = [ours / theirs for ours, theirs in zip(rates[FARM], rates[name], strict=True)]
        rows.append(
            Row(
                6,
                f"{model}batch {batch}: tokens a second, v {name}",
                "1/s",
                Series.of(rates[FARM]),
                Series.of(rates[name]),
                False,
                f"median of {rounds} pairs' ratios {spread(ratios)}",
            )
        )
    return rows


def first_tokens(sides: Sides, rounds: int, say: Say) -> list[Row]:
    """Return the rows of the time to the first token of single requests, and of what is added to it."""

    def ask(side: Endpoint | Bare, rng: random.Random) -> float:
        return float(side.answers(prompts(rng, 1, WORDS_A_PROMPT), 1)["first_ms"][0])

    firsts_ms = in_turns(sides, rounds, ask)
    say(f"  first token: {told(firsts_ms)} ms")
    rows = []
    for name in (SERVER, BARE):
        added = [ours - theirs for ours, theirs in zip(firsts_ms[FARM], firsts_ms[name], strict=True)]
        rows.append(
            Row(
                6,
                f"small model: first token, v {name}",
                "ms",
                Series.of(firsts_ms[FARM]),
                Series.of(firsts_ms[name]),
                note=f"added, median of {rounds} pairs: {spread(added)} ms",
            )
        )
    return rows


def in_turns(
    sides: Sides, rounds: int, ask: Callable[[Endpoint | Bare, random.Random], float]
) -> dict[str, list[float]]:
    """Ask all sides in each round, every other round in the opposite order; the first two find cold caches.

    A round is short: the machine's speed changes from second to second, and what is compared are the pairs of a round.
    """
    rng = random.Random(rounds)  # noqa: S311 - words to ask about
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds + 2):
        for name in names if number % 2 else reversed(names):
            value = ask(sides[name], rng)
            if number > 1:
                found[name].append(value)
    return found


def spread(values: list[float]) -> str:
    """Return a median and its interval."""
    low, high = median_interval(values)
    return f"{median(values):.3g} (95 %: {low:.3g} to {high:.3g})"


def told(figures: Mapping[str, list[float]]) -> str:
    """Return the median of each side."""
    return ", ".join(f"{name} {median(found):.1f}" for name, found in figures.items())


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


def publish(farm: BenchFarm, entrypoint: str, say: Say) -> None:
    """Let the tenant publish a model as it would: by a job."""
    say(f"publishing: {entrypoint}")
    asked = {"entrypoint": entrypoint, "metadata": {"gpus": "0", "memory": "5GiB"}}
    job = farm.tenant.post("/api/jobs/", asked)["submission_id"]

    def ended() -> bool:
        found = farm.tenant.get(f"/api/jobs/{job}")
        if found["status"] in ("FAILED", "STOPPED"):
            raise BenchmarkError(found["message"])
        return bool(found["status"] == "SUCCEEDED")

    until(ended, "the model")


@contextmanager
def service(farm: BenchFarm, model: str, name: str, **scaling: Any) -> Iterator[None]:
    """Keep a model answering under a name; ends it afterwards."""
    farm.tenant.post("/v1/services", {"model": model, "name": name, **SHAPE, **scaling})
    try:
        yield
    finally:
        farm.tenant.delete(f"/v1/services/{name}")
        until(
            lambda: name not in [each["name"] for each in farm.tenant.get("/v1/services")],
            f"{name} to be gone",
        )
