"""What the front door talks to besides the store, with knobs: logs, services, the steward's bell."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudfarm.domain.generation import Embeddings, Generation, Piece, Sampling, Text, ToEmbed
from cloudfarm.domain.load import LoadReport
from cloudfarm.domain.workload import Job
from cloudfarm.errors import (
    InvalidInputError,
    NoReplicaError,
    ReplicaLostError,
    TooManyError,
    UnavailableError,
)
from cloudfarm.usecases.limits import Admission
from cloudfarm.usecases.metering import Meter
from cloudfarm.usecases.routes import Called, Route
from cloudfarm.usecases.use import Use


def _name(job: Job) -> str:
    return f"{job.tenant}.{job.submission_id}" + (f".{job.attempt}" if job.attempt else "")


@dataclass(slots=True)
class FakeLiveLogs:
    """Implements :class:`cloudfarm.ports.LiveLogs`: a job's log is what the test has written so far.

    Tests name a job ``tenant.submission_id``, and a further attempt of it ``tenant.submission_id.1``.
    """

    cut_after: int | None = None
    """Cut a tail off after so many pieces."""
    down: bool = False
    """Refuse everything."""
    open_tails: int = 0
    """How many tails are being read now."""
    tails: int = 0
    """How many were ever begun."""
    _pieces: dict[str, list[str]] = field(default_factory=dict)
    _closed: set[str] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def tail(self, job: Job) -> AsyncIterator[str]:
        """Yield what is written until the test closes the log."""
        self.open_tails += 1
        self.tails += 1
        try:
            at = 0
            while True:
                self._refuse(job)
                pieces = self._pieces.get(_name(job), [])
                while at < len(pieces):
                    if self.cut_after is not None and at >= self.cut_after:
                        raise UnavailableError(f"the log of {job.submission_id} was cut off")
                    at += 1
                    yield pieces[at - 1]
                if _name(job) in self._closed:
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            self.open_tails -= 1

    async def read(self, job: Job) -> str:
        """Return what is written."""
        self._refuse(job)
        return "".join(self._pieces.get(_name(job), []))

    def _refuse(self, job: Job) -> None:
        if self.down:
            raise UnavailableError(f"the log of {job.submission_id} cannot be reached")

    # === Test methods ===

    def write(self, name: str, *pieces: str) -> None:
        """Let a job print."""
        self._pieces.setdefault(name, []).extend(pieces)
        self._changed.set()

    def close(self, name: str) -> None:
        """Let Ray close a job's log."""
        self._closed.add(name)
        self._changed.set()

    def break_off(self) -> None:
        """Cut every tail off, as when a lease node dies."""
        self.down = True
        self._changed.set()


