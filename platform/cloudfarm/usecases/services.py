"""Services: models kept answering on leases of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cloudfarm.clock import Clock
from cloudfarm.domain.bundles import CAUSAL_LM, TEXT_EMBEDDING
from cloudfarm.domain.ids import new_id
from cloudfarm.domain.lease import Ask, Lease
from cloudfarm.domain.quantities import MAX_HOURS, Shape, parse_count, parse_shape
from cloudfarm.domain.status import Event, ServiceStatus, Target
from cloudfarm.domain.tenant import Role, check_slug
from cloudfarm.domain.workload import ModelVersion, Service
from cloudfarm.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    InvalidShapeError,
    NotFoundError,
)
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.settings import Settings
from cloudfarm.usecases.access import Principal, in_unit, is_identifier, missing, quoted
from cloudfarm.usecases.asks import build_ask, build_project, check_ask
from cloudfarm.usecases.models import find_model

PROGRAMS: Mapping[str, str] = {
    "windpower-forecaster": "services.forecasts:app",
    CAUSAL_LM: "services.completions:app",
    TEXT_EMBEDDING: "services.embeddings:app",
}
"""The program that serves each kind of model. Tenants write the manifests: they may choose, not name one."""
MAX_REPLICAS = 64


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service with its model and, while it waits, why."""

    service: Service
    model: ModelVersion
    message: str


async def deploy_service(
    store: Store,
    clock: Clock,
    settings: Settings,
    principal: Principal,
    *,
    model: str,
    name: str | None = None,
    gpus: str | float = "0",
    replicas: int = 1,
    cpus: str | float | None = None,
    memory: str | float | None = None,
    project: str | None = None,
    replace_model: bool = False,
) -> ServiceView:
    """Keep a model answering: one slice a replica.

    Args:
        store: the records.
        clock: the time.
        settings: defaults and limits.
        principal: who deploys.
        model: ``name`` (its newest version) or ``name:number``.
        name: the service's name; the model's if not given.
        gpus: share of each replica.
        replicas: how many.
        cpus: CPUs of each replica.
        memory: memory of each replica.
        project: whose quota it counts against; none if not given.
        replace_model: give a running service of that name another model rather than refuse; all else stays.

    Raises:
        NotFoundError: if the tenant has no such model.
        AlreadyExistsError: if the name is taken and ``replace_model`` is not set.
    """
    principal.need(Role.MEMBER)
    tenant = principal.home
    ask = _ask_of(settings, gpus, replicas, cpus, memory)
    within = build_project(project)

    async def work(uow: UnitOfWork) -> ServiceView:
        version = await find_model(uow, principal, model)
        service = Service(
            id=new_id("s"),
            tenant=tenant,
            owner=principal.user,
            name=check_slug(version.name if name is None else name, what="service"),
            model_id=version.id,
            import_path=_program(version),
            milli_gpus=ask.shape.milli_gpus,
            replicas=ask.shape.count,
            cpus=ask.cpus,
            memory_bytes=ask.memory_bytes,
            created_ms=clock.now_ms(),
            message="queued",
            project=within,
        )
        present = await _present(uow, tenant, service.name)
        if present is None:
            await check_ask(uow, settings, tenant, ask, within)
            await uow.services.add(service)
        else:
            _check_replaceable(present, service, asked=replace_model)
            service = replace(present, model_id=service.model_id, import_path=service.import_path)
            await uow.services.update(service)
        message = f"{service.name} with {version.ref}, {service.replicas} x {service.milli_gpus} milli-GPUs"
        await uow.events.append(
            Event(clock.now_ms(), "service.deployed", service.id, tenant, principal.actor, message),
        )
        return await _view(uow, await uow.services.get(service.id))

    return await in_unit(store, work)


