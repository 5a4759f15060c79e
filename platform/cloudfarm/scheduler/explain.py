"""Why a lease waits, in one sentence for its owner: what binds, who is ahead, what would start now, and when."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cloudfarm.domain.lease import Ask, Lease
from cloudfarm.domain.quantities import GIB, MILLI, Shape
from cloudfarm.domain.quota import Quota
from cloudfarm.scheduler.future import Booking, Future
from cloudfarm.scheduler.standing import Standing, amounts_of

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
EXACT_PLACES = 100
"""Places after this are told to two digits: each start would change the message of everybody behind."""


def waiting(number: int, reason: str, booking: Booking | None) -> str:
    """Return the whole sentence."""
    when = f"; starts by {clock(booking.from_ms)} at the latest" if booking is not None else ""
    return f"place {place(number)} in the queue: {reason}{when}"


def place(number: int) -> str:
    """Return a place in the queue, exact as far as anybody can make use of that."""
    if number <= EXACT_PLACES:
        return str(number)
    step = 10 ** (len(str(number)) - 2)
    return f"{number // step * step} or so"


def at_limit(quota: Quota, lease: Lease, standing: Standing) -> str:
    """Return why a limit holds a lease back, by the first resource of which too little is left."""
    account, limit, more = standing.accounts[quota.id], quota.limit, amounts_of(lease.ask)
    held = account.held + account.leaving
    if held.milli_gpus + more.milli_gpus > limit.milli_gpus:
        return f"{_name(quota)} holds {_gpus(held.milli_gpus)} of at most {_gpus(limit.milli_gpus)}"
    if held.cpus + more.cpus > limit.cpus:
        return f"{_name(quota)} holds {held.cpus} of at most {limit.cpus} CPUs"
    if held.memory_bytes + more.memory_bytes > limit.memory_bytes:
        return f"{_name(quota)} holds {held.memory_bytes / GIB:g} of at most {limit.memory_bytes / GIB:g} GiB"
    return f"{_name(quota)} holds {_gpus(held.milli_gpus)}, and the rest of its limit is kept for what came first"


def at_commitment(quota: Quota) -> str:
    """Return why a bound on committed time holds a lease back."""
    hours = quota.committed_milli_gpu_ms / MILLI / HOUR_MS
    return f"{_name(quota)} may have {hours:g} GPU-hours of borrowed time running; a shorter lease would start sooner"


def behind_many(lease: Lease, ahead: Sequence[Lease]) -> str:
    """Return why nothing is booked for a lease far behind."""
    before = f", {_called(ahead[0], lease)} before all" if ahead else ""
    return f"{place(len(ahead))} leases for which room is kept come first{before}"


def never(lease: Lease) -> str:
    """Return that no host which is there and open can hold a lease."""
    return f"{ask_text(lease.ask)} is more than the hosts have that are there and open"


def reserved(from_ms: int) -> str:
    """Return that a lease waits for its own time."""
    return f"it is reserved for {clock(from_ms)}"


def room_is_made(at_ms: int, *, in_pieces: bool) -> str:
    """Return that others make room for a lease: those that borrow what it is promised, or that are moved for it."""
    why = "what is free is in pieces" if in_pieces else "what it is promised is lent out"
    return f"{why}; room is made for it, and it starts by {clock(at_ms)}"


def preempted(by: Lease, victim: Lease) -> str:
    """Return what the owner of a preempted lease is told; nothing of another tenant's, but that it has a claim."""
    return f"what it borrows is taken back for {_called(by, victim)}, which is within its guarantee"


def moved(by: Lease, victim: Lease) -> str:
    """Return what the owner of a lease is told that is moved."""
    return f"it is moved to make room for {_called(by, victim)}, and its next place is kept for it"


def no_room(
    lease: Lease, ahead: Sequence[Lease], standing: Standing, future: Future, spare: Booking | None = None
) -> str:
    """Return why there is no room, who comes first and why, and what would start now."""
    ask = lease.ask
    parts = [f"{ask_text(ask)} is not free"]
    if spare is not None and future.space.fits(future.now, ask):
        gpus, them = (
            ("1 GPU is", "it") if len(spare.slices) == 1 else (f"{len(spare.slices)} GPUs are", "them")
        )
        parts = [f"{gpus} kept free for tenants who are promised {them}"]
    end_ms = future.until(ask)
    if end_ms is not None:
        parts = ["what is free is kept for others"]
    if ahead:
        parts.append(f"{_called(ahead[0], lease)} is ahead, {_why_first(ahead[0], lease, standing)}")
    if end_ms is not None and end_ms - future.now_ms >= MINUTE_MS:
        parts.append(f"for up to {(end_ms - future.now_ms) // MINUTE_MS} minutes it would start now")
    smaller = smaller_shape(ask, future)
    if smaller is not None:
        parts.append(f"{smaller} would start now")
    return "; ".join(parts)


def _called(other: Lease, lease: Lease) -> str:
    """Return how one lease is called to the owner of another: what is not his tenant's stays without a name."""
    return f"lease {other.id}" if other.tenant == lease.tenant else "another tenant's lease"


def _why_first(first: Lease, lease: Lease, standing: Standing) -> str:
    """Return why one lease comes before another, at the quotas where their paths part."""
    if first.ask.not_before_ms is not None:
        return "which is reserved"
    for one, other in zip(standing.path(first), standing.path(lease), strict=False):
        if one.id != other.id:
            guarantee = standing.accounts[one.id].held.within(one.guarantee)
            if guarantee and not standing.accounts[other.id].held.within(other.guarantee):
                return "since its quota is within the guarantee"
            return "since it is its quota's turn"
    return "which has priority" if first.ask.priority > lease.ask.priority else "which came first"


def smaller_shape(ask: Ask, future: Future) -> Shape | None:
    """Return the largest smaller shape that would start now: fewer slices, or fewer GPUs, or a share of one."""
    free = future.free(future.now_ms, future.now_ms + ask.duration_ms)

    def most(below: int, shape: Callable[[int], Shape]) -> Shape | None:
        # Whatever holds a shape holds all that are smaller in the same way.
        count = bisect_left(
            range(1, below),
            x=True,
            key=lambda number: not future.space.fits(free, replace(ask, shape=shape(number))),
        )
        return shape(count) if count else None

    milli = ask.shape.milli_gpus
    fewer = most(ask.shape.count, lambda count: Shape(count, milli))
    if fewer is not None or not milli:
        return fewer
    return most(-(-milli // MILLI), lambda gpus: Shape(1, gpus * MILLI)) or most(
        min(milli, MILLI), lambda share: Shape(1, share)
    )


def ask_text(ask: Ask) -> str:
    """Return an ask as a person would say it."""
    model = f" {ask.gpu_model}" if ask.gpu_model else ""
    return f"{ask.shape}{model} GPU with {ask.cpus} CPUs and {ask.memory_bytes / GIB:g} GiB a slice"


def clock(at_ms: int) -> str:
    """Return a moment in UTC, to the minute (rounded up: nothing promised comes sooner than it says)."""
    moment = datetime.fromtimestamp(-(-at_ms // MINUTE_MS) * 60, UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _name(quota: Quota) -> str:
    return quota.id.removesuffix("/") or "the farm"


def _gpus(milli: int) -> str:
    return f"{milli / MILLI:g} GPU"