@dataclass(slots=True)
class FakeInference:
    """Implements :class:`cloudfarm.ports.Inference`: answers with what it got.

    A language model says the words of its prompt, one a piece and a token, and then one more token for the end.
    """

    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    generations: list[tuple[str, Generation]] = field(default_factory=list)
    embedded: list[tuple[str, ToEmbed]] = field(default_factory=list)
    down: bool = False
    gone: int = 0
    """Of so many requests more Serve says that it has no replica that could take them."""
    lost: int = 0
    """So many requests more are lost with the replica that has got them."""
    refusal: str = ""
    """What a service says of a payload that it refuses."""
    refused: tuple[str, str] | None = None
    """The parameter that it names, and OpenAI's code."""
    break_after: int | None = None
    """Let the replica die after so many pieces of an answer."""
    stall_after: int | None = None
    """Let it say nothing more after so many pieces."""
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer has come to that."""
    given: list[Piece] = field(default_factory=list)
    """Every piece that was taken from it."""
    ahead: int = 0
    """How many pieces more it makes than are taken."""
    late: int = 0
    """How many it makes more before it sees that nobody reads them any more; they come when the reader has left."""
    made: list[Piece] = field(default_factory=list)
    open: int = 0
    """Answers that are being made now."""

    async def call(self, app_name: str, payload: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Return the payload, as the knobs have it."""
        assert timeout_s > 0
        self._check()
        self.calls.append((app_name, payload))
        return {"app": app_name, "echo": dict(payload)}

    async def generate(
        self, app_name: str, request: Generation, made: Callable[[Piece], None]
    ) -> AsyncGenerator[Piece]:
        """Yield the prompt's words, as the knobs have it."""
        self._check()
        self.generations.append((app_name, request))
        self.open += 1
        pieces = list(_pieces(request))
        told = 0
        try:
            for count, piece in enumerate(pieces):
                if count == self.break_after:
                    raise ReplicaLostError("the replica has died")
                if count == self.stall_after:
                    self.stalled.set()
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
                for each in pieces[told : count + 1 + self.ahead]:
                    self.made.append(each)
                    made(each)
                told = max(told, min(len(pieces), count + 1 + self.ahead))
                self.given.append(piece)
                yield piece
        finally:
            try:
                for each in pieces[told : told + self.late]:
                    await asyncio.sleep(0)
                    self.made.append(each)
                    made(each)
            finally:
                self.open -= 1

    async def embed(self, app_name: str, request: ToEmbed, made: Callable[[Piece], None]) -> Embeddings:
        """Return for each text its length and a quarter."""
        self._check()
        self.embedded.append((app_name, request))
        tokens = Piece(prompt_tokens=sum(len(_words(text)) for text in request.texts))
        self.made.append(tokens)
        made(tokens)
        if self.stall_after is not None:
            self.stalled.set()
            self.open += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.open -= 1
        return Embeddings(tuple((float(len(text)), 0.25) for text in request.texts), tokens.prompt_tokens)

    def close(self) -> None:
        """Nothing is open."""

    def _check(self) -> None:
        if self.gone:
            self.gone -= 1
            raise NoReplicaError
        if self.lost:
            self.lost -= 1
            raise ReplicaLostError
        if self.down:
            raise UnavailableError("no replica answers just now")
        if self.refusal:
            param, code = self.refused or (None, "invalid_value")
            data = {"param": param, "openai_code": code} if self.refused else {}
            raise InvalidInputError(self.refusal, **data)


def _words(text: Text) -> Sequence[str]:
    return text.split() if isinstance(text, str) else [str(token) for token in text]


def _pieces(request: Generation) -> Iterator[Piece]:
    """Yield what the fake model says."""
    sampling = request.sampling
    prompts = (request.messages[-1].content,) if request.messages else request.prompts
    for place, prompt in enumerate(prompts):
        yield from _choices(_words(prompt), sampling, place * sampling.choices)


def _choices(words: Sequence[str], sampling: Sampling, first: int) -> Iterator[Piece]:
    yield Piece(first, prompt_tokens=len(words))
    limit = len(words) + 1 if sampling.max_tokens is None else sampling.max_tokens
    for index in range(first, first + sampling.choices):
        for place, word in enumerate(words[:limit]):
            yield Piece(index, (" " if place else "") + word, tokens=1)
        if limit > len(words):
            yield Piece(index, tokens=1, finish_reason="stop")
        else:
            yield Piece(index, finish_reason="length")


@dataclass(slots=True)
class RecordingMeter(Meter):
    """The meter itself, which remembers every use and refuses on demand."""

    uses: list[tuple[Route, Use]] = field(default_factory=list)
    limit: TooManyError | None = None

    def admit(self, called: Called, most_tokens: int = 0) -> Admission:
        """Let a request in, unless a limit is reached."""
        if self.limit is not None:
            raise self.limit
        return Meter.admit(self, called, most_tokens)

    def begin(self, route: Route, admission: Admission) -> Use:
        """Begin a request."""
        use = Meter.begin(self, route, admission)
        self.uses.append((route, use))
        return use


@dataclass(slots=True)
class FakeNudge:
    """Implements :class:`cloudfarm.ports.Nudge`: counts, and keeps what was reported last."""

    count: int = 0
    reports: list[LoadReport] = field(default_factory=list)

    def nudge(self) -> None:
        """Count."""
        self.count += 1

    def report(self, report: LoadReport) -> None:
        """Keep it."""
        self.reports.append(report)
