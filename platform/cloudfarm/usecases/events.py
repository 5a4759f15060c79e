"""What happened."""

from collections.abc import Sequence

from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import Role
from cloudfarm.ports import Store
from cloudfarm.usecases.access import Principal, is_identifier


async def list_events(
    store: Store,
    principal: Principal,
    *,
    tenant: str | None = None,
    subject: str | None = None,
    limit: int = 100,
) -> Sequence[Event]:
    """Return the newest events, newest first: a tenant's own, or for an operator all."""
    principal.need(Role.VIEWER)
    scope = principal.scope(tenant)
    if subject is not None and not is_identifier(subject):
        return []
    async with store.begin(write=False) as uow:
        return await uow.events.list(tenant=scope, subject=subject, limit=limit)
