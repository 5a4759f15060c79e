"""Deploying: a model becomes a service of its own, or what a service answers with next."""

from collections.abc import Mapping
from dataclasses import replace

from cloudfarm.clock import Clock
from cloudfarm.domain.bundles import CAUSAL_LM, SERVE_APP, TEXT_EMBEDDING
from cloudfarm.domain.ids import new_id
from cloudfarm.domain.lease import Ask
from cloudfarm.domain.quantities import MAX_HOURS, Shape, parse_count, parse_shape
from cloudfarm.domain.status import Event, Target
from cloudfarm.domain.tenant import Role, check_slug
from cloudfarm.domain.workload import RUN_APP, ModelVersion, Service
from cloudfarm.errors import AlreadyExistsError, ConflictError, InvalidInputError, InvalidShapeError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.settings import Settings
from cloudfarm.usecases.access import Principal, in_unit, quoted
from cloudfarm.usecases.asks import build_ask, build_project, check_ask
from cloudfarm.usecases.models import find_model
from cloudfarm.usecases.service_views import ServiceView, view_service
from cloudfarm.usecases.services import (
    Scaling,
    ask_of,
    check_one_lease,
    find_present,
    next_revision,
    supersede,
)

PROGRAMS: Mapping[str, str] = {
    "windpower-forecaster": "services.forecasts:app",
    CAUSAL_LM: "services.completions:app",
    TEXT_EMBEDDING: "services.embeddings:app",
    SERVE_APP: RUN_APP,
}
"""The program that serves each kind of model. Tenants write the manifests: they may choose, not name one."""


async def deploy_service(
    store: Store,
    clock: Clock,
    settings: Settings,
    principal: Principal,
    *,
    model: str,
    name: str | None = None,
    gpus: str | float | None = None,
    scaling: Scaling | None = None,
    cpus: str | float | None = None,
    memory: str | float | None = None,
    project: str | None = None,
    canary: int | None = None,
    replace_model: bool = False,
) -> ServiceView:
    """Keep a model answering, or give a service another model without dropping a request.

    Args:
        store: the records.
        clock: the time.
        settings: defaults and limits.
        principal: who deploys.
        model: ``name`` (its newest version) or ``name:number``.
        name: the service's name; the model's if not given.
        gpus: share of each replica; none if not given.
        scaling: how many replicas; one if not given.
        cpus: CPUs of each replica.
        memory: memory of each replica.
        project: whose quota it counts against; none if not given.
        canary: with ``replace_model``: the percent of the requests that the other model gets until it is promoted;
            if not given it takes over as soon as it runs.
        replace_model: give a running service of that name another model rather than refuse; what is not given stays.

    Raises:
        NotFoundError: if the tenant has no such model.
        AlreadyExistsError: if the name is taken and ``replace_model`` is not set.
    """
    principal.need(Role.MEMBER)
    tenant = principal.home
    percent = 0 if canary is None else parse_count(canary, name="canary", at_least=1, at_most=99)

    async def work(uow: UnitOfWork) -> ServiceView:
        version = await find_model(uow, principal, model)
        import_path = _program(version)
        called = check_slug(version.name if name is None else name, what="service")
        present = await find_present(uow, tenant, called)
        one = _one_replica(settings, gpus, cpus, memory, present if replace_model else None)
        now_ms = clock.now_ms()
        service = Service(
            id=new_id("s"),
            tenant=tenant,
            owner=principal.user,
            name=called,
            milli_gpus=one.shape.milli_gpus,
            cpus=one.cpus,
            memory_bytes=one.memory_bytes,
            created_ms=now_ms,
            project=build_project(project),
        )
        if present is None:
            if percent:
                raise InvalidInputError("canary: there is no service of that name that it could share with")
            service = (scaling or Scaling()).apply(service)
        else:
            _check_replaceable(present, service, asked=replace_model, project_given=project is not None)
            service = (scaling or Scaling()).apply(present)
        check_one_lease(service, import_path)
        await check_ask(uow, settings, tenant, ask_of(service), service.project)
        revision = await next_revision(uow, service, version.id, import_path, now_ms)
        revision = replace(revision, canary_percent=percent)
        if present is None:
            await uow.services.add(replace(service, current_id=revision.id))
            await uow.revisions.add(replace(revision, promoted_ms=now_ms))
        else:
            await supersede(uow, service, now_ms, f"gave way to revision {revision.number}")
            await uow.services.update(replace(service, message=""))
            await uow.revisions.add(revision)
        message = f"{service.name} with {version.ref}, revision {revision.number}"
        await uow.events.append(
            Event(now_ms, "service.deployed", service.id, tenant, principal.actor, message)
        )
        return await view_service(uow, await uow.services.get(service.id))

    return await in_unit(store, work)


def _one_replica(
    settings: Settings,
    gpus: str | float | None,
    cpus: str | float | None,
    memory: str | float | None,
    present: Service | None,
) -> Ask:
    shape = parse_shape("0" if gpus is None else gpus)
    if shape.count != 1:
        raise InvalidShapeError("gpus is the share of one replica, such as 0.25; say how many by replicas")
    one = build_ask(settings, gpus="0" if gpus is None else gpus, cpus=cpus, memory=memory, hours=MAX_HOURS)
    if present is None:
        return one
    return replace(
        one,
        shape=Shape(1, present.milli_gpus) if gpus is None else one.shape,
        cpus=present.cpus if cpus is None else one.cpus,
        memory_bytes=present.memory_bytes if memory is None else one.memory_bytes,
    )


def _program(version: ModelVersion) -> str:
    kind = version.manifest.get("kind")
    if kind == SERVE_APP and version.job_id is not None:
        raise InvalidInputError(
            "applications are registered by cloudfarm deploy --app, not published by jobs"
        )
    if isinstance(kind, str) and kind in PROGRAMS:
        return PROGRAMS[kind]
    raise InvalidInputError(
        f"the farm has no program that serves models of kind {quoted(str(kind))}, only {', '.join(PROGRAMS)}",
    )


def _check_replaceable(present: Service, wanted: Service, *, asked: bool, project_given: bool) -> None:
    if present.target is Target.END:
        raise ConflictError(f"service {present.name} is being deleted; try again in a moment")
    if not asked:
        raise AlreadyExistsError(
            f"there is a service {present.name} already; ask for a replacement to change its model"
        )

    def shape_of(service: Service) -> tuple[int, int, int]:
        return service.milli_gpus, service.cpus, service.memory_bytes

    if shape_of(present) != shape_of(wanted):
        raise ConflictError(f"service {present.name} has another shape; delete it first, or keep the shape")
    if project_given and present.project != wanted.project:
        raise ConflictError(
            f"service {present.name} is in {_project_text(present)}, not in {_project_text(wanted)}; "
            "delete it first, or keep the project"
        )


def _project_text(service: Service) -> str:
    return f"project {service.project}" if service.project else "no project"
