"""The farm's own past, from its store, told anew as a workload and as what really became of it.

What a lease would have done elsewhere is known as far as it did it here:

- One that ended runs for as long as it ran, over all its segments, less what preemptions made it do twice.
- One that still runs or waits for its next segment, a service's above all, runs to its time limit.
- One that was given up while it waited is given up at the same moment, unless it has started by then. It then runs for
  the usual part of its limit: the median of its tenant's leases, or of the farm's if the tenant has too few. So does
  one that still waits.
- One that was let start and never ran (its start failed, or it was released meanwhile) is left out.

What ran or waited when the window begins is there at its beginning, in the order in which it was, with what is left
of its work. How often work was saved is not in the store.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.ledger import REFUND, LedgerEntry
from cloudfarm.domain.quota import Quota, quota_of
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import InvalidInputError
from cloudfarm.ports import Store
from cloudfarm.scheduler.history import Use
from cloudfarm.simulate.compare import Course, Window
from cloudfarm.simulate.workloads import CHECKPOINT_MS
from cloudfarm.simulate.world import Work

ENOUGH = 5
"""From so many leases of a tenant it is learned which part of its limit it usually runs."""


@dataclass(frozen=True, slots=True)
class Past:
    """What the store knows."""

    leases: Sequence[Lease]
    """All that there ever were, oldest first."""
    entries: Sequence[LedgerEntry]
    quotas: Sequence[Quota]
    tenants: Sequence[Tenant]
    hosts: Sequence[Host]
    seen_ms: int
    """Until when the steward has looked at the farm."""


@dataclass(frozen=True, slots=True)
class Told:
    """A past told anew."""

    window: Window
    works: Sequence[Work]
    """All that is to be replayed."""
    courses: Mapping[str, Course]
    """By lease: what really became of it. Those of what is replayed, and no others."""
    uses: Sequence[Use]
    """GPUs held before the window."""
    asks: Sequence[Ask]
    """What was asked for before the window, oldest first."""
    left_out: int
    """Leases that were let start and never ran."""
    assumed: int
    """Leases whose run time is assumed: they still ran or had never started."""

    @property
    def begin_ms(self) -> int:
        """When the first lease is asked for, or the window begins."""
        return min([self.window.from_ms, *(work.arrives_ms for work in self.works)])


@dataclass(frozen=True, slots=True)
class Segment:
    """From when to when a lease ran, and how much of that it had to do again."""

    start_ms: int
    end_ms: int
    lost_ms: int

    @property
    def useful_ms(self) -> int:
        """What it did for good."""
        return self.end_ms - self.start_ms - self.lost_ms


@dataclass(frozen=True, slots=True)
class Life:
    """A lease and all its segments."""

    lease: Lease
    segments: tuple[Segment, ...]
    over_ms: int | None
    """When it ended, for whatever reason; None if it has not."""

    @classmethod
    def of(cls, lease: Lease, entries: Iterable[LedgerEntry], seen_ms: int) -> "Life":
        """Return the life of a lease, from its entries in the ledger."""
        runs: list[LedgerEntry] = []
        lost_ms: dict[int, int] = {}
        for entry in sorted(entries, key=lambda each: each.segment):
            if entry.kind == REFUND:  # it has the number after that of the segment
                lost_ms[entry.segment - 1] = entry.end_ms - entry.start_ms
            else:
                runs.append(entry)
        segments = [Segment(run.start_ms, run.end_ms, lost_ms.get(run.segment, 0)) for run in runs]
        is_over = lease.status is LeaseStatus.ENDED
        if lease.started_ms is not None and not is_over:
            segments.append(Segment(lease.started_ms, max(lease.started_ms, seen_ms), 0))
        return cls(lease, tuple(segments), lease.ended_ms if is_over else None)

    @property
    def cut_short(self) -> tuple[Segment, ...]:
        """The segments that a preemption ended, after which it waited anew."""
        is_last_whole = self.lease.started_ms is not None
        return self.segments[:-1] if is_last_whole else self.segments

    @property
    def limit_ms(self) -> int:
        """The time limit with which it began; when it is preempted what it has used is taken off."""
        return self.lease.ask.duration_ms + sum(each.useful_ms for each in self.cut_short)

    @property
    def run_ms(self) -> int | None:
        """How long its work takes; None if that is not known."""
        if self.over_ms is None or not self.segments:
            return None
        return min(self.limit_ms, sum(each.useful_ms for each in self.segments))

    @property
    def is_given_up(self) -> bool:
        """Whether it ended without having been let start."""
        return self.over_ms is not None and not self.segments and self.lease.granted_ms is None

    @property
    def never_ran(self) -> bool:
        """Whether it ended after it had been let start, and before it ran."""
        return self.over_ms is not None and not self.segments and self.lease.granted_ms is not None

    def done_ms(self, at_ms: int) -> int:
        """Return how much of its work was done at a moment."""
        return sum(
            each.useful_ms if each.end_ms <= at_ms else min(each.useful_ms, at_ms - each.start_ms)
            for each in self.segments
            if each.start_ms < at_ms
        )

    def runs_at(self, at_ms: int) -> bool:
        """Whether it ran at a moment."""
        return any(each.start_ms < at_ms < each.end_ms for each in self.segments)


async def read_past(store: Store) -> Past:
    """Read all of a farm's past; nothing is written."""
    async with store.begin(write=False) as uow:
        leases = await uow.leases.list()
        entries = await uow.ledger.list()
        seen_ms = await uow.last_heartbeat_ms()
        moments = [entry.end_ms for entry in entries]
        moments += [
            at_ms
            for lease in leases
            for at_ms in (lease.created_ms, lease.started_ms, lease.ended_ms)
            if at_ms
        ]
        return Past(
            leases=leases,
            entries=entries,
            quotas=await uow.quotas.list(),
            tenants=await uow.tenants.list(),
            hosts=await uow.hosts(),
            seen_ms=max([seen_ms or 0, *moments]),
        )


