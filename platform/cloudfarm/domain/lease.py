"""Leases and their slices."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from cloudfarm.domain.quantities import Shape
from cloudfarm.domain.status import EndReason, LeaseStatus, Target

MINUTE_MS = 60_000


class LeaseKind(StrEnum):
    """What a lease is held for: by hand, by one job, or by a service."""

    MANUAL = "manual"
    JOB = "job"
    SERVICE = "service"


class Grade(StrEnum):
    """What really holds a slice to its share of a GPU, strongest first."""

    MIG = "mig"
    DRIVER = "driver"
    MPS = "mps"
    ALLOCATOR = "allocator"
    SIMULATED = "simulated"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for: the shape and what each slice gets beside its GPU.

    ``distinct_gpus`` keeps slices of one lease off the same physical GPU: NCCL refuses two ranks on one device.
    """

    shape: Shape
    cpus: int
    """CPUs of one slice."""
    memory_bytes: int
    """Memory of one slice."""
    duration_ms: int
    gpu_model: str | None = None
    distinct_gpus: bool = True
    priority: int = 0
    """Among the waiting leases of one project the highest goes first."""
    not_before_ms: int | None = None
    """A reservation: room is kept for it from then on, and it starts no sooner."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One piece of a lease on one host; its lease node has the same ``name``."""

    lease_id: str
    index: int
    host: str
    gpu_indices: tuple[int, ...]
    milli_gpus: int
    """Milli-GPUs on all ``gpu_indices`` together."""
    cpus: int
    memory_bytes: int
    gpu_memory_bytes: int = 0
    """What it may use of the memory of all its GPUs together, once it is granted."""
    node_id: str | None = None
    """Ray's id of the lease node, once it is up."""
    isolation: str = ""
    """What the host could enforce: namespaces, cgroup."""

    @property
    def name(self) -> str:
        """Name of the slice and of its lease node, unique in the farm."""
        return f"{self.lease_id}-{self.index}"


@dataclass(frozen=True, slots=True)
class ExpectedStart:
    """When a waiting lease will probably start: between the earliest and the latest in about 8 of 10 cases."""

    basis: str
    """What the forecast stands on: see :mod:`cloudfarm.scheduler.forecast`."""
    earliest_ms: int
    expected_ms: int
    latest_ms: int

    def __str__(self) -> str:
        """Say it to a person: in UTC, to the minute, the interval rounded outwards; a date where it changes."""
        minutes = (
            self.earliest_ms // MINUTE_MS,
            (self.expected_ms + MINUTE_MS // 2) // MINUTE_MS,
            -(-self.latest_ms // MINUTE_MS),
        )
        first, about, last = (datetime.fromtimestamp(60 * each, UTC) for each in minutes)
        bounds = (
            f"{each:%H:%M}" if each.date() == about.date() else f"{each:%Y-%m-%d %H:%M}"
            for each in (first, last)
        )
        return f"about {about:%Y-%m-%d %H:%M} UTC ({' to '.join(bounds)})"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to some slices until a time; the unit of queueing, isolation, metering and money."""

    id: str
    tenant: str
    owner: str
    """Name of the user who asked."""
    name: str
    kind: LeaseKind
    ask: Ask
    created_ms: int
    status: LeaseStatus = LeaseStatus.WAITING
    target: Target = Target.RUN
    slices: tuple[Slice, ...] = ()
    grade: Grade | None = None
    granted_ms: int | None = None
    started_ms: int | None = None
    """When the last lease node came up; metering starts here."""
    ends_ms: int | None = None
    """When the time limit ends it."""
    noticed_ms: int | None = None
    """When the owner was told that the end is near."""
    ending_ms: int | None = None
    ended_ms: int | None = None
    reason: EndReason | None = None
    message: str = ""
    """Why it waits, or how it ended, in one sentence."""
    project: str = ""
    """Whose quota within the tenant's it counts against."""
    revision_id: str | None = None
    """The service's revision whose replica it is for."""
    preempted_ms: int | None = None
    """When it has to be gone, since somebody takes back what it borrows; None if nobody does."""
    room: tuple[Slice, ...] = ()
    """While it waits, where others have been told to make room for it; while it is moved, where it goes on. It holds
    nothing of that yet."""
    expected_start: ExpectedStart | None = None
    """While it waits, as far as it can be foreseen."""
    segment: int = 0
    version: int = 0
    """Counts stored changes; an update on an older version is refused as stale."""

    @property
    def milli_gpus(self) -> int:
        """Milli-GPUs of the whole lease."""
        return self.ask.shape.total_milli_gpus

    def kept_until_ms(self, at_ms: int, saved_ms: int) -> int:
        """Return until when what it has done by a moment is of use if it ends then.

        That is its jobs' last save, or its start if they saved nothing. What a service has answered stays answered.
        """
        if self.started_ms is None or self.kind is LeaseKind.SERVICE:
            return at_ms
        return min(at_ms, max(self.started_ms, saved_ms))

    @property
    def gone_by_ms(self) -> int | None:
        """When it has to be gone, since it was told to; None if it was not."""
        if self.preempted_ms is not None or self.noticed_ms is None:
            return self.preempted_ms
        return self.ends_ms

    @property
    def told(self) -> str:
        """What its owner is told: the message, and while it waits when it will probably start."""
        if self.expected_start is None:
            return self.message
        return f"{self.message}; expected to start {self.expected_start}"
