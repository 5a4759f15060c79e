"""The queue: quotas decide whose turn it is, gangs start whole, gaps are filled, and what was promised comes back.

One pass over the waiting leases in the order of :class:`~cloudfarm.scheduler.line.Line`. Each either starts, or is held
back by a bound of its own quota (which delays nobody else), or waits for room. Who waits for room within its guarantee
takes back what others borrow. Room is booked for it at the first moment at which the time limits of what runs leave
some, and nobody after it may start in a way that would take that room (conservative backfilling: Mu'alem and Feitelson,
IEEE TPDS 2001).

A reservation that is within its quotas' guarantees at its time comes before all: its room is booked from then on, and
made in time if others borrow it. Any other waits its turn like everybody else, from its time on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloudfarm.domain.lease import Ask, Lease, Slice
from cloudfarm.domain.quantities import MILLI, Shape
from cloudfarm.domain.quota import UNLIMITED, Amounts, QuotaTree
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler import explain
from cloudfarm.scheduler.defrag import Defrag, is_moving, kept_for
from cloudfarm.scheduler.future import Booking, Future, end_of
from cloudfarm.scheduler.line import Line
from cloudfarm.scheduler.reclaim import Reclaim, may_be_preempted
from cloudfarm.scheduler.rules import Rules, capacity_of, waits
from cloudfarm.scheduler.space import Space
from cloudfarm.scheduler.standing import Standing, amounts_of
from cloudfarm.steward.view import Decision, Decisions, FarmView, Grant, Preempt, Wait

SPARE = "spare"
"""Who holds the booking of what is kept from borrowers; no lease is called so."""


def fair(rules: Rules, tree: Callable[[FarmView], QuotaTree]) -> Callable[[FarmView], Decisions]:
    """Return the policy of this module as an admission of :func:`cloudfarm.steward.decide.decide`.

    Args:
        rules: knobs.
        tree: returns the quotas in force.
    """

    def admit(view: FarmView) -> Decisions:
        return _Pass.of(view, rules, tree(view)).run()

    return admit


@dataclass(slots=True)
class _Pass:
    """One pass over the queue."""

    view: FarmView
    rules: Rules
    standing: Standing
    future: Future
    running: list[Lease]
    """Those that were not on their way out before this pass."""
    borrowers: dict[str, Lease]
    """By id: those of them that may be told to go."""
    defrag: Defrag
    line: Line = field(init=False)
    decisions: list[Decision] = field(default_factory=list)
    ahead: list[Lease] = field(default_factory=list)
    """Those for which room is kept, in order."""
    booked: int = 0
    """How many of them wait for the time limits of others, rather than for others to make room."""
    no_room: dict[tuple[object, ...], int] = field(default_factory=dict)
    """By what is asked for: the shortest duration for which there was no room. Room only ever shrinks in a pass."""
    in_vain: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Likewise, by whom and what: the shortest duration for which nobody can be made to give way."""
    spare: Booking | None = None
    """What is kept from borrowers, for nobody in particular."""
    is_sparing: bool = False
    place_in_line: int = 0
    searches: int = 0

    @classmethod
    def of(cls, view: FarmView, rules: Rules, tree: QuotaTree) -> "_Pass":
        holding = [lease for lease in view.leases if lease.status.holds_capacity]
        asks = view.asks or tuple(lease.ask for lease in view.leases)
        standing = Standing(tree, capacity_of(view), view.now_ms, view.past)
        running = [lease for lease in holding if not _is_leaving(lease)]
        moving = [lease for lease in holding if is_moving(lease)]
        standing.hold([*running, *moving])
        for lease in holding:
            if _is_leaving(lease) and not is_moving(lease):
                standing.leave(lease)
        future = Future.of(Space.of(view.hosts), view.now_ms, holding, asks, rules.power_weight)
        for lease in moving:
            future.keep(kept_for(lease, future))
        deadline_ms = view.now_ms + rules.preempt_notice_ms
        borrowers = {
            lease.id: lease
            for lease in running
            if rules.preempts
            and may_be_preempted(lease, view.now_ms, rules.min_run_ms)
            and end_of(lease, view.now_ms) > deadline_ms
        }
        return cls(view, rules, standing, future, running, borrowers, Defrag.of(view, rules))

    def run(self) -> Decisions:
        waiting = [lease for lease in self.view.leases if waits(lease)]
        done = {lease.id for lease in waiting if lease.room and self._due(lease)}
        waiting = [lease for lease in waiting if lease.id not in done]
        kept = self._kept([lease for lease in waiting if lease.ask.not_before_ms is not None])
        ids = {lease.id for lease in kept}
        self.line = Line((lease for lease in waiting if lease.id not in ids), self.standing)
        for lease in kept:
            self._consider(lease, is_kept=True)
            self.line.changed(lease)
        while (next_ := self.line.pop()) is not None:
            if self.rules.spare_gpus:
                self._spare(next_)
            self._consider(next_)
        return tuple(self.decisions)

    def _spare(self, lease: Lease) -> None:
        """Keep some GPUs from a lease that borrows, for who may come and is promised them; from nobody else."""
        is_promised = self.standing.is_promised(self.standing.path(lease)[0], amounts_of(lease.ask))
        is_patient = self.view.now_ms - lease.created_ms < self.rules.spare_patience_ms
        if is_sparing := is_patient and not is_promised:
            if not self.is_sparing:
                self.spare = self._find_spare()
        elif self.spare is not None:
            self.future.lift(self.spare)
            self.spare = None
            self.no_room.clear()
            self.in_vain.clear()
        self.is_sparing = is_sparing

    def _find_spare(self) -> Booking | None:
        """Keep the first room for GPUs that are promised to somebody who asks for nothing; None if nobody is."""
        granted = {each.lease_id for each in self.decisions if isinstance(each, Grant)}
        waiting = [each for each in self.view.leases if waits(each) and each.id not in granted]
        count = min(self.rules.spare_gpus, self.standing.idle_promise(waiting))
        if not count:
            return None
        ask = _gpus_of(self.standing.capacity, count, self.rules.spare_patience_ms)
        booking = self.future.find(SPARE, ask)
        if booking is not None:
            self.future.keep(booking)
        return booking

    def _due(self, lease: Lease) -> bool:
        """Give a lease the very room that others were told to make for it; False if it is no longer to be had.

        So no lease is ended for nothing, though whoever it was for may have borrowed room elsewhere since.
        """
        deadline_ms = self.view.now_ms + self.rules.preempt_notice_ms
        if self.standing.over_limit(lease, from_ms=deadline_ms) is not None:
            return False
        if self.standing.over_limit(lease) is None and self._start(lease, lease.room):
            return True
        booking = self.future.wait_for(lease, lease.room, deadline_ms)
        if booking is not None:
            self._make_room(lease, booking, booking.slices)
        return booking is not None

    def _kept(self, reserved: list[Lease]) -> list[Lease]:
        """Return the reservations, first time first, that are within all their guarantees at their time."""
        kept: list[Lease] = []
        for lease in sorted(reserved, key=lambda each: (each.ask.not_before_ms, each.created_ms, each.id)):
            at_ms = max(self.view.now_ms, lease.ask.not_before_ms or 0)
            then = Standing(self.standing.tree, self.standing.capacity, at_ms)
            then.hold(each for each in self.running if end_of(each, self.view.now_ms) > at_ms)
            then.hold(each for each in kept if (each.ask.not_before_ms or 0) + each.ask.duration_ms > at_ms)
            amounts = amounts_of(lease.ask)
            if all(then.is_promised(quota, amounts) for quota in then.path(lease)[:-1]):
                kept.append(lease)
        return kept

    def _consider(self, lease: Lease, *, is_kept: bool = False) -> None:
        now_ms = self.view.now_ms
        from_ms = max(now_ms, lease.ask.not_before_ms or 0)
        limit = None
        if from_ms == now_ms:
            commitment = self.standing.over_commitment(lease)
            if commitment is not None:
                self._wait(lease, explain.at_commitment(commitment))
                return
            limit = self.standing.over_limit(lease)
            if limit is None and self._start(lease):
                return
        if from_ms <= now_ms + self.rules.preempt_notice_ms and self._reclaim(lease, from_ms):
            return
        if limit is not None:
            self._wait(lease, explain.at_limit(limit, lease, self.standing))
        elif self.booked >= self.rules.bookings and not is_kept:
            self._wait(lease, explain.behind_many(lease, self.ahead))
        else:
            self._book(lease, from_ms)

    def _start(self, lease: Lease, room: tuple[Slice, ...] = ()) -> bool:
        """Start a lease if there is room beside what is booked."""
        what = _what(lease.ask)
        if lease.ask.duration_ms >= self.no_room.get(what, UNLIMITED):
            return False
        slices = self.future.start(lease, room)
        if slices is None and room:
            return False
        if slices is None:
            fits = self.future.space.fits(self.future.now, lease.ask)
            self.no_room[what] = lease.ask.duration_ms if fits else 0
            return False
        self.standing.take(lease)
        self.decisions.append(Grant(lease.id, slices))
        return True

    def _reclaim(self, lease: Lease, from_ms: int) -> bool:
        """Book the room that is on its way for a lease within its guarantee, or have it made; False if none can be."""
        if self.searches >= self.rules.reclaims or not self.standing.has_claim(lease):
            return False
        deadline_ms = self.view.now_ms + self.rules.preempt_notice_ms
        if self.standing.over_limit(lease) is not None:
            from_ms = deadline_ms  # what is on its way out touches the limit, or who is made to go
        if self.standing.over_limit(lease, from_ms=deadline_ms) is None:
            booking = self.future.find(lease.id, lease.ask, not_before_ms=from_ms)
            if booking is not None and booking.from_ms <= self.future.moment(deadline_ms):
                self._make_room(lease, booking, ())
                return True
        who = lease.tenant, lease.project, *_what(lease.ask)
        if lease.ask.duration_ms >= self.in_vain.get(who, UNLIMITED):
            return False
        victims = self._victims(lease, deadline_ms)
        if not victims:
            self.in_vain[who] = lease.ask.duration_ms
            return False
        for victim in victims:
            self._preempt(victim, lease, deadline_ms)
        booking = self.future.find(lease.id, lease.ask, not_before_ms=from_ms)
        if booking is not None:  # always: that is what they go for
            self._make_room(lease, booking, booking.slices)
        return True

    def _victims(self, lease: Lease, deadline_ms: int) -> Sequence[Lease]:
        at_ms = self.future.moment(deadline_ms)
        moments, states = self.future.all_through(at_ms, at_ms + lease.ask.duration_ms)
        reclaim = Reclaim(
            lease, self.standing, self.future.space, moments, states, deadline_ms, self.view.saved_ms
        )
        self.searches += 1
        return reclaim.victims(self.borrowers.values())

    def _preempt(self, victim: Lease, lease: Lease, deadline_ms: int) -> None:
        self.decisions.append(Preempt(victim.id, lease.id, deadline_ms, explain.preempted(lease, victim)))
        self.standing.give(victim)
        self.standing.leave(victim)
        self.line.changed(victim)
        del self.borrowers[victim.id]
        self.defrag.leave(victim)
        self.future.leave(victim.slices, deadline_ms, end_of(victim, self.view.now_ms))

    def _book(self, lease: Lease, from_ms: int) -> None:
        """Keep room for a lease from when the time limits of others leave some."""
        booking = self.future.find(lease.id, lease.ask, not_before_ms=from_ms)
        if booking is None:
            self._wait(lease, explain.never(lease))
            return
        if from_ms == self.view.now_ms and self._move(lease, booking):
            return
        if from_ms > self.view.now_ms:
            reason = explain.reserved(from_ms)
        else:
            reason = explain.no_room(lease, self.ahead, self.standing, self.future, self.spare)
        self.booked += 1
        self.ahead.append(lease)
        self.future.keep(booking)
        if from_ms == self.view.now_ms:  # what is reserved for a later time leaves the present alone
            self.standing.book(lease, booking.from_ms, is_due=False)
        self._wait(lease, reason, booking)

    def _move(self, lease: Lease, otherwise: Booking) -> bool:
        """Have a few others moved for a lease that would start much later otherwise; False if that is of no use."""
        if not self.defrag.left or self.searches >= self.rules.reclaims:
            return False
        self.searches += 1
        deadline_ms = self.view.now_ms + self.rules.preempt_notice_ms
        at_ms = self.future.moment(deadline_ms)
        relief = self.defrag.find(lease, otherwise, self.future, at_ms)
        if relief is None:
            return False
        for move in relief.moves:
            message = explain.moved(lease, move.lease)
            self.decisions.append(Preempt(move.lease.id, lease.id, deadline_ms, message, move.slices))
            self.future.leave(move.lease.slices, deadline_ms, end_of(move.lease, self.view.now_ms))
            self.future.keep(move.booking(at_ms))
            self.borrowers.pop(move.lease.id, None)
            self.defrag.leave(move.lease)
            self.defrag.left -= 1
        booking = Booking(lease.id, at_ms, at_ms + lease.ask.duration_ms, relief.slices)
        self._make_room(lease, booking, relief.slices)
        return True

    def _make_room(self, lease: Lease, booking: Booking, room: tuple[Slice, ...]) -> None:
        """Book what will soon be there. Where others are told to go for it, that room is remembered: see _due."""
        in_pieces = bool(self.rules.moves) and not self.standing.has_claim(lease)
        self.future.keep(booking)
        self.standing.book(lease, booking.from_ms, is_due=True)
        self._tell(lease, explain.room_is_made(booking.from_ms, in_pieces=in_pieces), room)

    def _wait(self, lease: Lease, reason: str, booking: Booking | None = None) -> None:
        self.place_in_line += 1
        self._tell(lease, explain.waiting(self.place_in_line, reason, booking))

    def _tell(self, lease: Lease, message: str, room: tuple[Slice, ...] = ()) -> None:
        if (message, room) != (lease.message, lease.room):
            self.decisions.append(Wait(lease.id, message, room, lease.expected_start))


def _gpus_of(capacity: Amounts, count: int, duration_ms: int) -> Ask:
    """Return an ask for whole GPUs with their part of the farm's CPUs and memory."""
    cpus = capacity.cpus * MILLI // capacity.milli_gpus
    memory_bytes = capacity.memory_bytes * MILLI // capacity.milli_gpus
    return Ask(Shape(count, MILLI), cpus, memory_bytes, duration_ms)


def _what(ask: Ask) -> tuple[object, ...]:
    """Return all of an ask on which its placement depends."""
    return ask.shape, ask.cpus, ask.memory_bytes, ask.gpu_model, ask.distinct_gpus


def _is_leaving(lease: Lease) -> bool:
    return lease.status is LeaseStatus.ENDING or lease.preempted_ms is not None
