"""Leases: request, show, extend, release."""

import re
from collections.abc import Sequence
from dataclasses import replace

from cloudfarm.clock import Clock, iso
from cloudfarm.domain.ids import new_id
from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.quantities import MAX_HOURS, parse_hours
from cloudfarm.domain.status import Event, LeaseStatus, Target
from cloudfarm.domain.tenant import Role
from cloudfarm.errors import AlreadyExistsError, ConflictError, InvalidInputError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.settings import Settings
from cloudfarm.usecases.access import Principal, in_unit, owned
from cloudfarm.usecases.asks import build_project, check_ask

HOUR_MS = 3_600_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


async def request_lease(
    store: Store,
    clock: Clock,
    settings: Settings,
    principal: Principal,
    ask: Ask,
    *,
    name: str | None = None,
    project: str | None = None,
) -> Lease:
    """Queue a lease that its owner holds by hand.

    Raises:
        LimitExceededError, ImpossibleShapeError, TooManyError: see ``asks.check_ask``.
        AlreadyExistsError: if an open lease of the tenant has the name.
    """
    principal.need(Role.MEMBER)
    tenant = principal.home
    within = build_project(project)
    if name is not None and _NAME.fullmatch(name) is None:
        raise InvalidInputError(
            "name: 1 to 63 letters, digits, '_', '.' and '-', beginning with a letter or digit"
        )

    async def work(uow: UnitOfWork) -> Lease:
        await check_ask(uow, settings, tenant, ask, within)
        if name is not None and any(name in (open_.name, open_.id) for open_ in await _open(uow, tenant)):
            raise AlreadyExistsError(f"an open lease is named {name} already")
        return await add_lease(uow, clock, principal, ask, kind=LeaseKind.MANUAL, name=name, project=within)

    return await in_unit(store, work)


async def add_lease(
    uow: UnitOfWork,
    clock: Clock,
    principal: Principal,
    ask: Ask,
    *,
    kind: LeaseKind,
    name: str | None,
    project: str,
) -> Lease:
    """Store a new waiting lease with its event, inside the caller's transaction."""
    lease_id = new_id("l")
    lease = Lease(
        id=lease_id,
        tenant=principal.home,
        owner=principal.user,
        name=name or lease_id,
        kind=kind,
        ask=ask,
        created_ms=clock.now_ms(),
        message="queued",
        project=project,
    )
    await uow.leases.add(lease)
    message = f"{ask.shape} GPU for {ask.duration_ms / HOUR_MS:g} h"
    if ask.not_before_ms is not None:
        message += f", from {iso(ask.not_before_ms)} on"
    await uow.events.append(
        Event(lease.created_ms, "lease.requested", lease.id, lease.tenant, principal.actor, message),
    )
    return lease


async def get_lease(store: Store, principal: Principal, lease_id: str) -> Lease:
    """Return a lease."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return await owned(uow.leases.get, lease_id, principal, "lease")


async def list_leases(
    store: Store,
    principal: Principal,
    *,
    tenant: str | None = None,
    open_only: bool = False,
    limit: int | None = None,
) -> Sequence[Lease]:
    """Return leases oldest first."""
    principal.need(Role.VIEWER)
    scope = principal.scope(tenant)
    async with store.begin(write=False) as uow:
        return await uow.leases.list(tenant=scope, open_only=open_only, limit=limit)


async def extend_lease(
    store: Store, clock: Clock, principal: Principal, lease_id: str, *, hours: str | float
) -> Lease:
    """Move a lease's time limit further away.

    Raises:
        ConflictError: if the lease is ending, or its nodes are being drained (Ray cannot take a drain back).
    """
    principal.need(Role.MEMBER)
    principal.home  # noqa: B018 - refuses operators: time is the tenant's to ask for
    more_ms = parse_hours(hours)

    async def work(uow: UnitOfWork) -> Lease:
        lease = await owned(uow.leases.get, lease_id, principal, "lease")
        _refuse_ended(lease)
        if lease.noticed_ms is not None:
            raise ConflictError(
                f"lease {lease.id} was given notice and its nodes are being drained; request a new one"
            )
        duration_ms = lease.ask.duration_ms + more_ms
        if duration_ms > MAX_HOURS * HOUR_MS:
            raise InvalidInputError(f"a lease lasts at most {MAX_HOURS} hours")
        lease = replace(
            lease,
            ask=replace(lease.ask, duration_ms=duration_ms),
            ends_ms=None if lease.ends_ms is None else lease.ends_ms + more_ms,
        )
        await uow.leases.update(lease)
        message = f"by {more_ms / HOUR_MS:g} h"
        await uow.events.append(
            Event(clock.now_ms(), "lease.extended", lease.id, lease.tenant, principal.actor, message),
        )
        return await uow.leases.get(lease.id)

    return await in_unit(store, work)


async def release_lease(store: Store, clock: Clock, principal: Principal, lease_id: str) -> Lease:
    """Let a lease end now; what runs in it is stopped. An operator may do this to any lease.

    Raises:
        ConflictError: if it has ended, or belongs to a service (which would only ask for the next one).
    """
    principal.need(Role.MEMBER)

    async def work(uow: UnitOfWork) -> Lease:
        lease = await owned(uow.leases.get, lease_id, principal, "lease")
        if lease.target is Target.END and lease.status is not LeaseStatus.ENDED:
            return lease
        _refuse_ended(lease)
        if lease.kind is LeaseKind.SERVICE:
            raise ConflictError(f"lease {lease.id} belongs to the service {lease.name}; delete the service")
        await uow.leases.update(replace(lease, target=Target.END))
        await uow.events.append(
            Event(clock.now_ms(), "lease.released", lease.id, lease.tenant, principal.actor)
        )
        return await uow.leases.get(lease.id)

    return await in_unit(store, work)


async def held_lease(uow: UnitOfWork, principal: Principal, name: str) -> Lease:
    """Return the principal's own lease of that id or name, for a job to run in.

    Raises:
        NotFoundError: if the tenant has no such lease.
        ConflictError: if it is over, or was made for one job or service and ends with it.
    """
    tenant = principal.home
    for lease in await _open(uow, tenant):
        if name in (lease.id, lease.name) and lease.kind is LeaseKind.MANUAL:
            break
    else:
        lease = await owned(uow.leases.get, name, principal, "lease")
        _refuse_ended(lease)
        raise ConflictError(f"lease {lease.id} was made for the {lease.kind} {lease.name} and ends with it")
    if lease.target is Target.END or lease.status is LeaseStatus.ENDING:
        raise ConflictError(f"lease {lease.id} is ending")
    return lease


async def _open(uow: UnitOfWork, tenant: str) -> Sequence[Lease]:
    return await uow.leases.list(tenant=tenant, open_only=True)


def _refuse_ended(lease: Lease) -> None:
    if lease.status is LeaseStatus.ENDED:
        raise ConflictError(f"lease {lease.id} has ended")
    if lease.status is LeaseStatus.ENDING or lease.target is Target.END:
        raise ConflictError(f"lease {lease.id} is ending")
