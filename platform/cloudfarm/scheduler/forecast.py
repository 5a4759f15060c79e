"""When every waiting lease will probably start: the queue walked in many possible futures of what runs.

In each future every running lease ends after a time drawn from how long such leases really ran, given how long this one
has run already (:mod:`~cloudfarm.scheduler.run_times`); in a last one all run to their limits. Those that wait are
placed whole, in the order in which they are entitled to start, each where it finds room first
(:mod:`~cloudfarm.scheduler.timetable`). Leases within their guarantee may take the place of borrowers after the minimum
time and the notice; limits of quotas are kept.

Not in it: what will be asked for later, who is told to go and comes back, bounds on committed time.
:mod:`~cloudfarm.scheduler.calibration` makes up for that by how earlier forecasts turned out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cloudfarm.domain.lease import ExpectedStart, Lease
from cloudfarm.domain.quota import EVERYTHING, NOTHING, Amounts, QuotaTree
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.calibration import DUE, WIDE, Corrections, Guess, corrected, correction
from cloudfarm.scheduler.line import Line
from cloudfarm.scheduler.rules import Rules, capacity_of, waits
from cloudfarm.scheduler.run_times import Floats, RunTimes, chances
from cloudfarm.scheduler.space import Space
from cloudfarm.scheduler.standing import Standing, amounts_of
from cloudfarm.scheduler.timetable import NEVER, PARTS, Timetable
from cloudfarm.steward.view import FarmView

MOST_LEASES = 150
"""So many of those first in line are foreseen."""
MOST_SLICES = 300
"""So many slices of theirs at most."""
FUTURES = 32
LEAST_FUTURES = 8
MOST_PARTS = 2**17
"""Of all GPUs in all futures; in larger farms fewer futures are looked at."""
SPAN = 0.1, 0.5, 0.9
"""Of the starts in all futures: what is guessed for the earliest, the expected and the latest."""

PROMISED = "promised"
"""It is within its guarantee."""
BORROWS = "borrows"
HELD_BACK = "held back"
"""A bound of its own quota, or its own time, keeps it from starting."""


def forecast(
    view: FarmView, rules: Rules, tree: QuotaTree, corrections: Corrections
) -> Mapping[str, ExpectedStart]:
    """Return the expected start of the waiting leases that can be foreseen, by id."""
    found = guesses(view, rules, tree)
    return {
        lease_id: corrected(guess, correction(corrections, guess.basis), view.now_ms)
        for lease_id, guess in found.items()
    }


def guesses(view: FarmView, rules: Rules, tree: QuotaTree) -> Mapping[str, Guess]:
    """Return what the futures say of the waiting leases, not corrected by experience."""
    return _Walk.of(view, rules, tree).run() if view.hosts else {}


@dataclass(slots=True)
class _Use:
    """What counts against one limit, and when it is gone, by future."""

    whole: Amounts = NOTHING
    amounts: list[Sequence[int]] = field(default_factory=list)
    ends: list[Floats] = field(default_factory=list)

    def room_from(self, limit: Amounts, more: Amounts) -> Floats | float:
        """Return from when a limit leaves room for more."""
        over = self.whole + more - limit
        if over.within(NOTHING):
            return 0.0
        ends = np.stack(self.ends)
        order = ends.argsort(axis=0, kind="stable")
        given = np.array(self.amounts)[order].cumsum(axis=0)
        enough = np.all(given >= np.array(_numbers(over)), axis=-1)
        futures = np.arange(ends.shape[1])
        last = order[enough.argmax(axis=0), futures]
        return np.where(enough[-1], ends[last, futures], NEVER)


@dataclass(slots=True)
class _Walk:
    """One walk along the queue."""

    view: FarmView
    rules: Rules
    times: RunTimes
    standing: Standing
    table: Timetable
    running: list[Lease]
    """That hold something, by the number under which the table knows them."""
    waiting: list[Lease]
    luck: Mapping[str, Floats]
    ends: dict[str, Floats] = field(default_factory=dict)
    """Of what runs."""
    uses: dict[str, _Use] = field(default_factory=dict)
    """By quota with a limit."""

    @classmethod
    def of(cls, view: FarmView, rules: Rules, tree: QuotaTree) -> "_Walk":
        space = Space.of(view.hosts)
        parts = max(1, len(space.hosts) * space.width * PARTS)
        futures = min(FUTURES, max(LEAST_FUTURES, MOST_PARTS // parts))
        running = [lease for lease in view.leases if lease.status.holds_capacity]
        waiting = [lease for lease in view.leases if waits(lease)]
        luck = chances([*running, *waiting], futures)
        by_id = {lease.id: row for lease, row in zip([*running, *waiting], luck, strict=True)}
        standing = Standing(tree, capacity_of(view), view.now_ms, view.past)
        table = Timetable.of(space, luck.shape[1])
        walk = cls(view, rules, RunTimes.of(view.runs), standing, table, running, waiting, by_id)
        for number, lease in enumerate(running):
            walk._hold(number, lease)
        walk.table.ready()
        return walk

    def run(self) -> Mapping[str, Guess]:
        """Return guesses by lease, in the order of the walk."""
        placed: list[tuple[Lease, str]] = []
        starts: list[Floats] = []
        slices = 0
        for number, (lease, basis, floor) in enumerate(self._in_order()):
            slices += lease.ask.shape.count
            if number >= MOST_LEASES or (number and slices > MOST_SLICES):
                break
            start = self._place(lease, basis, floor)
            if (start < NEVER).all():
                placed.append((lease, basis))
                starts.append(start)
        if not placed:
            return {}
        every = np.stack(starts)
        spans = np.quantile(every[:, :-1], SPAN, axis=1).T.tolist()
        return {
            lease.id: self._guess(lease, basis, span, by_limits)
            for (lease, basis), span, by_limits in zip(placed, spans, every[:, -1].tolist(), strict=True)
        }

    def _guess(self, lease: Lease, basis: str, span: Sequence[float], by_limits: float) -> Guess:
        is_wide = self._is_wide(lease)
        kind = basis + WIDE if is_wide else basis
        low, middle, high = span
        return Guess(kind, low, middle, high, by_limits, is_bound=basis != DUE and not is_wide)

    def _hold(self, number: int, lease: Lease) -> None:
        now_ms = self.view.now_ms
        ran_ms = 0 if lease.started_ms is None else now_ms - lease.started_ms
        left = self.times.left_ms(lease, ran_ms, self.luck[lease.id])
        if lease.preempted_ms is not None:
            left = np.minimum(left, lease.preempted_ms - now_ms)
        if lease.status is LeaseStatus.ENDING:
            left = np.zeros_like(left)
        left = np.maximum(left, 1.0)  # now it still holds what it has
        self.ends[lease.id] = left
        self.table.hold(number, lease.slices, left)
        self._count(lease, left)
        if _is_leaving(lease):
            self.standing.leave(lease)
        else:
            self.standing.take(lease)

    def _in_order(self) -> Iterator[tuple[Lease, str, Floats | float]]:
        """Yield who is placed next, on what ground, and before when it does not start."""
        now_ms = self.view.now_ms
        due = [lease for lease in self.waiting if lease.room]
        later = [
            lease for lease in self.waiting if not lease.room and (lease.ask.not_before_ms or 0) > now_ms
        ]
        aside = {lease.id for lease in (*due, *later)}
        for lease in due:
            yield lease, DUE, self._room_from(lease)
            self.standing.book(lease, now_ms, is_due=True)
        line = Line((lease for lease in self.waiting if lease.id not in aside), self.standing)
        while (next_ := line.pop()) is not None:
            if self.standing.over_limit(next_) or self.standing.over_commitment(next_):
                later.append(next_)
                continue
            is_promised = self.standing.has_claim(next_)
            yield next_, PROMISED if is_promised else BORROWS, 0.0
            self.standing.book(next_, now_ms, is_due=is_promised)
        for lease in later:
            yield lease, HELD_BACK, float(max(0, (lease.ask.not_before_ms or 0) - now_ms))

    def _place(self, lease: Lease, basis: str, floor: Floats | float) -> Floats:
        runs = self.times.left_ms(lease, 0, self.luck[lease.id])
        from_ = np.broadcast_to(floor, runs.shape)
        for quota in self.standing.path(lease):
            if quota.limit != EVERYTHING and quota.id in self.uses:
                from_ = np.maximum(from_, self.uses[quota.id].room_from(quota.limit, amounts_of(lease.ask)))
        if (from_ >= NEVER).any():
            return from_
        soon = self._soon(lease) if basis == PROMISED else None
        start = self.table.place(lease.ask, from_, runs, soon)
        self._count(lease, start + runs)
        return start

    def _room_from(self, lease: Lease) -> Floats | float:
        """Return from when the room is free that others were told to make for a lease."""
        room = {(piece.host, index) for piece in lease.room for index in piece.gpu_indices}
        ends = [
            self.ends[other.id]
            for other in self.running
            if _is_leaving(other)
            and any((piece.host, index) in room for piece in other.slices for index in piece.gpu_indices)
        ]
        return np.max(ends, axis=0) if ends else 0.0

    def _is_wide(self, lease: Lease) -> bool:
        """Whether a lease needs most of a host: what is smaller passes it, also what comes later."""
        wanted = lease.ask.shape.gpus_per_slice
        return wanted > 1 and 2 * wanted > self.table.space.width

    def _soon(self, lease: Lease) -> Floats | None:
        """Return by when each running lease can be made to go for another at the latest; None if none can be."""
        if not self.rules.preempts:
            return None
        allowed: dict[tuple[str, str], bool] = {}
        soon = np.full(len(self.running) + 1, NEVER)
        for number, victim in enumerate(self.running):
            whose = victim.tenant, victim.project
            if victim.started_ms is None or _is_leaving(victim):
                continue
            if whose not in allowed:
                allowed[whose] = self.standing.may_reclaim(lease, victim)
            if allowed[whose]:
                young_ms = max(0, victim.started_ms + self.rules.min_run_ms - self.view.now_ms)
                soon[number] = young_ms + self.rules.preempt_notice_ms
        return soon if (soon < NEVER).any() else None

    def _count(self, lease: Lease, ends: Floats) -> None:
        for quota in self.standing.path(lease):
            if quota.limit != EVERYTHING:
                use = self.uses.setdefault(quota.id, _Use())
                use.whole += amounts_of(lease.ask)
                use.amounts.append(_numbers(amounts_of(lease.ask)))
                use.ends.append(ends)


def _is_leaving(lease: Lease) -> bool:
    return lease.status is LeaseStatus.ENDING or lease.preempted_ms is not None


def _numbers(amounts: Amounts) -> Sequence[int]:
    return amounts.milli_gpus, amounts.cpus, amounts.memory_bytes
