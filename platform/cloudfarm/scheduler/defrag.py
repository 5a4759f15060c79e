"""Defragmentation: a few running jobs move so that a lease starts for which there is room only in pieces.

Off unless ``Rules.moves`` says otherwise. Who moves is told, stopped and queued anew like a preempted lease, with the
same refund, but has its next place already: that is kept for it, so it goes on as soon as it has stopped. It costs a
restart, so only jobs move that have saved work, nobody twice, few at a time and few an hour; and only if the lease that
starts so much sooner wins more GPU-time by it than they lose.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cloudfarm.domain.lease import Lease, LeaseKind, Slice
from cloudfarm.domain.status import LeaseStatus, Target
from cloudfarm.scheduler.future import Booking, Future, end_of
from cloudfarm.scheduler.packer import request_of
from cloudfarm.scheduler.packing.moves import Movable, Pool, Stuck, make_room
from cloudfarm.scheduler.packing.shapes import Placement
from cloudfarm.scheduler.reclaim import lost_work, may_be_preempted
from cloudfarm.scheduler.rules import Rules
from cloudfarm.scheduler.space import State
from cloudfarm.steward.view import FarmView

HOUR_MS = 3_600_000
SHARE_AN_HOUR = 0.01
"""Of the leases that run so many may be restarted within an hour; in a small farm as many as move at once."""
RESTART_MS = 60_000
"""What a move is taken to cost beside the work that is lost."""


@dataclass(frozen=True, slots=True)
class Move:
    """A lease that runs, and where it goes on."""

    lease: Lease
    slices: tuple[Slice, ...]

    def booking(self, at_ms: int) -> Booking:
        """Return the room that is kept for it from a moment on, for as long as it may need it at most."""
        return Booking(self.lease.id, at_ms, at_ms + self.lease.ask.duration_ms, self.slices)


@dataclass(frozen=True, slots=True)
class Relief:
    """Where a stuck lease starts once others have moved."""

    slices: tuple[Slice, ...]
    moves: tuple[Move, ...]


def is_moving(lease: Lease) -> bool:
    """Whether a lease is on its way to another place: it stays, as far as quotas are concerned."""
    return (
        lease.status.holds_capacity
        and lease.target is Target.RUN
        and lease.preempted_ms is not None
        and bool(lease.room)
    )


def kept_for(lease: Lease, future: Future) -> Booking:
    """Return the room that is kept for a lease that is moving."""
    at_ms = max(future.now_ms, lease.preempted_ms or 0)
    return Move(lease, lease.room).booking(future.moment(at_ms))


def may_be_moved(lease: Lease, view: FarmView, rules: Rules) -> bool:
    """Whether a lease is a job that has run long enough, has saved work and was never restarted."""
    return (
        lease.kind is LeaseKind.JOB
        and may_be_preempted(lease, view.now_ms, rules.min_run_ms)
        and lease.segment <= 1
        and view.saved_ms.get(lease.id, 0) > (lease.started_ms or 0)
        and end_of(lease, view.now_ms) > view.now_ms + rules.preempt_notice_ms
    )


@dataclass(slots=True)
class Defrag:
    """Who may still be moved in one pass over the queue."""

    movable: dict[str, Lease]
    """By id."""
    left: int
    """How many of them may still be told to move."""
    saved_ms: Mapping[str, int]
    """When each lease last saved its work."""

    @classmethod
    def of(cls, view: FarmView, rules: Rules) -> "Defrag":
        """Return what the rules allow: so many on the move at once, so many an hour, and nobody twice."""
        if not rules.moves:
            return cls({}, 0, view.saved_ms)
        holding = [lease for lease in view.leases if lease.status.holds_capacity]
        moving = sum(map(is_moving, holding))
        recent = sum(is_moving(lease) or _was_restarted(lease, view.now_ms - HOUR_MS) for lease in holding)
        hourly = max(rules.moves, int(SHARE_AN_HOUR * len(holding)))
        movable = {lease.id: lease for lease in holding if may_be_moved(lease, view, rules)}
        return cls(movable, max(0, min(rules.moves - moving, hourly - recent)), view.saved_ms)

    def find(self, lease: Lease, otherwise: Booking, future: Future, at_ms: int) -> Relief | None:
        """Return who moves where so that a lease can start at a moment; None if nobody can, or it is not worth it.

        Args:
            lease: that is stuck.
            otherwise: when it would start.
            future: of the farm; left as it was.
            at_ms: when those that move have stopped.
        """
        gain = lease.milli_gpus * (otherwise.from_ms - at_ms)
        if gain <= 0 or not self.left or not self.movable:
            return None
        longest_ms = max(each.ask.duration_ms for each in (lease, *self.movable.values()))
        state = future.free(at_ms, at_ms + longest_ms)
        packer = future.packer
        allocator = packer.at(state)
        pool = Pool(*allocator.free_gpu.shape)
        for each in self.movable.values():
            placements = _placements(each, future, state, at_ms + longest_ms)
            loss = lost_work(each, at_ms, self.saved_ms) + each.milli_gpus * RESTART_MS
            if placements and loss < gain:
                pool.add(Movable(each.id, placements, loss, each.ask.distinct_gpus))
        stuck = Stuck(request_of(lease.ask), lease.ask.shape.count, lease.ask.distinct_gpus)
        plan = make_room(allocator, stuck, pool, self.left)
        if plan is None or sum(each.loss for each, _ in plan.moved) >= gain:
            return None
        moves = [(self.movable[each.id], to) for each, to in plan.moved]
        return Relief(
            packer.slices(lease.id, lease.ask, plan.placed),
            tuple(Move(each, packer.slices(each.id, each.ask, to)) for each, to in moves),
        )

    def leave(self, lease: Lease) -> None:
        """Note that a lease is told to go, or to move."""
        self.movable.pop(lease.id, None)


def _placements(lease: Lease, future: Future, state: State, until_ms: int) -> tuple[Placement, ...]:
    """Return where a lease lies; nothing if more is held or booked there than the host offers.

    So nothing moves off a closed host, which offers nothing, nor out of room that somebody else has from later on. The
    state is the least that is free until a moment: where bookings take that much only after the lease's own end, its
    going makes no room for longer than that.
    """
    space, request = future.space, request_of(lease.ask)
    later = future.free(max(future.now_ms, end_of(lease, future.now_ms)), until_ms)
    gone = state.copy()
    space.give(gone, lease.slices)
    placed: list[Placement] = []
    for piece in lease.slices:
        row = space.rows.get(piece.host)
        if row is None or (state[row] < 0).any() or (later[row] < gone[row]).any():
            return ()
        placed.append(Placement(row, tuple(space.columns[row][gpu] for gpu in piece.gpu_indices), request))
    return tuple(placed)


def _was_restarted(lease: Lease, since_ms: int) -> bool:
    if lease.started_ms is None:
        return lease.status is LeaseStatus.STARTING and lease.segment > 0
    return lease.segment > 1 and lease.started_ms > since_ms
