"""From a secret and a model's name to the application that answers, and to who pays."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cloudfarm.clock import Clock
from cloudfarm.domain.bundles import ANSWERED_AS_OPENAI, adapts, kind_of
from cloudfarm.domain.generation import Adapter
from cloudfarm.domain.status import ServiceStatus, Target
from cloudfarm.domain.tenant import CredentialKind, Role, hash_secret
from cloudfarm.domain.workload import ModelVersion, Service
from cloudfarm.errors import NotFoundError, UnavailableError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.usecases.access import Principal, missing
from cloudfarm.usecases.credentials import authenticate
from cloudfarm.usecases.services import find_service

MOST_KNOWN = 10_000
"""Callers of services that are remembered; with more of them within the time, the store is asked more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request goes, and whose it is."""

    tenant: str
    """The caller's."""
    key_id: str
    """Of the caller's key or token."""
    service: Service
    app_name: str
    """The Serve application that answers."""
    model: str
    """The name as asked: ``service`` or ``service:adapter``."""
    kind: str
    """Of the service's model."""
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a caller may name as a model."""

    id: str
    created_ms: int
    owner: str
    """The tenant whose it is."""


@dataclass(slots=True)
class Gate:
    """Lets callers through to services, and asks the store about each of them only now and then.

    The queries of a request cost more than the request. So who was let through is for the same model, for a short
    time; a revoked key, a closed tenant or a deleted service is refused that much later. Refusals are not remembered.
    """

    store: Store
    clock: Clock
    fresh_ms: int = 500
    _known: dict[tuple[str, str], tuple[int, Route]] = field(default_factory=dict)
    """By hash of the secret and model: when it was looked up, and what was found."""

    async def route(self, secret: str | None, model: str, *, what: str = "model") -> Route:
        """Return the way to ``service`` or ``service:adapter`` if whoever has the secret may call it now.

        Raises:
            UnauthenticatedError: if nobody has that secret.
            ForbiddenError: if a token's role does not call services.
            NotFoundError: if there is no such service or adapter for the caller; it is called ``what``.
            UnavailableError: if it does not run just now.
        """
        who = hash_secret(secret or ""), model
        now_ms = self.clock.now_ms()
        looked_ms, known = self._known.get(who, (0, None))
        if known is not None and 0 <= now_ms - looked_ms < self.fresh_ms:
            return replace(known, app_name=running_app(known.service))
        found = await self._look_up(secret, model, what)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[who] = now_ms, found
        return found

    async def models(self, secret: str | None) -> Sequence[ServedModel]:
        """Return the models that whoever has the secret may name, by name.

        Raises:
            UnauthenticatedError, ForbiddenError: as :meth:`route`.
        """
        principal = await self._caller(secret)
        found: list[ServedModel] = []
        async with self.store.begin(write=False) as uow:
            versions = await uow.models.list(principal.home)
            for service in await _services(uow, principal):
                base = await uow.models.get(service.model_id)
                if kind_of(base.manifest) in ANSWERED_AS_OPENAI:
                    found.append(ServedModel(service.name, service.created_ms, service.tenant))
                    found.extend(
                        ServedModel(f"{service.name}:{each.name}", each.created_ms, each.tenant)
                        for each in _adapters(versions, base).values()
                    )
        return sorted(found, key=lambda model: model.id)

    async def _caller(self, secret: str | None) -> Principal:
        principal = await authenticate(self.store, self.clock, secret)
        if principal.kind is not CredentialKind.KEY:
            principal.need(Role.MEMBER)
        return principal

    async def _look_up(self, secret: str | None, model: str, what: str) -> Route:
        principal = await self._caller(secret)
        name, colon, adapter_name = model.partition(":")
        try:
            async with self.store.begin(write=False) as uow:
                service = await _find(uow, principal, name)
                base = await uow.models.get(service.model_id)
                adapter = await _adapter(uow, principal, base, adapter_name) if colon else None
        except NotFoundError:
            raise missing(what, model) from None
        return Route(
            tenant=principal.home,
            key_id=principal.credential_id,
            service=service,
            app_name=running_app(service),
            model=model,
            kind=kind_of(base.manifest),
            adapter=adapter,
        )


def running_app(service: Service) -> str:
    """Return the Serve application that answers for a service now.

    Raises:
        UnavailableError: if none does.
    """
    if service.target is Target.END:
        raise UnavailableError(f"service {service.name} is being deleted")
    if service.status is not ServiceStatus.RUNNING:
        raise UnavailableError(
            f"service {service.name} is {service.status}: {service.message or 'try again later'}"
        )
    return service.app_name


async def _find(uow: UnitOfWork, principal: Principal, name: str) -> Service:
    """Return the service that a caller means by a name; raises NotFoundError."""
    if principal.services and name not in principal.services:
        raise missing("service", name)
    return await find_service(uow, principal, name)


async def _services(uow: UnitOfWork, principal: Principal) -> Sequence[Service]:
    """Return the services that a caller may call."""
    return [
        service
        for service in await uow.services.list(tenant=principal.home, open_only=True)
        if service.target is Target.RUN and (not principal.services or service.name in principal.services)
    ]


def _adapters(versions: Sequence[ModelVersion], base: ModelVersion) -> dict[str, ModelVersion]:
    """Return by name the newest of the versions (which are in order) that were made for these weights."""
    return {each.name: each for each in versions if adapts(each.manifest, base.manifest)}


async def _adapter(uow: UnitOfWork, principal: Principal, base: ModelVersion, name: str) -> Adapter:
    """Return the caller's newest adapter of that name for these weights; raises NotFoundError."""
    found = _adapters(await uow.models.list(principal.home), base).get(name)
    if found is None:
        raise missing("adapter", name)
    return Adapter(found.id, found.name, found.uri)
