"""The farm at a glance: operators see every host and lease, tenants their own leases and the totals."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloudfarm import troubles
from cloudfarm.clock import Clock
from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Lease, Slice
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.status import Event, LeaseStatus
from cloudfarm.domain.tenant import Role
from cloudfarm.errors import ConflictError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.usecases.access import Principal, in_unit, missing

TROUBLES_MS, MOST_TROUBLES = 86_400_000, 20


@dataclass(frozen=True, slots=True)
class Totals:
    """What the whole farm has and what is free."""

    hosts: int
    milli_gpus: int
    free_milli_gpus: int
    waiting_leases: int
    running_leases: int


@dataclass(frozen=True, slots=True)
class FarmStatus:
    """The farm at one moment."""

    totals: Totals
    leases: tuple[Lease, ...]
    """Open leases that the principal may see."""
    hosts: tuple[Host, ...]
    """For operators only."""
    held: tuple[Slice, ...]
    """Slices that hold capacity, for operators only."""
    steward_seen_ms: int | None
    """When the steward last looked at the farm."""
    steward_silent_ms: int | None
    """How long ago that was."""
    troubles: tuple[Event, ...]
    """What went wrong inside the farm within a day, newest first; for operators only."""


async def farm_status(store: Store, clock: Clock, principal: Principal) -> FarmStatus:
    """Return the farm's state."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        hosts = await uow.hosts()
        leases = await uow.leases.list(open_only=True)
        seen_ms = await uow.last_heartbeat_ms()
        told = (
            await uow.events.list(subject=troubles.SUBJECT, limit=MOST_TROUBLES)
            if principal.is_operator
            else ()
        )
    now_ms = clock.now_ms()
    held = [piece for lease in leases if lease.status.holds_capacity for piece in lease.slices]
    return FarmStatus(
        totals=_totals(hosts, leases, held),
        leases=tuple(lease for lease in leases if principal.sees(lease.tenant)),
        hosts=tuple(hosts) if principal.is_operator else (),
        held=tuple(held) if principal.is_operator else (),
        steward_seen_ms=seen_ms,
        steward_silent_ms=None if seen_ms is None else max(0, now_ms - seen_ms),
        troubles=tuple(
            event for event in told if event.kind == troubles.KIND and now_ms - event.at_ms < TROUBLES_MS
        ),
    )


async def cordon_host(
    store: Store, clock: Clock, principal: Principal, host_id: str, *, cordoned: bool
) -> None:
    """Keep new slices off a host, or let them on it again; what runs there is left alone.

    Raises:
        NotFoundError: if there is no such host.
    """
    principal.need(Role.OPERATOR)

    async def work(uow: UnitOfWork) -> None:
        host = await _find_host(uow, host_id)
        if host.cordoned is not cordoned:
            await uow.set_cordoned(host.id, cordoned=cordoned)
            kind = "host.cordoned" if cordoned else "host.uncordoned"
            await uow.events.append(Event(clock.now_ms(), kind, host.id, None, principal.actor))

    await in_unit(store, work)


async def forget_host(store: Store, clock: Clock, principal: Principal, host_id: str) -> None:
    """Remove a host that will not come back; one that is there after all is known again at once.

    Raises:
        NotFoundError: if there is no such host.
        ConflictError: while a lease has a slice on it.
    """
    principal.need(Role.OPERATOR)

    async def work(uow: UnitOfWork) -> None:
        host = await _find_host(uow, host_id)
        for lease in await uow.leases.list(open_only=True):
            if any(piece.host == host.id for piece in lease.slices):
                raise ConflictError(f"lease {lease.id} has a slice on host {host.id}; it must end first")
        await uow.forget_host(host.id)
        await uow.events.append(Event(clock.now_ms(), "host.forgotten", host.id, None, principal.actor))

    await in_unit(store, work)


async def _find_host(uow: UnitOfWork, host_id: str) -> Host:
    found = next((host for host in await uow.hosts() if host.id == host_id), None)
    if found is None:
        raise missing("host", host_id)
    return found


async def is_alive(store: Store) -> bool:
    """Whether the store answers; a store that does not raises."""
    async with store.begin(write=False) as uow:
        await uow.last_heartbeat_ms()
    return True


def _totals(hosts: Sequence[Host], leases: Sequence[Lease], held: Sequence[Slice]) -> Totals:
    total = sum(len(host.gpus) for host in hosts) * MILLI
    return Totals(
        hosts=len(hosts),
        milli_gpus=total,
        free_milli_gpus=total - sum(piece.milli_gpus for piece in held),
        waiting_leases=sum(lease.status is LeaseStatus.WAITING for lease in leases),
        running_leases=sum(lease.status.holds_capacity for lease in leases),
    )
