"""Tenants: operators make and change them."""

from collections.abc import Sequence
from dataclasses import replace
from types import EllipsisType

from cloudfarm.clock import Clock
from cloudfarm.domain.quantities import parse_gpus
from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import Role, Tenant, check_slug
from cloudfarm.errors import AlreadyExistsError, ConflictError, InvalidInputError, NotFoundError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.usecases.access import Principal, in_unit, is_identifier, missing
from cloudfarm.usecases.limits import checked_limit

MAX_TITLE = 200


async def create_tenant(
    store: Store,
    clock: Clock,
    principal: Principal,
    *,
    slug: str,
    title: str = "",
    limit_gpus: str | float | None = None,
) -> Tenant:
    """Make a tenant.

    Raises:
        AlreadyExistsError: if the slug is taken, by a programme of the quotas too.
    """
    principal.need(Role.OPERATOR)
    tenant = Tenant(
        id=check_slug(slug, what="tenant"),
        title=_title(title or slug),
        created_ms=clock.now_ms(),
        limit_milli_gpus=None if limit_gpus is None else parse_gpus(limit_gpus),
    )

    async def work(uow: UnitOfWork) -> Tenant:
        if any(quota.parent == tenant.id and not quota.is_project for quota in await uow.quotas.list()):
            raise AlreadyExistsError(f"a programme of the quotas is named {tenant.id} already")
        await uow.tenants.add(tenant)
        await uow.events.append(
            Event(tenant.created_ms, "tenant.created", tenant.id, tenant.id, principal.actor)
        )
        return tenant

    return await in_unit(store, work)


async def list_tenants(store: Store, principal: Principal) -> Sequence[Tenant]:
    """Return the tenants that the principal may see: all for an operator, else its own."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return [tenant for tenant in await uow.tenants.list() if principal.sees(tenant.id)]


async def get_tenant(store: Store, principal: Principal, slug: str) -> Tenant:
    """Return a tenant."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return await find_tenant(uow, principal, slug)


async def update_tenant(
    store: Store,
    clock: Clock,
    principal: Principal,
    slug: str,
    *,
    title: str | None = None,
    limit_gpus: str | float | None = None,
    limit_tokens_per_month: int | EllipsisType | None = ...,
    closed: bool | None = None,
) -> Tenant:
    """Change a tenant's title or limits, or close it (its tokens stop working) or open it again.

    A lower limit takes nothing away from leases that run; it holds back those that wait. A limit of tokens is lifted
    by None, and left as it is by ``...``.

    Raises:
        ConflictError: if a tenant with open leases is to be closed.
    """
    principal.need(Role.OPERATOR)

    async def work(uow: UnitOfWork) -> Tenant:
        tenant = await find_tenant(uow, principal, slug)
        if title is not None:
            tenant = replace(tenant, title=_title(title))
        if limit_gpus is not None:
            tenant = replace(tenant, limit_milli_gpus=parse_gpus(limit_gpus))
        if limit_tokens_per_month is not ...:
            tokens = checked_limit(limit_tokens_per_month, what="limit_tokens_per_month")
            tenant = replace(tenant, limit_tokens_per_month=tokens)
        if closed is True:
            if await uow.leases.list(tenant=tenant.id, open_only=True):
                raise ConflictError(f"tenant {tenant.id} still has leases; release them first")
            tenant = replace(tenant, closed_ms=tenant.closed_ms or clock.now_ms())
        elif closed is False:
            tenant = replace(tenant, closed_ms=None)
        await uow.tenants.update(tenant)
        tokens_per_month = tenant.limit_tokens_per_month or "unlimited"
        message = (
            f"limit {tenant.limit_milli_gpus} milli-GPUs, {tokens_per_month} tokens a month, "
            f"{'closed' if tenant.closed_ms else 'open'}"
        )
        await uow.events.append(
            Event(clock.now_ms(), "tenant.changed", tenant.id, tenant.id, principal.actor, message)
        )
        return tenant

    return await in_unit(store, work)


async def find_tenant(uow: UnitOfWork, principal: Principal, slug: str) -> Tenant:
    """Return a tenant that the principal may see, else raise what a missing one raises."""
    if is_identifier(slug) and principal.sees(slug):
        try:
            return await uow.tenants.get(slug)
        except NotFoundError:
            raise missing("tenant", slug) from None
    raise missing("tenant", slug)


def _title(text: str) -> str:
    if not 1 <= len(text) <= MAX_TITLE or not text.isprintable():
        raise InvalidInputError(f"title: 1 to {MAX_TITLE} printable characters")
    return text
