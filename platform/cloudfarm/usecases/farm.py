"""The farm at a glance: operators see every host and lease, tenants their own leases and the totals."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloudfarm.clock import Clock
from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Lease, Slice
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import Role
from cloudfarm.ports import Store
from cloudfarm.usecases.access import Principal


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


async def farm_status(store: Store, clock: Clock, principal: Principal) -> FarmStatus:
    """Return the farm's state."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        hosts = await uow.hosts()
        leases = await uow.leases.list(open_only=True)
        seen_ms = await uow.last_heartbeat_ms()
    held = [piece for lease in leases if lease.status.holds_capacity for piece in lease.slices]
    return FarmStatus(
        totals=_totals(hosts, leases, held),
        leases=tuple(lease for lease in leases if principal.sees(lease.tenant)),
        hosts=tuple(hosts) if principal.is_operator else (),
        held=tuple(held) if principal.is_operator else (),
        steward_seen_ms=seen_ms,
        steward_silent_ms=None if seen_ms is None else max(0, clock.now_ms() - seen_ms),
    )


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
