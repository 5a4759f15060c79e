"""Who is let through to which service: asked of the store now and then, and remembered in between."""

import asyncio
import logging
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

_Who = tuple[str, str, str]
"""The hash of a secret, the model that is asked with it, and how that is called if there is none."""
_Look = asyncio.Task[Ways | Sleeping]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gate:
    """Lets callers through to services.

    The queries of a request cost more than the request. So who was let through is for the same model, for a while; a
    revoked key, a closed tenant or a deleted service is refused that much later. Refusals are not remembered. Whoever
    goes on calling waits for the store only once: before the while is over it is asked again beside a request. Requests
    that come together wait for one look of all of them.
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
    _looking: dict[tuple[_Who, bool], tuple[int, _Look]] = field(default_factory=dict)
    """Looks that are under way, by whether they are of requests that wait already, and when they began."""
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
        who, ask = (hash_secret(secret or ""), model, what), Ask(secret, model, what)
        looked_ms, ways = self._known.get(who, (0, None))
        age_ms = self.clock.now_ms() - looked_ms
        if ways is not None and 0 <= age_ms < self.fresh_ms:
            return self._pick(ways)
        look = self._begin_look(who, ask, waits=False)
        if ways is not None and 0 <= age_ms < self.known_ms:
            return self._pick(ways)
        found = await asyncio.shield(look)  # as in :meth:`_look`
        return found.called if isinstance(found, Sleeping) else self._pick(found)

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
        who, ask = (hash_secret(secret or ""), model, what), Ask(secret, model, what)
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
        for _, look in self._looking.values():
            look.cancel()

    def _pick(self, ways: Ways) -> Route:
        count = self._asked[ways.service.id]
        self._asked[ways.service.id] += 1
        return ways.pick(count)

    async def _look(self, who: _Who, ask: Ask, *, waits: bool) -> Ways | Sleeping:
        # Others may wait for the look when this request's client has gone.
        return await asyncio.shield(self._begin_look(who, ask, waits=waits))

    def _begin_look(self, who: _Who, ask: Ask, *, waits: bool) -> _Look:
        """Return the look that is under way, unless it would tell of too long ago, or else begin one."""
        now_ms, this = self.clock.now_ms(), (who, waits)
        began_ms, look = self._looking.get(this, (0, None))
        if look is None or not 0 <= now_ms - began_ms < self.known_ms:
            look = asyncio.create_task(self._find(who, ask, waits))
            self._looking[this] = now_ms, look
            look.add_done_callback(lambda looked: self._end_look(this, looked))
        return look

    def _end_look(self, this: tuple[_Who, bool], look: _Look) -> None:
        if self._looking.get(this, (0, None))[1] is look:
            del self._looking[this]
        error = None if look.cancelled() else look.exception()
        if isinstance(error, CloudfarmError):
            self._known.pop(this[0], None)  # the next request looks for itself, and is told
        elif error is not None:
            log.error("nobody could be let through", exc_info=error)  # perhaps no request waits to be told

    async def _find(self, who: _Who, ask: Ask, waits: bool) -> Ways | Sleeping:
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
