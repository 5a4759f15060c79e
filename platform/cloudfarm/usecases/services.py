"""Services, once deployed: changed, promoted, rolled back, found, deleted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cloudfarm.clock import Clock
from cloudfarm.domain.ids import new_id
from cloudfarm.domain.lease import Ask
from cloudfarm.domain.quantities import MAX_HOURS, Shape, parse_count
from cloudfarm.domain.status import Event, Target
from cloudfarm.domain.tenant import Role
from cloudfarm.domain.workload import RUN_APP, Revision, Service
from cloudfarm.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.settings import Settings
from cloudfarm.usecases.access import Principal, in_unit, is_identifier, missing
from cloudfarm.usecases.asks import check_ask
from cloudfarm.usecases.service_views import ServiceView, view_service

MAX_REPLICAS = 64
MAX_TARGET_LOAD = 1000
MIN_IDLE_MINUTES, MAX_IDLE_MINUTES = 0.1, 7 * 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many replicas a service may have; None leaves what there is, or the default."""

    replicas: int | None = None
    """As many, always: short for the same as ``min_replicas`` and as ``max_replicas``."""
    min_replicas: int | None = None
    max_replicas: int | None = None
    target_load: int | None = None
    idle_minutes: float | None = None

    def apply(self, service: Service) -> Service:
        """Return a service with these settings.

        Raises:
            InvalidInputError: naming the one that cannot be right.
        """
        least, most = service.min_replicas, service.max_replicas
        if self.replicas is not None:
            if (self.min_replicas, self.max_replicas) != (None, None):
                raise InvalidInputError("replicas stands for min_replicas and max_replicas: give it or them")
            least = most = parse_count(self.replicas, name="replicas", at_least=1, at_most=MAX_REPLICAS)
        if self.min_replicas is not None:
            least = parse_count(self.min_replicas, name="min_replicas", at_least=0, at_most=MAX_REPLICAS)
            most = max(most, least)
        if self.max_replicas is not None:
            most = parse_count(self.max_replicas, name="max_replicas", at_least=1, at_most=MAX_REPLICAS)
        if most < least:
            raise InvalidInputError(f"max_replicas: {most} is below min_replicas, which is {least}")
        load, idle_ms = service.target_load, service.idle_ms
        if self.target_load is not None:
            load = parse_count(self.target_load, name="target_load", at_least=1, at_most=MAX_TARGET_LOAD)
        if self.idle_minutes is not None:
            if not MIN_IDLE_MINUTES <= self.idle_minutes <= MAX_IDLE_MINUTES:
                raise InvalidInputError(
                    f"idle_minutes: write a number from {MIN_IDLE_MINUTES} to {MAX_IDLE_MINUTES}"
                )
            idle_ms = int(self.idle_minutes * 60_000)
        return replace(service, min_replicas=least, max_replicas=most, target_load=load, idle_ms=idle_ms)


async def change_service(
    store: Store,
    clock: Clock,
    settings: Settings,
    principal: Principal,
    name: str,
    *,
    scaling: Scaling,
    shared: bool | None = None,
    tenant: str | None = None,
) -> ServiceView:
    """Change how many replicas a service may have; or, for an operator, whether all tenants may call it.

    Raises:
        ForbiddenError: if somebody else than an operator asks to share it.
    """
    principal.need(Role.MEMBER)
    if shared is not None and not principal.is_operator:
        raise ForbiddenError("only an operator opens a service to all tenants")

    async def work(uow: UnitOfWork) -> ServiceView:
        before = await find_service(uow, principal, name, tenant=tenant)
        after = scaling.apply(before)
        if before.current_id is not None:
            check_one_lease(after, (await uow.revisions.get(before.current_id)).import_path)
        if after.max_replicas > before.max_replicas:
            await check_ask(uow, settings, after.tenant, ask_of(after), after.project)
        after = replace(after, shared=before.shared if shared is None else shared)
        if after != before:
            await uow.services.update(after)
            idle = f"{after.idle_ms / 60_000:g} min"
            message = (
                f"{name}: {after.min_replicas} to {after.max_replicas} replicas, target load {after.target_load}, "
                f"idle after {idle}, {'open to all tenants' if after.shared else 'its tenant only'}"
            )
            await uow.events.append(
                Event(clock.now_ms(), "service.changed", after.id, after.tenant, principal.actor, message)
            )
        return await view_service(uow, await uow.services.get(after.id))

    return await in_unit(store, work)


async def promote_service(store: Store, clock: Clock, principal: Principal, name: str) -> ServiceView:
    """Let a service's canary take over all requests.

    Raises:
        ConflictError: if there is none.
    """
    principal.need(Role.MEMBER)

    async def work(uow: UnitOfWork) -> ServiceView:
        service = await find_service(uow, principal, name)
        waiting = await _candidates(uow, service)
        if not waiting:
            raise ConflictError(f"service {name} has no revision that could take over")
        for revision in waiting:
            await uow.revisions.update(replace(revision, canary_percent=0))
        await uow.events.append(
            Event(clock.now_ms(), "service.promote_asked", service.id, service.tenant, principal.actor, name)
        )
        return await view_service(uow, service)

    return await in_unit(store, work)


