"""Who is let through to which service: asked of the store now and then, and remembered in between."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.tenant import hash_secret
from cloudfarm.errors import CloudfarmError
from cloudfarm.ports import Store
from cloudfarm.usecases.revisions import Asleep, WaitingRoom
from cloudfarm.usecases.routes import (
    Ask,
    Called,
    Route,
    ServedModel,
    Sleeping,
    Ways,
    find_caller,
    find_models,
    find_named,
    find_ways,
)

MOST_KNOWN = 10_000
"""Callers of services that are remembered; with more of them within the time, the store is asked more often."""

_Who = tuple[str, str]
"""The hash of a secret, and the model that is asked with it."""


@dataclass(slots=True)
class Gate:
    """Lets callers through to services.

    The queries of a request cost more than the request. So who was let through is for the same model, for a while; a
    revoked key, a closed tenant or a deleted service is refused that much later. Refusals are not remembered. Whoever
    goes on calling waits for the store only once: before the while is over it is asked again beside a request.
    """

    store: Store
    clock: Clock
    room: WaitingRoom
    fresh_ms: int = 500
    """For so long the store is not asked again; then the next request has it asked and does not wait."""
    known_ms: int = 900
    """After this a request waits for the store. A revoked key is good for so long at most."""
    _known: dict[_Who, tuple[int, Ways]] = field(default_factory=dict)
    """When they were looked up, and what was found."""
    _renewing: dict[_Who, asyncio.Task[None]] = field(default_factory=dict)
    _asked: Counter[str] = field(default_factory=Counter)
    """By service: how many requests there were, of which a canary gets its share."""

    async def route(self, secret: str | None, model: str, *, what: str = "model") -> Called:
        """Return the way to ``service`` or ``service:adapter`` if whoever has the secret may call it now.

        If the service is asleep it is no :class:`Route`, and nothing is woken: that is :meth:`wake`.

        Args:
            secret: the caller's.
            model: what is asked.
            what: how that is called if there is none.

        Raises:
            UnauthenticatedError: if nobody has that secret.
            ForbiddenError: if a token's role does not call services.
            NotFoundError: if there is no such service or adapter for the caller; it is called ``what``.
            UnavailableError: if it neither runs nor starts because of a request.
        """
        who, ask = (hash_secret(secret or ""), model), Ask(secret, model, what)
        looked_ms, ways = self._known.get(who, (0, None))
        age_ms = self.clock.now_ms() - looked_ms
        if ways is None or not 0 <= age_ms < self.known_ms:
            found = await self._look(who, ask)
            return found.called if isinstance(found, Sleeping) else self._pick(found)
        if age_ms >= self.fresh_ms and who not in self._renewing:
            task = self._renewing[who] = asyncio.create_task(self._renew(who, ask))
            task.add_done_callback(lambda _: self._renewing.pop(who))
        return self._pick(ways)

    async def wake(self, secret: str | None, model: str, *, what: str = "model", lost: bool = False) -> Route:
        """Return the way when there is one; who is asked for is looked at again after each wait.

        Args:
            secret: the caller's.
            model: what is asked.
            what: how that is called if there is none.
            lost: there was nothing at the end of the way that was returned before.

        Raises:
            UnavailableError: if the service does not start soon enough.
            CloudfarmError: as :meth:`route`.
        """
        who, ask = (hash_secret(secret or ""), model), Ask(secret, model, what)
        found = await self._look(who, ask, waits=lost)
        if lost:
            name = found.service.name
            await self.room.wait(Asleep(found.service, f"service {name} has lost its replicas"))
            found = await self._look(who, ask, waits=True)
        while isinstance(found, Sleeping):
            await self.room.wait(found.asleep)
            found = await self._look(who, ask, waits=True)
        return self._pick(found)

    async def check(self, secret: str | None, name: str) -> None:
        """Ask whether whoever has the secret may still call a service; nothing is counted, and nothing woken.

        Raises:
            UnauthenticatedError, ForbiddenError, NotFoundError: as :meth:`route`.
        """
        async with self.store.begin(write=False) as uow:
            await find_named(uow, await find_caller(uow, self.clock, secret), name)

    async def models(self, secret: str | None) -> Sequence[ServedModel]:
        """Return the models that whoever has the secret may name, by name.

        Raises:
            UnauthenticatedError, ForbiddenError: as :meth:`route`.
        """
        async with self.store.begin(write=False) as uow:
            return await find_models(uow, await find_caller(uow, self.clock, secret))

    def close(self) -> None:
        """Leave the store in peace."""
        for task in self._renewing.values():
            task.cancel()

    def _pick(self, ways: Ways) -> Route:
        count = self._asked[ways.service.id]
        self._asked[ways.service.id] += 1
        return ways.pick(count)

    async def _renew(self, who: _Who, ask: Ask) -> None:
        try:
            await self._look(who, ask)
        except CloudfarmError:
            self._known.pop(who, None)  # the next request looks for itself, and is told

    async def _look(self, who: _Who, ask: Ask, *, waits: bool = False) -> Ways | Sleeping:
        now_ms = self.clock.now_ms()
        async with self.store.begin(write=False) as uow:
            found = await find_ways(uow, self.clock, ask, waits=waits)
        if isinstance(found, Sleeping):
            self._known.pop(who, None)
        else:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[who] = now_ms, found
        return found
