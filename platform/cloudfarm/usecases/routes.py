"""From a secret and a model's name to the application that answers, and to who pays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.bundles import ANSWERED_AS_OPENAI, adapts, context_of, kind_of, manifest_digest
from cloudfarm.domain.generation import Adapter
from cloudfarm.domain.status import Target
from cloudfarm.domain.tenant import CredentialKind, Role
from cloudfarm.domain.workload import ModelVersion, Revision, Service
from cloudfarm.errors import NotFoundError
from cloudfarm.ports import UnitOfWork
from cloudfarm.usecases.access import Principal, missing
from cloudfarm.usecases.credentials import identify
from cloudfarm.usecases.revisions import Asleep, Running, find_running
from cloudfarm.usecases.services import find_callable

EVERYBODYS = "farm"
"""Who is named as the owner of a model that was opened to all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """Who calls what: known also while nothing answers."""

    tenant: str
    """The caller's."""
    key_id: str
    """Of the caller's key or token."""
    service: Service
    model: str
    """The name as asked: ``service`` or ``service:adapter``."""
    kind: str
    """Of the service's model."""
    context_tokens: int = 0
    """Of a language model; 0 if that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Called):
    """Where a request goes, and whose it is."""

    app_name: str
    """The Serve application that answers."""
    milli_gpus: int
    """Of all leases together that the service is charged for just now."""
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a caller may name as a model."""

    id: str
    created_ms: int
    owner: str
    """The caller's tenant, or ``farm`` for what was opened to all: no tenant is told of another."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Every way that a caller's requests may go just now."""

    service: Service
    running: Running
    routes: Mapping[str, Route]
    """By revision; always that of the current one."""

    def pick(self, count: int) -> Route:
        """Return the way of the service's request of that number: a canary's for its share of them."""
        picked = self.routes.get(self.running.pick(count).id)
        return self.routes[self.running.current.id] if picked is None else picked


@dataclass(frozen=True, slots=True)
class Sleeping:
    """A call whose service is asleep."""

    called: Called
    asleep: Asleep

    @property
    def service(self) -> Service:
        """The one that is asleep."""
        return self.called.service


@dataclass(frozen=True, slots=True)
class Ask:
    """Somebody calls a model."""

    secret: str | None = field(repr=False)
    model: str
    """``service`` or ``service:adapter``."""
    what: str
    """How a model is called if there is none."""


async def find_caller(uow: UnitOfWork, clock: Clock, secret: str | None) -> Principal:
    """Return who has the secret, if that is somebody who calls services.

    Raises:
        UnauthenticatedError: if nobody has it.
        ForbiddenError: if a token's role does not call services.
    """
    principal = await identify(uow, clock, secret)
    if principal.kind is not CredentialKind.KEY:
        principal.need(Role.MEMBER)
    return principal


async def find_ways(uow: UnitOfWork, clock: Clock, ask: Ask, *, waits: bool) -> Ways | Sleeping:
    """Return the ways to a model for whoever has the secret, or that its service is asleep.

    Args:
        uow: the records.
        clock: tells whether a key has expired.
        ask: who calls what.
        waits: as :func:`~cloudfarm.usecases.revisions.find_running` says.

    Raises:
        UnauthenticatedError, ForbiddenError: as :func:`find_caller`.
        NotFoundError: if there is no such service or adapter for the caller.
        UnavailableError: if it does not run, and does not start because of a request.
    """
    principal = await find_caller(uow, clock, ask.secret)
    name, colon, adapter_name = ask.model.partition(":")
    try:
        service = await find_named(uow, principal, name)
        if colon:  # one that is not there need not wait for its service to wake
            current = await uow.revisions.get(service.current_id or "")
            await _adapter(uow, principal, await uow.models.get(current.model_id), adapter_name)
    except NotFoundError:
        raise missing(ask.what, ask.model) from None
    running = await find_running(uow, service, waits=waits)
    if isinstance(running, Asleep):
        current = await uow.revisions.get(service.current_id or "")
        base = await uow.models.get(current.model_id)
        called = Called(
            tenant=principal.home,
            key_id=principal.credential_id,
            service=service,
            model=ask.model,
            kind=kind_of(base.manifest),
            context_tokens=context_of(base.manifest),
        )
        return Sleeping(called, running)
    routes: dict[str, Route] = {}
    milli_gpus = await charged_milli_gpus(uow, running.open)
    for revision in running.revisions:
        base = await uow.models.get(revision.model_id)
        try:
            adapter = await _adapter(uow, principal, base, adapter_name) if colon else None
        except NotFoundError:
            continue  # a canary with other weights, for which the adapter was not made
        routes[revision.id] = Route(
            tenant=principal.home,
            key_id=principal.credential_id,
            service=service,
            app_name=revision.app_name,
            model=ask.model,
            kind=kind_of(base.manifest),
            context_tokens=context_of(base.manifest),
            milli_gpus=milli_gpus,
            adapter=adapter,
        )
    if running.current.id not in routes:
        raise missing(ask.what, ask.model)
    return Ways(service, running, routes)


async def find_models(uow: UnitOfWork, principal: Principal) -> Sequence[ServedModel]:
    """Return the models that a caller may name, by name."""
    found: list[ServedModel] = []
    versions = await uow.models.list(principal.home)
    for service in await _services(uow, principal):
        current = await uow.revisions.get(service.current_id or "")
        base = await uow.models.get(current.model_id)
        if kind_of(base.manifest) in ANSWERED_AS_OPENAI:
            owner = service.tenant if service.tenant == principal.home else EVERYBODYS
            found.append(ServedModel(service.name, service.created_ms, owner))
            found.extend(
                ServedModel(f"{service.name}:{each.name}", each.created_ms, each.tenant)
                for each in _adapters(versions, base).values()
            )
    return sorted(found, key=lambda model: model.id)


async def find_named(uow: UnitOfWork, principal: Principal, name: str) -> Service:
    """Return the service that a caller means by a name; raises NotFoundError."""
    if principal.services and name not in principal.services:
        raise missing("service", name)
    return await find_callable(uow, principal, name)


async def charged_milli_gpus(uow: UnitOfWork, revisions: Sequence[Revision]) -> int:
    """Return the milli-GPUs of those leases of some revisions that are metered just now: not that wait or start."""
    found = [
        lease for each in revisions for lease in await uow.leases.list(revision_id=each.id, open_only=True)
    ]
    return sum(lease.milli_gpus for lease in found if lease.started_ms is not None)


async def _services(uow: UnitOfWork, principal: Principal) -> Sequence[Service]:
    """Return the services that a caller may call: its tenant's, and under other names those open to all."""
    found = [service for service in await uow.services.list(open_only=True) if service.target is Target.RUN]
    shared = {service.name: service for service in reversed(found) if service.shared}
    own = {service.name: service for service in found if service.tenant == principal.home}
    named = {**shared, **own}
    return [each for name, each in named.items() if not principal.services or name in principal.services]


def _adapters(versions: Sequence[ModelVersion], base: ModelVersion) -> dict[str, ModelVersion]:
    """Return by name the newest of the versions (which are in order) that were made for these weights."""
    return {each.name: each for each in versions if adapts(each.manifest, base.manifest)}


async def _adapter(uow: UnitOfWork, principal: Principal, base: ModelVersion, name: str) -> Adapter:
    """Return the caller's newest adapter of that name for these weights; raises NotFoundError."""
    found = _adapters(await uow.models.list(principal.home), base).get(name)
    if found is None:
        raise missing("adapter", name)
    return Adapter(found.id, found.name, found.uri, manifest_digest(found.manifest))
