"""Statuses, why things end, and the one transition table.

API calls write a record's ``target``; only the steward writes its ``status``, and only through :func:`transition`,
whose result (record and event together) the store applies in one transaction.

Lease
    WAITING   queued; holds nothing.
    STARTING  slices are placed and hold capacity; lease nodes are being started.
    ACTIVE    every lease node is up; metered from here.
    ENDING    lease nodes are being drained and killed; capacity is still held.
    ENDED     nothing is left on any host; the ledger has its entry.
    A preempted lease goes from ENDING back to WAITING, with its ledger entry: its next segment is still to come.
Job (Ray's own words, with one before and one between)
    PENDING   waits for its lease, or for Ray to start the driver.
    RUNNING   the driver runs; a preempted job goes back to PENDING.
    STOPPED, SUCCEEDED, FAILED  are final.
Service
    LIVE      its name is taken.
    DELETED   gone for good, with all of its revisions.
Revision (of a service)
    PENDING   waits for a lease.
    STARTING  Serve has been told.
    RUNNING   answers requests.
    IDLE      asleep: nothing of it runs until the next request.
    FAILED    Serve reports that the application cannot run.
    ENDED     gone for good.
All of them are stored and are the recovery points; nothing else needs to survive a crash.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, Protocol, TypeVar

from cloudfarm.errors import TransitionError


class LeaseStatus(StrEnum):
    """See the module's docstring."""

    WAITING = "WAITING"
    STARTING = "STARTING"
    ACTIVE = "ACTIVE"
    ENDING = "ENDING"
    ENDED = "ENDED"

    @property
    def holds_capacity(self) -> bool:
        """Whether GPUs, CPUs and memory are taken by a lease in this status."""
        return self in (LeaseStatus.STARTING, LeaseStatus.ACTIVE, LeaseStatus.ENDING)

    @property
    def is_terminal(self) -> bool:
        """Whether no status follows."""
        return self is LeaseStatus.ENDED


class JobStatus(StrEnum):
    """Ray's job statuses."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_terminal(self) -> bool:
        """Whether no status follows."""
        return self in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)


class ServiceStatus(StrEnum):
    """See the module's docstring."""

    LIVE = "LIVE"
    DELETED = "DELETED"

    @property
    def is_terminal(self) -> bool:
        """Whether no status follows."""
        return self is ServiceStatus.DELETED


class RevisionStatus(StrEnum):
    """See the module's docstring."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    IDLE = "IDLE"
    FAILED = "FAILED"
    ENDED = "ENDED"

    @property
    def is_terminal(self) -> bool:
        """Whether no status follows."""
        return self is RevisionStatus.ENDED


class Target(StrEnum):
    """What the owner wants of a record: that it runs, or that it ends."""

    RUN = "RUN"
    END = "END"


class EndReason(StrEnum):
    """Why a lease ended, apart from that it did."""

    RELEASED = "released"
    EXPIRED = "expired"
    JOB_FINISHED = "job_finished"
    SERVICE_DELETED = "service_deleted"
    SCALED_DOWN = "scaled_down"
    """Its service runs on without it."""
    START_FAILED = "start_failed"
    NODE_LOST = "node_lost"
    CANCELLED = "cancelled"
    FARM_STOPPED = "farm_stopped"
    PREEMPTED = "preempted"
    """Not an end: it waits anew."""


TRANSITIONS: Mapping[type[Enum], Mapping[Any, frozenset[Any]]] = {
    LeaseStatus: {
        LeaseStatus.WAITING: frozenset({LeaseStatus.STARTING, LeaseStatus.ENDED}),
        LeaseStatus.STARTING: frozenset({LeaseStatus.ACTIVE, LeaseStatus.ENDING}),
        LeaseStatus.ACTIVE: frozenset({LeaseStatus.ENDING}),
        LeaseStatus.ENDING: frozenset({LeaseStatus.ENDED, LeaseStatus.WAITING}),
        LeaseStatus.ENDED: frozenset(),
    },
    JobStatus: {
        JobStatus.PENDING: frozenset(
            {JobStatus.RUNNING, JobStatus.STOPPED, JobStatus.FAILED, JobStatus.SUCCEEDED}
        ),
        JobStatus.RUNNING: frozenset(
            {JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.PENDING}
        ),
        JobStatus.STOPPED: frozenset(),
        JobStatus.SUCCEEDED: frozenset(),
        JobStatus.FAILED: frozenset(),
    },
    ServiceStatus: {
        ServiceStatus.LIVE: frozenset({ServiceStatus.DELETED}),
        ServiceStatus.DELETED: frozenset(),
    },
    RevisionStatus: {
        # What a revision does follows from what is seen of its leases and of Serve: it may be anything next.
        status: frozenset() if status.is_terminal else frozenset(RevisionStatus) - {status}
        for status in RevisionStatus
    },
}


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to something, who did it and why. Events are only ever added."""

    at_ms: int
    kind: str
    """``lease.active``, ``job.failed``, ``watch.stopped`` and so on."""
    subject: str
    """Id of the lease, job, service or host."""
    tenant: str | None
    actor: str
    """``steward``, ``user:<name>`` or ``operator:<name>``."""
    message: str = ""


class Record(Protocol):
    """What :func:`transition` needs of a lease, a job, a service or a revision."""

    @property
    def id(self) -> str:
        """The record's id."""

    @property
    def tenant(self) -> str:
        """The owner."""

    @property
    def status(self) -> Any:
        """A member of one of the status enums."""

    @property
    def message(self) -> str:
        """Why it is where it is, for its owner."""


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Transition:
    """A changed record with the event that tells of it: stored together or not at all."""

    record: Any
    event: Event


def transition(
    record: R, to: Any, *, now_ms: int, actor: str = "steward", message: str = "", **changes: Any
) -> Transition:
    """Move a record to another status.

    Args:
        record: a frozen dataclass with ``id``, ``tenant`` and ``status``.
        to: the new status, of the same enum.
        now_ms: the time of the event.
        actor: who does it.
        message: why, in one sentence; the record shows it until its next status.
        **changes: further fields to set on the record in the same step.

    Raises:
        TransitionError: if the table has no such step.
    """
    table = TRANSITIONS[type(record.status)]
    if to not in table[record.status]:
        raise TransitionError(f"{record.id}: no step from {record.status} to {to}")
    kind = f"{type(record).__name__.lower()}.{str(to).lower()}"
    event = Event(
        at_ms=now_ms, kind=kind, subject=record.id, tenant=record.tenant, actor=actor, message=message
    )
    return Transition(record=replace(record, status=to, message=message, **changes), event=event)  # type: ignore[type-var]