def window_of(past: Past, from_ms: int | None, until_ms: int | None) -> Window:
    """Return the window from one moment to another; all of the past if none is given.

    Raises:
        InvalidInputError: if nothing was asked for until it ends, or it ends before it begins.
    """
    end_ms = past.seen_ms if until_ms is None else min(until_ms, past.seen_ms)
    asked_ms = [lease.created_ms for lease in past.leases]
    if not asked_ms or min(asked_ms) >= end_ms:
        raise InvalidInputError("no lease was asked for in that time: there is nothing to replay")
    begin_ms = max(min(asked_ms), 0 if from_ms is None else from_ms)
    if begin_ms >= end_ms:
        raise InvalidInputError("the time to replay ends before it begins")
    return Window(begin_ms, end_ms)


def retell(past: Past, window: Window, checkpoint_ms: int = CHECKPOINT_MS) -> Told:
    """Tell what happened in a window anew; see the module's docstring."""
    entries: dict[str, list[LedgerEntry]] = defaultdict(list)
    for entry in past.entries:
        entries[entry.lease_id].append(entry)
    lives = [Life.of(lease, entries[lease.id], past.seen_ms) for lease in past.leases]
    usual = _Usual.of(lives)
    found = [
        life
        for life in lives
        if life.lease.created_ms < window.until_ms
        and (life.over_ms is None or life.over_ms > window.from_ms)
        and not life.never_ran
    ]
    old = sorted(
        (life for life in found if life.lease.created_ms < window.from_ms),
        key=lambda life: _order(life, window),
    )
    arrivals = {life.lease.id: window.from_ms - len(old) + place for place, life in enumerate(old)}
    if not found:
        raise InvalidInputError("no lease waited or ran in that time: there is nothing to replay")
    works = [_work(life, window, arrivals.get(life.lease.id), usual, checkpoint_ms) for life in found]
    return Told(
        window=window,
        works=sorted(works, key=lambda work: (work.arrives_ms, work.id)),
        courses={life.lease.id: _course(life, window) for life in found},
        uses=_uses(lives, window.from_ms),
        asks=[life.lease.ask for life in lives if life.lease.created_ms < window.from_ms],
        left_out=sum(
            life.never_ran and window.from_ms <= life.lease.created_ms < window.until_ms for life in lives
        ),
        assumed=sum(life.run_ms is None for life in found),
    )


