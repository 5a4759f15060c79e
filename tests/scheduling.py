"""What tests of the queue share: small farms, and a naive second opinion on what is free when.

The second opinion uses the plain placement of ``domain/``, moment by moment, and nothing of ``scheduler/`` but what it
is there to judge.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, Lease, LeaseKind, Slice
from cloudfarm.domain.quantities import GIB, parse_shape
from cloudfarm.domain.quota import EVERYTHING, NOTHING, UNLIMITED, Amounts, Quota, QuotaTree, quota_of
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.future import Booking, end_of
from cloudfarm.scheduler.queue import _Pass
from cloudfarm.scheduler.rules import Rules
from cloudfarm.steward.view import Decisions, FarmView, Grant, Preempt, Wait
from cloudfarm.testing.fake_farm import make_host
from cloudfarm.testing.naive_placement import Rooms, fits

NOW = 1_700_000_040_000
"""A whole minute."""
MINUTE = 60_000
HOUR = 60 * MINUTE
RULES = Rules(min_run_ms=10 * MINUTE, preempt_notice_ms=MINUTE)


def gpus(number: float, *, cpus: int | None = None, gib: int | None = None) -> Amounts:
    """Return so many GPUs, and with each as many CPUs and as much memory as any test needs, or what is given."""
    return Amounts(
        round(number * 1000),
        round(number * 100) if cpus is None else cpus,
        round(number * 1000) * GIB if gib is None else gib * GIB,
    )


def quota(
    id_: str,
    guarantee: float = 0,
    *,
    below: str | None = None,
    limit: float | None = None,
    weight: int = 1,
    committed_h: float | None = None,
) -> Quota:
    """Return a quota in GPUs; a project stands below its tenant."""
    tenant, slash, _ = id_.partition("/")
    return Quota(
        id_,
        tenant if slash else below,
        gpus(guarantee) if guarantee else NOTHING,
        EVERYTHING if limit is None else gpus(limit),
        weight,
        UNLIMITED if committed_h is None else int(committed_h * HOUR * 1000),
    )


def tree(*quotas: Quota) -> QuotaTree:
    """Return the tree of some quotas."""
    return QuotaTree.of(quotas)


def asks(shape: str, minutes: float = 60, *, cpus: int = 1, **more) -> Ask:
    """Return an ask of little beside its GPUs."""
    return Ask(parse_shape(shape), cpus, GIB, round(minutes * MINUTE), **more)


def waiting(id_: str, shape: str = "1", minutes: float = 60, *, asked_ms: int = NOW - 1, **more) -> Lease:
    """Return a lease that waits; the tenant is the letters of its id, unless it is named."""
    tenant = more.pop("tenant", id_.rstrip("0123456789"))
    project = more.pop("project", "")
    return Lease(
        id_,
        tenant,
        "kim",
        id_,
        LeaseKind.MANUAL,
        asks(shape, minutes, **more),
        created_ms=asked_ms,
        project=project,
    )


def running(
    id_: str,
    where: Mapping[str, Sequence[int]] | str,
    minutes: float = 60,
    *,
    milli: int = 1000,
    ran: float = 30,
    cpus: int = 1,
    **more,
) -> Lease:
    """Return a lease that runs on some GPUs of some hosts (``"h0:01"``), for so many minutes more."""
    if isinstance(where, str):
        host, _, digits = where.partition(":")
        where = {host: [int(digit) for digit in digits]}
    slices = tuple(
        Slice(id_, index, host, tuple(on), milli * len(on), cpus, GIB)
        for index, (host, on) in enumerate(where.items())
    )
    each = len(slices[0].gpu_indices) * milli / 1000
    fields = {name: more.pop(name) for name in ("status", "preempted_ms", "target") if name in more}
    return replace(
        waiting(id_, f"{len(slices)}x{each:g}", ran + minutes, cpus=cpus, **more),
        **{"status": LeaseStatus.ACTIVE, **fields},
        slices=slices,
        started_ms=NOW - round(ran * MINUTE),
        ends_ms=NOW + round(minutes * MINUTE),
    )


def view(hosts: Iterable[Host] | str, *leases: Lease, **more) -> FarmView:
    """Return a view; hosts may be written as their numbers of GPUs: ``"24"`` is h0 with two and h1 with four."""
    if isinstance(hosts, str):
        hosts = [
            make_host(f"h{number}", int(count), cpus=64, memory_bytes=512 * GIB)
            for number, count in enumerate(hosts)
        ]
    return FarmView(
        now_ms=more.pop("now_ms", NOW),
        tenants={},
        hosts=tuple(hosts),
        leases=leases,
        jobs=(),
        services=(),
        **more,
    )


def started(decisions: Decisions) -> list[str]:
    """Return who starts, in order."""
    return [each.lease_id for each in decisions if isinstance(each, Grant)]


def preempted(decisions: Decisions) -> set[str]:
    """Return who is told to go."""
    return {each.lease_id for each in decisions if isinstance(each, Preempt)}


def messages(decisions: Decisions) -> Mapping[str, str]:
    """Return what the waiting leases are told."""
    return {each.lease_id: each.message for each in decisions if isinstance(each, Wait)}


def decide_and_book(view_: FarmView, rules: Rules, quotas: QuotaTree) -> tuple[Decisions, Sequence[Booking]]:
    """Decide, and return the bookings as well; that of lease ``SPARE`` is what is kept from borrowers."""
    one = _Pass.of(view_, rules, quotas)
    return one.run(), one.future.bookings


# The second opinion


def held_by_quota(leases: Iterable[Lease], quotas: QuotaTree) -> Mapping[str, Amounts]:
    """Return what each quota holds."""
    held: dict[str, Amounts] = {}
    for lease in leases:
        count = lease.ask.shape.count
        amounts = Amounts(lease.milli_gpus, count * lease.ask.cpus, count * lease.ask.memory_bytes)
        for each in quotas.path(quota_of(lease.tenant, lease.project)):
            held[each.id] = held.get(each.id, NOTHING) + amounts
    return held


def assert_nothing_is_shared_out_twice(hosts: Iterable[Host], leases: Iterable[Lease]) -> None:
    """Check GPUs, CPUs and memory of every host, and that gangs are whole."""
    by_id = {host.id: host for host in hosts}
    milli: Counter[tuple[str, int]] = Counter()
    cpus: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for lease in leases:
        assert lease.status.holds_capacity or not lease.slices
        if not lease.status.holds_capacity:
            continue
        ask = lease.ask
        assert [piece.index for piece in lease.slices] == list(range(ask.shape.count))
        used = [(piece.host, index) for piece in lease.slices for index in piece.gpu_indices]
        assert len(set(used)) == len(used) or not ask.distinct_gpus
        for piece in lease.slices:
            assert (piece.milli_gpus, piece.cpus) == (ask.shape.milli_gpus, ask.cpus)
            assert len(set(piece.gpu_indices)) == ask.shape.gpus_per_slice
            models = {gpu.index: gpu.model for gpu in by_id[piece.host].gpus}
            for index in piece.gpu_indices:
                assert ask.gpu_model in (None, models[index])
                milli[piece.host, index] += piece.milli_gpus // len(piece.gpu_indices)
            cpus[piece.host] += piece.cpus
            memory[piece.host] += piece.memory_bytes
    assert all(each <= 1000 for each in milli.values())
    assert all(each <= by_id[host].cpus for host, each in cpus.items())
    assert all(each <= by_id[host].memory_bytes for host, each in memory.items())


def _held_at(
    at_ms: int, view_: FarmView, starts: Iterable[Grant], bookings: Iterable[Booking]
) -> Iterator[Slice]:
    asked = {lease.id: lease.ask for lease in view_.leases}
    for lease in view_.leases:
        if lease.status.holds_capacity and at_ms < end_of(lease, view_.now_ms):
            yield from lease.slices
    for grant in starts:
        if at_ms < view_.now_ms + asked[grant.lease_id].duration_ms:
            yield from grant.slices
    for booking in bookings:
        if booking.from_ms <= at_ms < booking.until_ms:
            yield from booking.slices


def room_for(
    ask: Ask,
    view_: FarmView,
    starts: Sequence[Grant],
    bookings: Sequence[Booking],
    from_ms: int | None = None,
) -> bool:
    """Return whether an ask fits all through its time beside what runs, starts and is booked."""
    from_ms = view_.now_ms if from_ms is None else from_ms
    until_ms = from_ms + ask.duration_ms
    moments = {from_ms, *(each.from_ms for each in bookings if from_ms < each.from_ms < until_ms)}
    room: Rooms | None = None
    for moment in moments:  # room only shrinks where a booking begins
        rooms = Rooms.of(view_.hosts, _held_at(moment, view_, starts, bookings))
        if room is None:
            room = rooms
        else:
            room.shrink(rooms)
    return room is not None and fits(room, ask)


def assert_bookings_hold(view_: FarmView, starts: Sequence[Grant], bookings: Sequence[Booking]) -> None:
    """Check that all that runs, starts and is booked goes together, whenever something is booked to start."""
    for booking in bookings:
        rooms = Rooms.of(view_.hosts, _held_at(booking.from_ms, view_, starts, bookings))
        for room in rooms.by_host.values():
            assert min([0, *room.free_milli]) >= 0
            assert room.free_cpus >= 0
            assert room.free_memory_bytes >= 0