async def list_services(
    store: Store, principal: Principal, *, tenant: str | None = None
) -> Sequence[ServiceView]:
    """Return the services that are not deleted, oldest first: the tenant's, or for an operator all."""
    principal.need(Role.VIEWER)
    scope = principal.scope(tenant)
    async with store.begin(write=False) as uow:
        return [
            await _view(uow, service) for service in await uow.services.list(tenant=scope, open_only=True)
        ]


async def get_service(store: Store, principal: Principal, name: str) -> ServiceView:
    """Return a service of the tenant by name."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return await _view(uow, await find_service(uow, principal, name))


async def delete_service(store: Store, clock: Clock, principal: Principal, name: str) -> Service:
    """Let a service end; a second time changes nothing."""
    principal.need(Role.MEMBER)

    async def work(uow: UnitOfWork) -> Service:
        service = await find_service(uow, principal, name)
        if service.target is Target.RUN:
            await uow.services.update(replace(service, target=Target.END))
            await uow.events.append(
                Event(
                    clock.now_ms(), "service.delete_asked", service.id, service.tenant, principal.actor, name
                ),
            )
        return await uow.services.get(service.id)

    return await in_unit(store, work)


async def find_service(uow: UnitOfWork, principal: Principal, name: str) -> Service:
    """Return a live service of the principal's tenant, else raise what a missing one raises."""
    if is_identifier(name):
        found = await _present(uow, principal.home, name)
        if found is not None:
            return found
    raise missing("service", name)


async def _present(uow: UnitOfWork, tenant: str, name: str) -> Service | None:
    try:
        return await uow.services.find(tenant, name)
    except NotFoundError:
        return None


def _ask_of(
    settings: Settings,
    gpus: str | float,
    replicas: int,
    cpus: str | float | None,
    memory: str | float | None,
) -> Ask:
    shape = parse_shape(gpus)
    if shape.count != 1:
        raise InvalidShapeError("gpus is the share of one replica, such as 0.25; say how many by replicas")
    count = parse_count(replicas, name="replicas", at_least=1, at_most=MAX_REPLICAS)
    one = build_ask(settings, gpus=gpus, cpus=cpus, memory=memory, hours=MAX_HOURS)
    return replace(one, shape=Shape(count, shape.milli_gpus), distinct_gpus=False)


def _program(version: ModelVersion) -> str:
    kind = version.manifest.get("kind")
    if isinstance(kind, str) and kind in PROGRAMS:
        return PROGRAMS[kind]
    raise InvalidInputError(
        f"the farm has no program that serves models of kind {quoted(str(kind))}, only {', '.join(PROGRAMS)}",
    )


def _check_replaceable(present: Service, wanted: Service, *, asked: bool) -> None:
    if present.target is Target.END:
        raise ConflictError(f"service {present.name} is being deleted; try again in a moment")
    if not asked:
        raise AlreadyExistsError(
            f"there is a service {present.name} already; ask for a replacement to change its model"
        )

    def shape_of(service: Service) -> tuple[int, int, int, int]:
        return service.milli_gpus, service.replicas, service.cpus, service.memory_bytes

    if shape_of(present) != shape_of(wanted):
        raise ConflictError(f"service {present.name} has another shape; delete it first, or keep the shape")
    if present.project != wanted.project:
        raise ConflictError(
            f"service {present.name} is in {_project_text(present)}, not in {_project_text(wanted)}; "
            "delete it first, or keep the project"
        )


def _project_text(service: Service) -> str:
    return f"project {service.project}" if service.project else "no project"


async def _view(uow: UnitOfWork, service: Service) -> ServiceView:
    lease = None
    if service.lease_id is not None and service.status is ServiceStatus.PENDING:
        lease = await uow.leases.get(service.lease_id)
    return ServiceView(service, await uow.models.get(service.model_id), _message(service, lease))


def _message(service: Service, lease: Lease | None) -> str:
    if service.target is Target.END:
        return "is being deleted"
    if service.status is ServiceStatus.PENDING and lease is not None and lease.message:
        return f"waits for lease {lease.id}: {lease.told}"
    return service.message
