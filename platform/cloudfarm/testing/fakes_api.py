"""What the front door talks to besides the store, with knobs: logs, services, the steward's bell."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudfarm.domain.workload import Job
from cloudfarm.errors import InvalidInputError, UnavailableError


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
    """Implements :class:`cloudfarm.ports.Inference`: answers with the payload it got."""

    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    down: bool = False
    refusal: str = ""
    """What a service says of a payload that it refuses."""

    async def call(self, app_name: str, payload: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Return the payload, as the knobs have it."""
        assert timeout_s > 0
        if self.down:
            raise UnavailableError("no replica answers just now")
        if self.refusal:
            raise InvalidInputError(self.refusal)
        self.calls.append((app_name, payload))
        return {"app": app_name, "echo": dict(payload)}


@dataclass(slots=True)
class FakeNudge:
    """Implements :class:`cloudfarm.ports.Nudge`: counts."""

    count: int = 0

    def nudge(self) -> None:
        """Count."""
        self.count += 1