def _order(life: Life, window: Window) -> tuple[bool, int, str]:
    """What ran when the window began comes first, then what waited."""
    runs = life.runs_at(window.from_ms)
    since_ms = max(each.start_ms for each in life.segments) if runs else life.lease.created_ms
    return not runs, since_ms, life.lease.id


def _work(life: Life, window: Window, carried_ms: int | None, usual: "_Usual", checkpoint_ms: int) -> Work:
    """Return what a lease asks for in the window; ``carried_ms`` is when it does if it did so before."""
    lease = life.lease
    arrives_ms = lease.created_ms if carried_ms is None else carried_ms
    done_ms = life.done_ms(arrives_ms)
    run_ms = usual.run_ms(life) if life.run_ms is None else life.run_ms
    return Work(
        id=lease.id,
        tenant=lease.tenant,
        ask=replace(
            lease.ask,
            duration_ms=max(1, life.limit_ms - done_ms),
            not_before_ms=None if life.runs_at(window.from_ms) else lease.ask.not_before_ms,
        ),
        arrives_ms=arrives_ms,
        runs_ms=max(0, run_ms - done_ms),
        project=lease.project,
        checkpoint_ms=checkpoint_ms,
        gives_up_ms=life.over_ms if life.is_given_up else None,
    )


def _course(life: Life, window: Window) -> Course:
    lease = life.lease
    return Course(
        id=lease.id,
        tenant=lease.tenant,
        milli_gpus=lease.milli_gpus,
        asked_ms=max(lease.created_ms, lease.ask.not_before_ms or 0, window.from_ms),
        segments=window.cut((each.start_ms, each.end_ms) for each in life.segments),
        over_ms=None if life.over_ms is None or life.over_ms > window.until_ms else life.over_ms,
        is_new=lease.created_ms >= window.from_ms,
        is_known=life.run_ms is not None,
        preempted=sum(window.has(each.end_ms) for each in life.cut_short),
        lost_ms=sum(each.lost_ms for each in life.segments if window.has(each.end_ms)),
    )


def _uses(lives: Iterable[Life], from_ms: int) -> Sequence[Use]:
    """Return what was held before a moment; what was done twice was refunded and does not count."""
    return [
        Use(
            quota_of(life.lease.tenant, life.lease.project),
            life.lease.milli_gpus,
            each.start_ms,
            min(each.end_ms - each.lost_ms, from_ms),
        )
        for life in lives
        for each in life.segments
        if each.start_ms < from_ms
    ]


@dataclass(frozen=True, slots=True)
class _Usual:
    """Which part of their limits leases run."""

    tenants: Mapping[str, float]
    farm: float

    @classmethod
    def of(cls, lives: Iterable[Life]) -> "_Usual":
        parts: dict[str, list[float]] = defaultdict(list)
        for life in lives:
            if life.run_ms is not None:
                parts[life.lease.tenant].append(life.run_ms / life.limit_ms)
        tenants = {tenant: median(each) for tenant, each in parts.items() if len(each) >= ENOUGH}
        return cls(tenants, median([part for each in parts.values() for part in each] or [1.0]))

    def run_ms(self, life: Life) -> int:
        """Return how long a lease is taken to run of which that is not known."""
        if life.segments or life.lease.kind is LeaseKind.SERVICE:
            return life.limit_ms
        return round(self.tenants.get(life.lease.tenant, self.farm) * life.limit_ms)
