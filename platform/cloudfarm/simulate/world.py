"""A farm in simulated time, run by the very admission that the live steward uses.

Leases start the moment they are granted and end when their work is done, at their time limit, or at the deadline of a
preemption; a preempted one waits anew and goes on from its last checkpoint.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.quota import QuotaTree, quota_of
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.scheduler.history import Memory, PastUse, Use
from cloudfarm.simulate.engine import Alarm, Engine, Phase
from cloudfarm.steward.foresight import Foresight
from cloudfarm.steward.view import Decisions, FarmView, Grant, Preempt, Run, Wait

RUNS = 1000
"""How many leases that have ended are looked back at, as in the live farm."""


@dataclass(frozen=True, slots=True)
class Work:
    """One lease that will be asked for."""

    id: str
    tenant: str
    ask: Ask
    arrives_ms: int
    runs_ms: int
    """How long its work takes, without interruptions; at the ask's limit it ends, done or not."""
    project: str = ""
    checkpoint_ms: int = 600_000
    """How often its work is saved."""
    saves_when_told: bool = False
    """Whether it saves once more when it is told to go, as Ray Train does; what it does after that is lost."""
    gives_up_ms: int | None = None
    """When whoever asked gives up, if it has not started by then; None: never."""


@dataclass(slots=True)
class Story:
    """What became of one lease."""

    work: Work
    segments: list[tuple[int, int]] = field(default_factory=list)
    """From when to when it ran."""
    done_ms: int = 0
    """Work that is saved."""
    ended_ms: int | None = None
    lost_ms: int = 0
    """Work done twice because of preemptions."""
    preempted: int = 0
    """How often it was told to go."""
    claimed_ms: int | None = None
    """When others were first told to go for it."""
    deadline_ms: int | None = None
    """By when they last had to be gone."""

    @property
    def waited_ms(self) -> int:
        """Time from arrival to the first start."""
        return self.segments[0][0] - self.work.arrives_ms

    @property
    def idle_ms(self) -> int:
        """Time from arrival to the end in which it did not run, or did what it had done before."""
        return (self.ended_ms or 0) - self.work.arrives_ms - min(self.work.runs_ms, self.work.ask.duration_ms)


