"""Who makes room for a lease within its guarantee: only borrowers, and so that as little work as possible is lost."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.status import LeaseStatus, Target
from cloudfarm.scheduler.future import end_of
from cloudfarm.scheduler.space import Space, State
from cloudfarm.scheduler.standing import Standing

MOST_HOSTS = 16
"""On how many hosts the least loss is looked for; on all others only if none of these will do."""


def lost_work(lease: Lease, at_ms: int, saved_ms: Mapping[str, int]) -> int:
    """Return the milli-GPU-milliseconds of work that ending a lease at a moment would lose: all since the last save.

    Args:
        lease: that runs.
        at_ms: when it would end.
        saved_ms: when each lease last saved its work; from its start, if it is not in there.
    """
    return lease.milli_gpus * (at_ms - lease.kept_until_ms(at_ms, saved_ms.get(lease.id, 0)))


def may_be_preempted(lease: Lease, now_ms: int, min_run_ms: int) -> bool:
    """Whether a lease has run long enough and is not on its way out already."""
    return (
        lease.status is LeaseStatus.ACTIVE
        and lease.target is Target.RUN
        and lease.preempted_ms is None
        and lease.started_ms is not None
        and now_ms - lease.started_ms >= min_run_ms
    )


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The search for the leases that make room for one.

    What loses least is sought in several orders: over all hosts by what each loses, and on one host after the other,
    there first what empties the GPUs that cost least. In each order leases are taken until there is room, then each one
    that turns out not to be needed is let off, dearest first.
    """

    lease: Lease
    """That waits and is within its guarantee."""
    standing: Standing
    """As it is now; left as it was."""
    space: Space
    moments: Sequence[int]
    states: State
    """What will be free at the deadline and at some moments later, without anybody's giving way; never less between."""
    deadline_ms: int
    saved_ms: Mapping[str, int]
    """As for :func:`lost_work`."""

    def victims(self, candidates: Iterable[Lease]) -> Sequence[Lease]:
        """Return running leases whose end lets the waiting one start; none if no such are found.

        Args:
            candidates: leases that may be preempted at all.
        """
        allowed: dict[tuple[str, str], bool] = {}
        by_loss: list[Lease] = []
        for each in candidates:
            whose = each.tenant, each.project
            if whose not in allowed:
                allowed[whose] = self.standing.may_reclaim(self.lease, each)
            if allowed[whose]:
                by_loss.append(each)
        by_loss.sort(key=self._loss)
        most = self.states.copy()
        for victim in by_loss:
            self._give(most, victim)
        slots = self.space.slots(most.min(axis=0), self.lease.ask)
        if int(slots.sum()) < self.lease.ask.shape.count:
            return ()
        found = [self._enough(by_loss)]
        for number, order in enumerate(self._by_place(by_loss, np.flatnonzero(slots).tolist())):
            if number >= MOST_HOSTS and any(found):
                break
            found.append(self._enough(order))
        return min((each for each in found if each), key=self._total, default=())

    def _loss(self, victim: Lease) -> tuple[int, int, str]:
        lost = lost_work(victim, self.deadline_ms, self.saved_ms)
        return lost, -(victim.started_ms or 0), victim.id

    def _total(self, victims: Sequence[Lease]) -> tuple[int, int, list[str]]:
        return (
            sum(self._loss(each)[0] for each in victims),
            sum(each.milli_gpus for each in victims),
            sorted(each.id for each in victims),
        )

    def _enough(self, order: Iterable[Lease]) -> Sequence[Lease]:
        """Return as many leases of an order as are needed, and no more; none if all are too few."""
        chosen: list[Lease] = []
        free = self.states.copy()
        try:
            for victim in order:
                # Asked anew each time: who has given back enough borrows no longer.
                if self.standing.may_reclaim(self.lease, victim):
                    chosen.append(victim)
                    self.standing.give(victim)
                    self._give(free, victim)
                    if self._is_enough(free):
                        break
            else:
                return ()
            for victim in sorted(chosen, key=self._loss, reverse=True):
                self._give(free, victim, back=True)
                self.standing.take(victim)
                if self._is_enough(free):
                    chosen = [each for each in chosen if each is not victim]
                else:
                    self._give(free, victim)
                    self.standing.give(victim)
            return tuple(chosen)
        finally:
            for victim in chosen:
                self.standing.take(victim)

    def _give(self, free: State, victim: Lease, *, back: bool = False) -> None:
        """Free what a victim holds, until it would have ended by itself; or take it back."""
        change = self.space.take if back else self.space.give
        change(free[: bisect_left(self.moments, end_of(victim, self.standing.now_ms))], victim.slices)

    def _is_enough(self, free: State) -> bool:
        return (
            self.space.fits(free.min(axis=0), self.lease.ask)
            and self.standing.over_limit(self.lease, from_ms=self.deadline_ms) is None
        )

    def _by_place(self, by_loss: Sequence[Lease], rows: Sequence[int]) -> Iterator[Sequence[Lease]]:
        """Yield orders that begin with the hosts on which least is lost; a gang goes on from there to the next."""
        on: dict[int, dict[int, list[Lease]]] = {row: {} for row in rows}
        for victim in by_loss:
            for piece in victim.slices:
                row = self.space.rows.get(piece.host)
                if row in on:
                    for index in piece.gpu_indices or (-1,):
                        on[row].setdefault(self.space.columns[row].get(index, -1), []).append(victim)
        costs: list[tuple[int, int, list[Lease]]] = []
        for row, columns in on.items():
            cleared = sorted(
                (self._cleared(row, column, victims) for column, victims in columns.items() if column >= 0),
                key=lambda each: each[:3],
            )
            cheapest = cleared[: self.lease.ask.shape.gpus_per_slice]
            order = [victim for *_, victims in cleared for victim in victims]
            rest = [victim for victims in columns.values() for victim in victims]
            costs.append((sum(each[1] for each in cheapest), row, [*order, *sorted(rest, key=self._loss)]))
        costs.sort(key=lambda each: each[:2])
        for first in range(len(costs)):
            following = costs[first:] if self.lease.ask.shape.count > 1 else costs[first : first + 1]
            yield tuple({victim.id: victim for *_, order in following for victim in order}.values())

    def _cleared(self, row: int, column: int, victims: Sequence[Lease]) -> tuple[bool, int, int, list[Lease]]:
        """Return whether a GPU cannot be made free enough, what it costs, its column, and who goes for it."""
        wanted = min(self.lease.ask.shape.milli_gpus, MILLI)
        free, cost = int(self.states[0, row, column]), 0
        gone: list[Lease] = []
        for victim in victims:
            if free >= wanted:
                break
            gone.append(victim)
            cost += self._loss(victim)[0]
            free += sum(
                piece.milli_gpus // len(piece.gpu_indices)
                for piece in victim.slices
                if piece.host == self.space.hosts[row].id
                and any(self.space.columns[row].get(index) == column for index in piece.gpu_indices)
            )
        return free < wanted, cost, column, gone