async def roll_back_service(store: Store, clock: Clock, principal: Principal, name: str) -> ServiceView:
    """Withdraw what is to take over; if nothing is, deploy anew what ran before.

    Raises:
        ConflictError: if nothing ran before.
    """
    principal.need(Role.MEMBER)

    async def work(uow: UnitOfWork) -> ServiceView:
        service, now_ms = await find_service(uow, principal, name), clock.now_ms()
        if service.target is Target.END:
            raise ConflictError(f"service {name} is being deleted")
        withdrawn = await supersede(uow, service, now_ms, "was withdrawn")
        if withdrawn:
            message = "; ".join(f"revision {revision.number} was withdrawn" for revision in withdrawn)
        else:
            before = await _ran_before(uow, service)
            revision = await next_revision(uow, service, before.model_id, before.import_path, now_ms)
            await uow.revisions.add(revision)
            message = f"revision {revision.number} has the model of revision {before.number}"
        await uow.services.update(replace(service, message=message))
        await uow.events.append(
            Event(
                now_ms,
                "service.rolled_back",
                service.id,
                service.tenant,
                principal.actor,
                f"{name}: {message}",
            )
        )
        return await view_service(uow, await uow.services.get(service.id))

    return await in_unit(store, work)


async def list_services(
    store: Store, principal: Principal, *, tenant: str | None = None
) -> Sequence[ServiceView]:
    """Return the services that are not deleted, oldest first: the tenant's, or for an operator all."""
    principal.need(Role.VIEWER)
    scope = principal.scope(tenant)
    async with store.begin(write=False) as uow:
        found = await uow.services.list(tenant=scope, open_only=True)
        return [await view_service(uow, service) for service in found]


async def get_service(
    store: Store, principal: Principal, name: str, *, tenant: str | None = None
) -> ServiceView:
    """Return a service of the tenant by name."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return await view_service(uow, await find_service(uow, principal, name, tenant=tenant))


async def delete_service(store: Store, clock: Clock, principal: Principal, name: str) -> Service:
    """Let a service end; a second time changes nothing."""
    principal.need(Role.MEMBER)

    async def work(uow: UnitOfWork) -> Service:
        service = await find_service(uow, principal, name)
        if service.target is Target.RUN:
            now_ms = clock.now_ms()
            await uow.services.update(replace(service, target=Target.END))
            for revision in await uow.revisions.list(service_id=service.id, open_only=True):
                await uow.revisions.update(revision.leave(now_ms, "its service is deleted"))
            await uow.events.append(
                Event(now_ms, "service.delete_asked", service.id, service.tenant, principal.actor, name)
            )
        return await uow.services.get(service.id)

    return await in_unit(store, work)


async def find_service(
    uow: UnitOfWork, principal: Principal, name: str, *, tenant: str | None = None
) -> Service:
    """Return a live service of the principal's tenant (of the one that an operator names), or raise as if missing."""
    owner = tenant if principal.is_operator and tenant is not None else principal.home
    if is_identifier(name) and is_identifier(owner) and tenant in (None, owner):
        found = await find_present(uow, owner, name)
        if found is not None:
            return found
    raise missing("service", name)


async def find_callable(uow: UnitOfWork, principal: Principal, name: str) -> Service:
    """Return the service that a caller means: its own tenant's, else one that is open to all tenants."""
    try:
        return await find_service(uow, principal, name)
    except NotFoundError:
        if not is_identifier(name):
            raise
    try:
        return await uow.services.find_shared(name)
    except NotFoundError:
        raise missing("service", name) from None


async def find_present(uow: UnitOfWork, tenant: str, name: str) -> Service | None:
    """Return a tenant's live service of that name, if there is one."""
    try:
        return await uow.services.find(tenant, name)
    except NotFoundError:
        return None


async def next_revision(
    uow: UnitOfWork, service: Service, model_id: str, import_path: str, now_ms: int
) -> Revision:
    """Return the service's next revision, as large as what it is to take over from."""
    replicas = service.min_replicas
    if service.current_id is not None:
        replicas = max(replicas, (await uow.revisions.get(service.current_id)).replicas)
    return Revision(
        id=new_id("r"),
        service_id=service.id,
        tenant=service.tenant,
        name=service.name,
        number=await uow.revisions.last_number(service.tenant, service.name) + 1,
        model_id=model_id,
        import_path=import_path,
        created_ms=now_ms,
        replicas=max(1, min(replicas, service.max_replicas)),
        message="queued",
    )


async def _candidates(uow: UnitOfWork, service: Service) -> list[Revision]:
    """Return what is to take over a service's requests."""
    return [
        revision
        for revision in await uow.revisions.list(service_id=service.id, open_only=True)
        if revision.target is Target.RUN and revision.id != service.current_id
    ]


async def supersede(uow: UnitOfWork, service: Service, now_ms: int, message: str) -> list[Revision]:
    """Let everything end that was to take over, and return it."""
    ended = await _candidates(uow, service)
    for revision in ended:
        await uow.revisions.update(revision.leave(now_ms, message))
    return ended


async def _ran_before(uow: UnitOfWork, service: Service) -> Revision:
    earlier = [
        revision
        for revision in await uow.revisions.list(service_id=service.id)
        if revision.promoted_ms is not None and revision.id != service.current_id
    ]
    if not earlier:
        raise ConflictError(f"service {service.name} has had no other model")
    return max(earlier, key=lambda revision: (revision.promoted_ms or 0, revision.number))


def ask_of(service: Service) -> Ask:
    """Return what a service asks for when it is as large as it may become."""
    return Ask(
        Shape(service.max_replicas, service.milli_gpus),
        cpus=service.cpus,
        memory_bytes=service.memory_bytes,
        duration_ms=MAX_HOURS * 3_600_000,
        distinct_gpus=False,
    )


def check_one_lease(service: Service, import_path: str) -> None:
    """Refuse more than one replica for an application of a tenant's own; raises InvalidInputError."""
    if import_path == RUN_APP and service.max_replicas > 1:
        raise InvalidInputError(
            "an application of one's own has one lease: how many replicas it has there, its deployments say"
        )