@dataclass(slots=True)
class World:
    """The farm, its queue and its clock."""

    hosts: Sequence[Host]
    tree: QuotaTree
    admit: Callable[[FarmView], Decisions]
    wake: Callable[[FarmView], int | None] = lambda _view: None
    """When the farm is to be looked at again although nothing has happened."""
    memory: Memory | None = None
    """How past use counts; None: not at all."""
    foresight: Foresight | None = None
    """What is remembered of forecasts; None: none are made."""
    watch: Callable[["World"], None] = lambda _world: None
    """Called after every step; tests look at the invariants here."""
    leases: dict[str, Lease] = field(default_factory=dict)
    """Those that have not ended, oldest first."""
    stories: dict[str, Story] = field(default_factory=dict)
    uses: Iterable[Use] = ()
    """Those of the time before."""
    asks: deque[Ask] = field(default_factory=lambda: deque(maxlen=0))
    """The newest asks, as many as are remembered, to learn from; if none are, it is learned from the open ones."""
    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=RUNS))
    """How long the newest that have ended ran."""
    engine: Engine = field(default_factory=Engine)
    _alarm: Alarm = field(init=False)
    _past: PastUse | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._alarm = Alarm(self.engine, self._look)
        if self.memory is not None:
            self._past = PastUse(self.tree, self.milli_gpus, self.memory)
            for use in self.uses:
                self._past.add(use)

    @property
    def now_ms(self) -> int:
        """The simulated time."""
        return self.engine.now_ms()

    def run(self, works: Iterable[Work], until_ms: int | None = None) -> None:
        """Let everything arrive and run, until nothing is left to happen or until a moment."""
        for work in works:
            self.engine.at(work.arrives_ms, partial(self._arrive, work), Phase.ARRIVES)
        self.engine.run(until_ms)

    def _look(self) -> None:
        self.step()
        wake_ms = self.wake(self.view())
        if wake_ms is not None:
            self._alarm.ring_by(wake_ms)

    def step(self) -> Decisions:
        """Let the policy decide, and do what it says."""
        view = self.view()
        if self.foresight is not None:
            view = replace(view, corrections=self.foresight.look(view.leases, self.now_ms))
        decisions = self.admit(view)
        for decision in decisions:
            if isinstance(decision, Grant):
                self._start(decision)
            elif isinstance(decision, Preempt):
                self._preempt(decision)
            elif isinstance(decision, Wait):
                lease = self.leases[decision.lease_id]
                self.leases[lease.id] = replace(
                    lease,
                    message=decision.message,
                    room=decision.room,
                    expected_start=decision.expected_start,
                )
        self.watch(self)
        return decisions

    def view(self) -> FarmView:
        """Return the farm as the steward would see it."""
        tenants = {lease.tenant: Tenant(lease.tenant, lease.tenant, 0) for lease in self.leases.values()}
        saved = {
            lease.id: lease.started_ms + self._saved_ms(lease)
            for lease in self.leases.values()
            if lease.started_ms is not None
        }
        past: Mapping[str, float] = {}
        if self._past is not None:
            running = [
                Use(quota_of(lease.tenant, lease.project), lease.milli_gpus, lease.started_ms, self.now_ms)
                for lease in self.leases.values()
                if lease.started_ms is not None
            ]
            past = self._past.shares(self.now_ms, running)
        return FarmView(
            now_ms=self.now_ms,
            tenants=tenants,
            hosts=tuple(self.hosts),
            leases=tuple(self.leases.values()),
            jobs=(),
            services=(),
            asks=tuple(self.asks),
            past=past,
            runs=tuple(self.runs),
            saved_ms=saved,
        )

    @property
    def milli_gpus(self) -> int:
        """What all hosts have together."""
        return sum(1000 * len(host.gpus) for host in self.hosts)

    # What happens

    def _arrive(self, work: Work) -> None:
        self.stories[work.id] = Story(work)
        self.asks.append(work.ask)
        self.leases[work.id] = Lease(
            id=work.id,
            tenant=work.tenant,
            owner="sim",
            name=work.id,
            kind=LeaseKind.JOB,
            ask=work.ask,
            created_ms=self.now_ms,
            project=work.project,
        )
        if work.gives_up_ms is not None:
            self.engine.at(work.gives_up_ms, partial(self._give_up, work.id))
        self._alarm.ring_by(self.now_ms)

    def _give_up(self, lease_id: str) -> None:
        lease = self.leases.get(lease_id)
        if lease is not None and not lease.segment:
            del self.leases[lease_id]
            self._alarm.ring_by(self.now_ms)

    def _start(self, grant: Grant) -> None:
        lease, story = self.leases[grant.lease_id], self.stories[grant.lease_id]
        lease = replace(
            lease,
            status=LeaseStatus.ACTIVE,
            slices=grant.slices,
            granted_ms=self.now_ms,
            started_ms=self.now_ms,
            ends_ms=self.now_ms + lease.ask.duration_ms,
            segment=lease.segment + 1,
            room=(),
            expected_start=None,
            message="",
        )
        self.leases[lease.id] = lease
        runs_ms = min(story.work.runs_ms - story.done_ms, lease.ask.duration_ms)
        self.engine.after(runs_ms, partial(self._stop, lease.id, lease.segment, done=True))

    def _preempt(self, decision: Preempt) -> None:
        lease = replace(
            self.leases[decision.lease_id],
            noticed_ms=self.now_ms,
            preempted_ms=decision.deadline_ms,
            room=decision.room,
        )
        self.leases[lease.id] = lease
        self.stories[lease.id].preempted += 1
        story = self.stories[decision.for_lease_id]
        story.claimed_ms = self.now_ms if story.claimed_ms is None else story.claimed_ms
        story.deadline_ms = decision.deadline_ms
        self.engine.at(decision.deadline_ms, partial(self._stop, lease.id, lease.segment, done=False))

    def _stop(self, lease_id: str, segment: int, *, done: bool) -> None:
        lease = self.leases.get(lease_id)
        if lease is None or lease.segment != segment or lease.started_ms is None:
            return  # it ended before, or runs anew
        self._alarm.ring_by(self.now_ms)
        story = self.stories[lease_id]
        story.segments.append((lease.started_ms, self.now_ms))
        if self._past is not None:
            self._past.add(
                Use(quota_of(lease.tenant, lease.project), lease.milli_gpus, lease.started_ms, self.now_ms)
            )
        if done:
            self.runs.append(
                Run(lease.tenant, lease.kind, self.now_ms - lease.started_ms, lease.ask.duration_ms)
            )
            story.ended_ms = self.now_ms
            del self.leases[lease_id]
            return
        saved_ms = self._saved_ms(lease)
        story.lost_ms += self.now_ms - lease.started_ms - saved_ms
        story.done_ms += saved_ms
        self.leases[lease_id] = replace(
            lease,
            status=LeaseStatus.WAITING,
            slices=(),
            granted_ms=None,
            started_ms=None,
            ends_ms=None,
            noticed_ms=None,
            preempted_ms=None,
        )

    def _saved_ms(self, lease: Lease) -> int:
        """Return how much of a running segment's work is saved."""
        started_ms, work = lease.started_ms or 0, self.stories[lease.id].work
        if lease.noticed_ms is not None and work.saves_when_told:
            return lease.noticed_ms - started_ms
        return (self.now_ms - started_ms) // work.checkpoint_ms * work.checkpoint_ms
