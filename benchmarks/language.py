"""A language model behind the gateway beside the same engine by itself, and the gateway's memory."""

import asyncio
import random
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from operator import sub, truediv
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks import small_model
from benchmarks.figures import Row, Series, median_interval
from benchmarks.running_farm import DEADLINE_S, BenchFarm, BenchmarkError, until
from benchmarks.serving import TITLES
from benchmarks.sides import Bare, Endpoint, prompts
from cloudfarm.raylayer.launcher import procs
from cloudfarm.training.default_models import SMOLLM2, prepare

SERVICE = "chat"
SHAPE = {"gpus": "0.5", "cpus": 2, "memory": "6GiB"}
BATCHES = (1, 4, 16)
WORDS_A_PROMPT, TOKENS = 12, 24
ROUNDS = 6
"""On each start of the engines."""
STREAMS = 1000

FARM, SERVER, BARE = "the farm", "vLLM's own server", "vLLM in its process"

Say = Callable[[str], None]
Side = Endpoint | Bare
Sides = Mapping[str, Side]
Figures = Mapping[str, list[float]]
"""What each side gave, round by round."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the sides are asked in turns: each round, on each start, so many times."""

    name: str
    unit: str
    rounds: int
    ask: Callable[[Side, random.Random], float]
    compare: Callable[[float, float], float]
    """The farm's figure with another's of the same round."""
    compared: str
    lower_is_better: bool = False


