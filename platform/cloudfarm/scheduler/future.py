"""What will be free when: the time limits of what runs, and the room that is booked for what waits.

What runs only ever leaves, so without bookings the room never shrinks; that is kept as one state for each moment at
which something leaves. The bookings lie over it, each from its start to its end.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cloudfarm.domain.lease import Ask, Lease, Slice
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.packer import Packer
from cloudfarm.scheduler.space import Space, State

MOST_MOMENTS = 128
"""If more leases than this end at different times, ends count a little later: by less than 1/16 of the time to go."""


@dataclass(frozen=True, slots=True)
class Booking:
    """Room that is kept for a waiting lease."""

    lease_id: str
    from_ms: int
    until_ms: int
    slices: tuple[Slice, ...]


@dataclass(slots=True)
class Future:
    """The farm from now on, if everything that runs runs to its limit and nothing else comes."""

    space: Space
    now_ms: int
    now: State
    """What is free now, booked or not for later; not to be changed from outside."""
    packer: Packer
    """Chooses where what starts now goes; what is booked for later goes where it fits first."""
    bookings: list[Booking] = field(default_factory=list)
    _takes: dict[str, State] = field(default_factory=dict)
    """By booked lease: what it takes of each host."""
    _ends: dict[int, list[Slice]] = field(default_factory=dict)
    """What holds something from now on, by its end; until the first booking nothing else is needed."""
    _moments: list[int] = field(default_factory=list)
    _states: State = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.int32))
    """By moment: what is free from then until the next."""
    _is_coarse: bool = False

    @classmethod
    def of(
        cls,
        space: Space,
        now_ms: int,
        holding: Iterable[Lease],
        asks: Iterable[Ask] = (),
        power_weight: float = 0.0,
    ) -> "Future":
        """Return the future of a farm in which these leases hold something now, and these are the asks to expect."""
        future = cls(space, now_ms, space.empty(), Packer(space, asks, power_weight))
        for lease in holding:
            future._hold(end_of(lease, now_ms), lease.slices)
        return future

    def start(self, lease: Lease, room: tuple[Slice, ...] = ()) -> tuple[Slice, ...] | None:
        """Start a lease now if that delays no booking, in one room or wherever there is some; return its slices."""
        until_ms = self.now_ms + lease.ask.duration_ms
        free = self.free(self.now_ms, until_ms)
        slices = room if room and self.space.holds(free, room) else None
        if not room:
            slices = self.packer.place(free, lease.id, lease.ask)
        if slices is not None:
            self._hold(until_ms, slices)
        return slices

    def wait_for(self, lease: Lease, room: tuple[Slice, ...], by_ms: int) -> Booking | None:
        """Return when one room is there for a lease, all through its time, by a moment; None if it is not."""
        self._lay_out()
        for from_ms in [
            self.now_ms,
            *(each for each in self._moments if self.now_ms < each <= self.moment(by_ms)),
        ]:
            until_ms = from_ms + lease.ask.duration_ms
            if self.space.holds(self.free(from_ms, until_ms), room):
                return Booking(lease.id, from_ms, until_ms, room)
        return None

    def find(self, lease_id: str, ask: Ask, *, not_before_ms: int = 0) -> Booking | None:
        """Return the first room for a lease that is there all through its time, or None if there never is any."""
        self._lay_out()
        first_ms = max(self.now_ms, not_before_ms)
        if not self.space.fits(self._states[-1], ask):
            return None  # not even when all that runs is over
        bare = bisect_left(
            range(len(self._moments)), x=True, key=lambda index: self.space.fits(self._states[index], ask)
        )
        first_ms = max(first_ms, self._moments[bare])
        later = {*self._moments, *(booking.until_ms for booking in self.bookings)}
        for from_ms in (first_ms, *sorted(each for each in later if each > first_ms)):
            until_ms = from_ms + ask.duration_ms
            slices = self.space.place(self.free(from_ms, until_ms), lease_id, ask)
            if slices is not None:
                return Booking(lease_id, from_ms, until_ms, slices)
        return None

    def keep(self, booking: Booking) -> None:
        """Keep the room of a booking: nothing that starts or is found from now on takes it."""
        self._lay_out()
        self.bookings.append(booking)
        takes = np.zeros_like(self.now)
        self.space.give(takes, booking.slices)
        self._takes[booking.lease_id] = takes

    def lift(self, booking: Booking) -> None:
        """Keep the room of a booking no longer."""
        self.bookings.remove(booking)
        del self._takes[booking.lease_id]

    def leave(self, slices: Sequence[Slice], at_ms: int, until_ms: int) -> None:
        """Note that something that holds until a moment will be gone at an earlier one."""
        self._lay_out()
        first, last = self._index(at_ms), self._index(until_ms)
        self.space.give(self._states[first:last], slices)

    def free(self, from_ms: int, until_ms: int) -> State:
        """Return what is free all through a time, beside the bookings; not to be changed."""
        if from_ms == self.now_ms and not self.bookings:
            return self.now
        _, states = self.all_through(from_ms, until_ms)
        least: State = states.min(axis=0)
        return least

    def all_through(self, from_ms: int, until_ms: int) -> tuple[Sequence[int], State]:
        """Return what bookings leave free at a moment, and whenever one of them starts until another moment.

        In between there is never less. By the time that a booking starts others may have left, whose room it is that is
        booked; so what is free now is not short of all that will be booked.
        """
        self._lay_out()
        crossed = [each for each in self.bookings if each.from_ms < until_ms and from_ms < each.until_ms]
        moments = sorted({from_ms, *(each.from_ms for each in crossed if each.from_ms > from_ms)})
        states = self._states[[bisect_right(self._moments, each) - 1 for each in moments]]
        for booking in crossed:
            first, last = bisect_left(moments, booking.from_ms), bisect_left(moments, booking.until_ms)
            states[first:last] -= self._takes[booking.lease_id]
        return moments, states

    def until(self, ask: Ask) -> int | None:
        """Return by when an ask would have to end to start now beside the bookings; None if it does not fit at all."""
        starts = sorted({each.from_ms for each in self.bookings if each.from_ms > self.now_ms})
        too_long = bisect_left(
            starts, x=True, key=lambda end_ms: not self.space.fits(self.free(self.now_ms, end_ms), ask)
        )
        return starts[too_long - 1] if too_long else None

    def moment(self, at_ms: int) -> int:
        """Return a time as ends are counted here: itself, or in a farm with very many ends a little later."""
        if not self._is_coarse or at_ms <= self.now_ms:
            return at_ms
        step_ms = 1 << max(0, (at_ms - self.now_ms).bit_length() - 5)
        return -(-at_ms // step_ms) * step_ms

    def _hold(self, until_ms: int, slices: Sequence[Slice]) -> None:
        """Hold something from now on."""
        if self._moments:
            last = self._index(until_ms)  # which may put a new array in the place of the old
            self.space.take(self._states[:last], slices)
            self.now = self._states[0]
        else:
            self.space.take(self.now, slices)
            self._ends.setdefault(until_ms, []).extend(slices)

    def _lay_out(self) -> None:
        """Make the states of all moments, when the first of them is wanted."""
        if self._moments:
            return
        self._is_coarse = len(self._ends) > MOST_MOMENTS
        ends: dict[int, list[Slice]] = {}
        for end_ms, slices in self._ends.items():
            ends.setdefault(self.moment(end_ms), []).extend(slices)
        self._moments = [self.now_ms, *sorted(ends)]
        self._states = np.empty((len(self._moments), *self.now.shape), dtype=np.int32)
        self._states[0] = self.now
        for index, end_ms in enumerate(self._moments[1:], 1):
            self._states[index] = self._states[index - 1]
            self.space.give(self._states[index], ends[end_ms])
        self.now = self._states[0]

    def _index(self, at_ms: int) -> int:
        """Return the index of a moment, made one of the list if it is not there."""
        at_ms = self.moment(at_ms)
        index = bisect_left(self._moments, at_ms)
        if index == len(self._moments) or self._moments[index] != at_ms:
            self._moments.insert(index, at_ms)
            self._states = np.insert(self._states, index, self._states[index - 1], axis=0)
            self.now = self._states[0]
        return index


def end_of(lease: Lease, now_ms: int) -> int:
    """Return when a lease that holds capacity is over at the latest: never now, for now it still holds it."""
    limit_ms = now_ms + lease.ask.duration_ms if lease.ends_ms is None else lease.ends_ms
    if lease.preempted_ms is not None:
        limit_ms = min(limit_ms, lease.preempted_ms)
    if lease.status is LeaseStatus.ENDING:
        limit_ms = now_ms
    return max(now_ms + 1, limit_ms)
