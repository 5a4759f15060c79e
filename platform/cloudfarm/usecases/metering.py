"""What callers of services use: limited, counted while it is being answered, and handed over to the ledger.

Counts go into a journal first, which outlives the process: at each request's end, and once a second for those under
way. From the journal batches go into the store, each in one transaction under a name of its own, which makes a second
hand-over harmless.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.served import MINUTE_MS, Account, Note, Shares, Used, by_minute
from cloudfarm.domain.status import RevisionStatus
from cloudfarm.errors import AlreadyExistsError, CloudfarmError, UnauthenticatedError, UnavailableError
from cloudfarm.ports import Store, UsageJournal
from cloudfarm.troubles import Troubles
from cloudfarm.usecases.limits import Admission, Allowances, Budget, month_of
from cloudfarm.usecases.revisions import RETRY_S
from cloudfarm.usecases.routes import Called, Route, charged_milli_gpus
from cloudfarm.usecases.use import Use

MOST_STUCK = 8
"""So many batches of its own a front door lets wait that the journal does not give back; each holds a file open."""

Whose = tuple[str, str | None]
"""A tenant, and one of its keys or None for all that it uses."""


@dataclass(slots=True)
class Meter:
    """Begins and keeps uses, refuses those beyond a limit, and sees that the ledger gets them: once, and all of them.

    There is one in the farm, in the front door.
    """

    store: Store
    clock: Clock
    journal: UsageJournal
    every_s: float = 1.0
    """How often uses under way are noted and looked after, and batches handed over."""
    _allowances: Allowances = field(default_factory=Allowances)
    _shares: dict[str, Shares] = field(default_factory=dict)
    """By service id."""
    _under_way: set[Use] = field(default_factory=set)
    _unwritten: list[Note] = field(default_factory=list)
    """What the journal refused: it is tried again."""
    _pending: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Tokens by tenant and key that were counted here and are not in the ledger yet."""
    _stuck: dict[str, CloudfarmError] = field(default_factory=dict)
    """Batches that could not be handed over, and why: they stop no others, and are tried again."""
    _settled: set[str] = field(default_factory=set)
    """Batches that the ledger has, and that the journal could not drop yet."""
    _ready: bool = False
    """Whether the limits have been read at all."""
    _changed: bool = True
    """Whether they must be read again."""
    _recount: bool = True
    """Whether also what the ledger says of this month must."""
    _unwritable: CloudfarmError | None = None
    """Why the journal takes nothing at present."""
    _alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    _troubles: Troubles = field(init=False)

    def __post_init__(self) -> None:
        self._troubles = Troubles(self.store, self.clock)

    def admit(self, called: Called, most_tokens: int = 0) -> Admission:
        """Let a request in that may use so many tokens. Whoever has it let in lets it go, come what may.

        Raises:
            TooManyError: if a limit is used up, or may be by what is under way.
            UnavailableError: if it is not known yet what is used up.
        """
        if not self._ready:
            raise UnavailableError("the farm's store has not told yet what the limits are", retry_after_s=1)
        return self._allowances.admit(called.tenant, called.key_id, self.clock.now_ms(), most_tokens)

    def leave(self, admission: Admission) -> None:
        """Let a request go whose uses have ended."""
        self._allowances.leave(admission, self.clock.now_ms())

    def begin(self, route: Route, admission: Admission) -> Use:
        """Begin a request that was let in; again if nobody has got it before: it counts as the same one."""
        now_ms, service, again = self.clock.now_ms(), route.service, admission.begun
        admission.begun = True
        account = Account(
            tenant=route.tenant,
            key_id=route.key_id,
            service_id=service.id,
            service_tenant=service.tenant,
            service=service.name,
            project=service.project,
            model=route.model,
        )
        shares = self._shares.get(service.id)
        if shares is None:
            shares = self._shares[service.id] = Shares(route.milli_gpus, now_ms)
        clock = shares.begin(now_ms, route.milli_gpus)
        use = Use(self, account, route.app_name, admission, shares, now_ms, clock, _noted=(int(again), 0, 0))
        self._under_way.add(use)
        return use

    def take(self, admission: Admission, tokens: int) -> None:
        """Take tokens off the caller's limits, and off what is held for the request."""
        self._pending[admission.tenant, admission.key_id] += tokens
        self._allowances.draw(admission, tokens)
        self._allowances.take(admission.tenant, admission.key_id, tokens, self.clock.now_ms())

    def finish(self, use: Use) -> None:
        """Note the rest of a use that ends."""
        self._under_way.discard(use)
        now_ms = self.clock.now_ms()
        self._write([use.note(now_ms, use.shares().end(now_ms))])

    async def refresh(self) -> None:
        """Take over limits and keys that have just changed. If the store does not answer, the next step does."""
        self._changed = True
        await self._try_step()

    async def step(self) -> None:
        """Note what is under way, look after it, hand over what waits, and read limits that have changed.

        Raises:
            CloudfarmError: if not all of that could be done; what could be is.
        """
        async with self._alone:
            now_ms = self.clock.now_ms()
            notes = [use.note(now_ms, use.shares().go_on(now_ms)) for use in self._under_way]
            self._write(by_minute(notes))
            if self._under_way:
                await self._look_after()
            await self._hand_over()
            if self._changed or self._recount:
                await self._read_limits()
            for error in (self._unwritable, *self._stuck.values()):
                if error is not None:
                    raise error

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Step again and again while the context is open, and a last time when it is left."""
        await self._try_step()
        loop = asyncio.create_task(self._step_forever())
        try:
            yield
        finally:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop
            await self._try_step()
            self.journal.close()

    async def _step_forever(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            await self._try_step()

    async def _try_step(self) -> None:
        try:
            await self.step()
        except Exception as error:  # noqa: BLE001 - the loop may not end while requests are let in
            await self._troubles.tell("what was used is kept, and handed over later", error)

    def _write(self, notes: Sequence[Note]) -> None:
        """Write notes into the journal; what it does not take is kept here, and written with the next."""
        self._unwritten += notes
        if self._unwritten:
            try:
                self.journal.append(self._unwritten)
            except CloudfarmError as error:
                self._unwritable = error
                self._unwritten = list(by_minute(self._unwritten))
            else:
                self._unwritable = None
                self._unwritten = []

    async def _look_after(self) -> None:
        """End what is under way in vain, or with keys that are no longer good; see what GPUs its services have now.

        A request that waits in Serve for a replica waits for one as long as it is let, also when there will be none.
        """
        uses = tuple(self._under_way)  # of what begins during the look, the look tells nothing
        async with self.store.begin(write=False) as uow:
            keys = {use.account.key_id for use in uses}
            dead = await uow.credentials.find_dead(keys, self.clock.now_ms())
            services = {use.account.service_id for use in uses}
            revisions = {each: await uow.revisions.list(service_id=each, open_only=True) for each in services}
            # Of a service that is gone by now the last that was seen goes on.
            milli_gpus = {
                each: await charged_milli_gpus(uow, found) for each, found in revisions.items() if found
            }
        there = (revision for found in revisions.values() for revision in found)
        answering = {
            each.app_name
            for each in there
            if each.status is not RevisionStatus.PENDING and not each.is_given_up
        }
        now_ms = self.clock.now_ms()
        for service_id, charged in milli_gpus.items():
            self._shares[service_id].change(now_ms, charged)
        for use in uses:
            if use.account.key_id in dead:
                use.refuse(UnauthenticatedError("this key has expired or was revoked meanwhile"))
            elif not use.begun and use.app_name not in answering:
                lost = f"service {use.account.service} has lost its replicas"
                use.refuse(UnavailableError(lost, retry_after_s=RETRY_S))

    async def _hand_over(self) -> None:
        own = [batch for batch in self.journal.waiting() if self.journal.is_own(batch)]
        if len(own) < MOST_STUCK and all(batch in self._stuck for batch in own):
            self.journal.close_batch()  # only then: one that the store does not take must not become many
        for batch in self.journal.waiting():
            try:
                # In a thread: what a farm that was killed has left may be long.
                rows = await asyncio.to_thread(self._rows, batch)
            except CloudfarmError as error:
                self._stuck[batch] = error
            else:
                await self._store(batch, rows)

    async def _store(self, batch: str, rows: Sequence[Note]) -> None:
        try:
            async with self.store.begin() as uow:
                await uow.served.append(batch, rows)
                await uow.commit()
        except AlreadyExistsError:
            pass  # handed over before
        except UnavailableError:
            raise  # nothing else is taken either, and the ledger may have this one: no time to count anew
        except CloudfarmError as error:
            self._stuck[batch] = error
            return
        if batch not in self._settled:
            self._settled.add(batch)
            if self.journal.is_own(batch):
                self._settle(rows)
            else:
                self._recount = True  # another process counted it
        try:
            self.journal.drop(batch)
        except CloudfarmError as error:
            self._stuck[batch] = error
        else:
            self._settled.discard(batch)
            self._stuck.pop(batch, None)

    def _rows(self, batch: str) -> Sequence[Note]:
        return by_minute(self.journal.read(batch))

    def _settle(self, rows: Sequence[Note]) -> None:
        for note in rows:
            whose = note.account.tenant, note.account.key_id
            self._pending[whose] -= note.used.tokens
            if not self._pending[whose]:
                del self._pending[whose]

    async def _read_limits(self) -> None:
        # Nothing is handed over meanwhile: what the ledger says and what is pending then is all there is.
        self._changed, recount = False, self._recount
        try:
            now_ms = self.clock.now_ms()
            from_ms, until_ms = month_of(now_ms)
            async with self.store.begin(write=False) as uow:
                keys = await uow.credentials.list_limited()
                budgets: dict[Whose, int | None] = {
                    (key.tenant or "", key.id): key.tokens_per_month for key in keys
                }
                budgets |= {(each.id, None): each.limit_tokens_per_month for each in await uow.tenants.list()}
                limited = {whose: limit for whose, limit in budgets.items() if limit is not None}
                counted = {
                    (tenant, key_id): await uow.served.tokens(
                        tenant=tenant, key_id=key_id, from_ms=from_ms, until_ms=until_ms
                    )
                    for tenant, key_id in limited
                    if recount or self._allowances.used(tenant, key_id, now_ms) is None
                }
                lately = () if self._ready else await uow.served.days(from_ms=now_ms - MINUTE_MS + 1)
        except BaseException:
            self._changed = True
            raise
        now_ms = self.clock.now_ms()
        if now_ms >= until_ms:
            self._changed = self._recount = True  # of another month now: at the next step
            return
        self._allowances.put(
            {key.id: key.limits for key in keys},
            {
                whose: Budget(limit, counted[whose] + self._pending_of(*whose))
                if whose in counted
                else Budget(limit, self._allowances.used(*whose, now_ms) or 0)
                for whose, limit in limited.items()
            },
            now_ms,
        )
        by_key: dict[str, Used] = {}
        for each in lately:
            by_key[each.account.key_id] = by_key.get(each.account.key_id, Used()) + each.used
        self._allowances.resume(by_key, now_ms)
        self._ready, self._recount = True, False

    def _pending_of(self, tenant: str, key_id: str | None) -> int:
        return sum(
            tokens
            for (whose, key), tokens in self._pending.items()
            if whose == tenant and key_id in (None, key)
        )