def measure(farm: BenchFarm, turns: int, say: Say) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of tokens a second and first tokens, and the front door's memory beside them.

    The first token is asked of a model for which the engine takes milliseconds: what the way to it adds would drown in
    the unevenness of 100 ms. Tokens a second of that one, too, for what the gateway does at a GPU's speed.
    """
    publish(farm, "python -m cloudfarm.training.default_models smollm2", say)
    publish(farm, f"python {shlex.quote(small_model.__file__)}", say)
    small = small_model.make(farm.base)
    questions = [tokens_a_second(batch, ROUNDS) for batch in BATCHES]
    rows = by_starts(farm, SMOLLM2.name, prepare(SMOLLM2), questions, starts=turns + 1, say=say)
    questions = [first_token(50), tokens_a_second(BATCHES[-1], ROUNDS, tokens=4 * TOKENS)]
    rows += by_starts(farm, small_model.NAME, small, questions, starts=turns + 1, say=say)
    with service(farm, SMOLLM2.name), closing(Endpoint.of_farm(farm, SERVICE)) as ours:
        farm.wait(f"/v1/services/{SERVICE}", "RUNNING")
        memory = asyncio.run(streams(farm, ours, say))
    return rows, {"front_door_memory_mb": memory}


def tokens_a_second(batch: int, rounds: int, tokens: int = TOKENS) -> Question:
    """Return the question how many tokens a second come to so many requests at once."""

    def ask(side: Side, rng: random.Random) -> float:
        found = side.answers(prompts(rng, batch, WORDS_A_PROMPT), tokens)
        assert found["tokens"] == batch * tokens
        return float(found["tokens"] / found["seconds"])

    return Question(f"batch {batch}: tokens a second", "1/s", rounds, ask, truediv, "ratio")


def first_token(rounds: int) -> Question:
    """Return the question when the first token of a single request comes."""

    def ask(side: Side, rng: random.Random) -> float:
        return float(side.answers(prompts(rng, 1, WORDS_A_PROMPT), 1)["first_ms"][0])

    return Question("first token", "ms", rounds, ask, sub, "added, ms", lower_is_better=True)


def by_starts(
    farm: BenchFarm, model: str, folder: Path, questions: Sequence[Question], *, starts: int, say: Say
) -> list[Row]:
    """Ask all sides on several starts of each engine; returns a row for each question and other side.

    One start's engine is faster than the next's by a percent or two, for as long as it runs, so what is compared are
    the starts: each gives the median of its rounds' comparisons.
    """
    found: dict[str, list[Figures]] = {question.name: [] for question in questions}
    for number in range(starts):
        with beside(farm, model, folder, bare_first=bool(number % 2)) as sides:
            for question in questions:
                figures = in_turns(sides, question)
                found[question.name].append(figures)
                told = ", ".join(f"{side} {median(each):.1f}" for side, each in figures.items())
                say(f"  {model}, start {number + 1}, {question.name}: {told}")
    return [row(model, each, found[each.name], other) for each in questions for other in (SERVER, BARE)]


@contextmanager
def beside(farm: BenchFarm, model: str, folder: Path, *, bare_first: bool) -> Iterator[Sides]:
    """Serve a model on the farm, and by a bare engine in the two ways to that."""
    with ExitStack() as stack:
        bare = stack.enter_context(closing(Bare(str(folder), SERVICE))) if bare_first else None
        stack.enter_context(service(farm, model))
        farm.wait(f"/v1/services/{SERVICE}", "RUNNING")
        ours = stack.enter_context(closing(Endpoint.of_farm(farm, SERVICE)))
        bare = bare or stack.enter_context(closing(Bare(str(folder), SERVICE)))
        server = stack.enter_context(closing(Endpoint(bare.about["url"], SERVICE)))
        yield {FARM: ours, SERVER: server, BARE: bare}


def in_turns(sides: Sides, question: Question) -> Figures:
    """Ask all sides in each round, every other round in the opposite order; the first one finds cold caches.

    A round is short: the machine's speed changes from second to second, and what is compared are the sides of a round.
    """
    rng = random.Random(question.rounds)  # noqa: S311 - words to ask about
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(question.rounds + 1):
        for name in names if number % 2 else reversed(names):
            value = question.ask(sides[name], rng)
            if number:
                found[name].append(value)
    return found


def row(model: str, question: Question, starts: Sequence[Figures], other: str) -> Row:
    """Return the row of the farm beside another side, both by starts."""
    compared = [median(map(question.compare, figures[FARM], figures[other])) for figures in starts]
    low, high = median_interval(compared)
    each = ", ".join(f"{value:.3g}" for value in compared)
    return Row(
        6,
        f"{model}, {question.name}, v {other}",
        question.unit,
        Series.of([median(figures[FARM]) for figures in starts]),
        Series.of([median(figures[other]) for figures in starts]),
        question.lower_is_better,
        f"{question.compared}, median of {len(starts)} starts: {median(compared):.3g} "
        f"(95 %: {low:.3g} to {high:.3g}; {each})",
    )


async def streams(farm: BenchFarm, ours: Endpoint, say: Say) -> dict[str, float]:
    """Return the front door's memory at rest and with many streams open, in MB: its own, and its part of files."""
    pid = next(pid for pid in farm.every_pid() if procs.title(pid).startswith(TITLES["front door"]))
    before = most = memory_mb(pid)
    held, enough = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(ours.hold(STREAMS, held, enough))
    await held.wait()
    for _ in range(30):
        await asyncio.sleep(1)
        open_now = sum(
            connection.status == psutil.CONN_ESTABLISHED
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.laddr.port == farm.local.settings.port
        )
        if open_now >= STREAMS:
            most = max(most, memory_mb(pid))
    enough.set()
    await holding
    if most == before:
        raise BenchmarkError(f"there were never {STREAMS} streams open at once")
    a_stream_kb = round(1000 * (most[0] - before[0]) / STREAMS, 1)
    say(f"  front door, own memory and files': {before} MB at rest, {most} MB with {STREAMS} streams")
    return {
        "at rest": before[0],
        "at rest, files": before[1],
        f"with {STREAMS} open streams": most[0],
        f"with {STREAMS} open streams, files": most[1],
        "a stream, kB": a_stream_kb,
    }


def memory_mb(pid: int) -> tuple[float, float]:
    """Return a process's part (PSS) of the memory that is nobody's file, and of files', in MB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kb = {line[0].rstrip(":"): int(line[1]) for line in lines}
    return round(kb["Pss_Anon"] * 1024 / 1e6, 1), round((kb["Pss_File"] + kb["Pss_Shmem"]) * 1024 / 1e6, 1)


def publish(
    farm: BenchFarm, entrypoint: str, say: Say, *, gpus: str = "0", deadline_s: float = DEADLINE_S
) -> None:
    """Let the tenant publish a model as it would: by a job."""
    say(f"publishing: {entrypoint}")
    asked = {"entrypoint": entrypoint, "metadata": {"gpus": gpus, "memory": "5GiB"}}
    job = farm.tenant.post("/api/jobs/", asked)["submission_id"]

    def ended() -> bool:
        found = farm.tenant.get(f"/api/jobs/{job}")
        if found["status"] in ("FAILED", "STOPPED"):
            raise BenchmarkError(found["message"])
        return bool(found["status"] == "SUCCEEDED")

    until(ended, "the model", deadline_s)


@contextmanager
def service(farm: BenchFarm, model: str, name: str = SERVICE, **scaling: Any) -> Iterator[None]:
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
