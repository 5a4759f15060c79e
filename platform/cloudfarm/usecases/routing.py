"""From a secret and a model's name to the application that answers, and to who pays."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.bundles import ANSWERED_AS_OPENAI, adapts, kind_of
from cloudfarm.domain.generation import Adapter
from cloudfarm.domain.status import Target
from cloudfarm.domain.tenant import CredentialKind, Role, hash_secret
from cloudfarm.domain.workload import ModelVersion, Revision, Service
from cloudfarm.errors import NotFoundError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.usecases.access import Principal, missing
from cloudfarm.usecases.credentials import authenticate
from cloudfarm.usecases.revisions import Running, WaitingRoom
from cloudfarm.usecases.services import find_callable

MOST_KNOWN = 10_000
"""Callers of services that are remembered; with more of them within the time, the store is asked more often."""
EVERYBODYS = "farm"
"""Who is named as the owner of a model that was opened to all."""


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
class _Ways:
    """Every way that a caller's requests may go just now."""

    service: Service
    running: Running
    routes: Mapping[str, Route]
    """By revision; always that of the current one."""


@dataclass(slots=True)
class Gate:
    """Lets callers through to services, and asks the store about each of them only now and then.

    The queries of a request cost more than the request. So who was let through is for the same model, for a short
    time; a revoked key, a closed tenant or a deleted service is refused that much later. Refusals are not remembered.
    """

    store: Store
    clock: Clock
    room: WaitingRoom
    fresh_ms: int = 500
    _known: dict[tuple[str, str], tuple[int, _Ways]] = field(default_factory=dict)
    """By hash of the secret and model: when it was looked up, and what was found."""
    _asked: Counter[str] = field(default_factory=Counter)
    """By service: how many requests there were, of which a canary gets its share."""

    async def route(
        self, secret: str | None, model: str, *, what: str = "model", again: bool = False
    ) -> Route:
        """Return the way to ``service`` or ``service:adapter`` if whoever has the secret may call it now.

        Args:
            secret: the caller's.
            model: what is asked.
            what: how that is called if there is none.
            again: there was nothing at the end of the way that was returned before.

        Raises:
            UnauthenticatedError: if nobody has that secret.
            ForbiddenError: if a token's role does not call services.
            NotFoundError: if there is no such service or adapter for the caller; it is called ``what``.
            UnavailableError: if it does not run, and does not start soon enough.
        """
        who = hash_secret(secret or ""), model
        now_ms = self.clock.now_ms()
        looked_ms, known = self._known.get(who, (0, None))
        if known is not None and 0 <= now_ms - looked_ms < self.fresh_ms and not again:
            return self._pick(known)
        found = await self._look_up(secret, model, what, again=again)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[who] = now_ms, found
        return self._pick(found)

    async def check(self, secret: str | None, name: str) -> None:
        """Ask whether whoever has the secret may still call a service; nothing is counted, and nothing woken.

        Raises:
            UnauthenticatedError, ForbiddenError, NotFoundError: as :meth:`route`.
        """
        principal = await self._caller(secret)
        async with self.store.begin(write=False) as uow:
            await _find(uow, principal, name)

    def _pick(self, ways: _Ways) -> Route:
        """Return one of the ways: a canary's for its share of the service's requests."""
        count = self._asked[ways.service.id]
        self._asked[ways.service.id] += 1
        picked = ways.routes.get(ways.running.pick(count).id)
        return ways.routes[ways.running.current.id] if picked is None else picked

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

    async def _caller(self, secret: str | None) -> Principal:
        principal = await authenticate(self.store, self.clock, secret)
        if principal.kind is not CredentialKind.KEY:
            principal.need(Role.MEMBER)
        return principal

    async def _look_up(self, secret: str | None, model: str, what: str, *, again: bool) -> _Ways:
        principal = await self._caller(secret)
        name, colon, adapter_name = model.partition(":")
        try:
            async with self.store.begin(write=False) as uow:
                service = await _find(uow, principal, name)
                if colon:  # one that is not there need not wait for its service to wake
                    current = await uow.revisions.get(service.current_id or "")
                    await _adapter(uow, principal, await uow.models.get(current.model_id), adapter_name)
        except NotFoundError:
            raise missing(what, model) from None
        began_ms = self.clock.now_ms()
        running = await self.room.wait_for_route(service, again=again)
        if self.clock.now_ms() - began_ms >= self.fresh_ms:
            principal = await self._caller(secret)  # revoked, it may be, while the service was waking
        routes: dict[str, Route] = {}
        async with self.store.begin(write=False) as uow:
            milli_gpus = await _charged(uow, running.revisions)
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
                    model=model,
                    kind=kind_of(base.manifest),
                    milli_gpus=milli_gpus,
                    adapter=adapter,
                )
        if running.current.id not in routes:
            raise missing(what, model)
        return _Ways(service, running, routes)


async def _find(uow: UnitOfWork, principal: Principal, name: str) -> Service:
    """Return the service that a caller means by a name; raises NotFoundError."""
    if principal.services and name not in principal.services:
        raise missing("service", name)
    return await find_callable(uow, principal, name)


async def _services(uow: UnitOfWork, principal: Principal) -> Sequence[Service]:
    """Return the services that a caller may call: its tenant's, and under other names those open to all."""
    found = [service for service in await uow.services.list(open_only=True) if service.target is Target.RUN]
    shared = {service.name: service for service in reversed(found) if service.shared}
    own = {service.name: service for service in found if service.tenant == principal.home}
    named = {**shared, **own}
    return [each for name, each in named.items() if not principal.services or name in principal.services]


async def _charged(uow: UnitOfWork, revisions: Sequence[Revision]) -> int:
    """Return the milli-GPUs of those leases of revisions that are metered: not of those that wait or start."""
    found = [
        lease for each in revisions for lease in await uow.leases.list(revision_id=each.id, open_only=True)
    ]
    return sum(lease.milli_gpus for lease in found if lease.started_ms is not None)


def _adapters(versions: Sequence[ModelVersion], base: ModelVersion) -> dict[str, ModelVersion]:
    """Return by name the newest of the versions (which are in order) that were made for these weights."""
    return {each.name: each for each in versions if adapts(each.manifest, base.manifest)}


async def _adapter(uow: UnitOfWork, principal: Principal, base: ModelVersion, name: str) -> Adapter:
    """Return the caller's newest adapter of that name for these weights; raises NotFoundError."""
    found = _adapters(await uow.models.list(principal.home), base).get(name)
    if found is None:
        raise missing("adapter", name)
    return Adapter(found.id, found.name, found.uri)
