"""The steward's loop: one step looks, decides and acts; the runner repeats it when woken or when a tick has passed."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cloudfarm.clock import Clock
from cloudfarm.domain.load import LoadReport
from cloudfarm.domain.status import Event
from cloudfarm.domain.workload import LEFT_ITS_LEASE
from cloudfarm.errors import CloudfarmError, FencedError
from cloudfarm.ports import Store, UnitOfWork, Watch
from cloudfarm.steward.act import Actor
from cloudfarm.steward.decide import Admission, decide
from cloudfarm.steward.observe import Observer
from cloudfarm.steward.view import FarmView, Policy

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Steward:
    """One steward; it acts only while no newer one has taken an epoch."""

    store: Store
    clock: Clock
    observer: Observer
    actor: Actor
    watch: Watch
    admit: Admission
    next_look_ms: Callable[[FarmView], int | None]
    """When admission may decide otherwise though nothing has happened; None if only an event can change anything."""
    policy: Policy
    tick_s: float
    watch_s: float
    epoch: int = 0
    since_ms: int = 0
    """When it took over."""
    _loads: LoadReport | None = None
    _look_ms: int | None = None
    """What :attr:`next_look_ms` said of what was last seen."""
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def take_over(self) -> None:
        """Take a new epoch: from now on every older steward is refused by the store and by the hosts."""
        async with self.store.begin() as uow:
            self.epoch = await uow.take_epoch()
            await uow.commit()
        self.since_ms = self.clock.now_ms()
        log.info("steward takes over with epoch %d", self.epoch)

    async def step(self) -> int:
        """Look, decide, act; return how many decisions changed something.

        Raises:
            FencedError: if a newer steward has taken over.
        """
        self._look_ms = None  # a step that fails is tried again at the next tick, not at once
        late = self.actor.tells_serve
        view = await self.observer.look(self.epoch, self.since_ms, self._loads)
        if late:
            # What it says now may be of before it took that: a service that is put to sleep would seem to run.
            view = replace(view, serve_apps=None)
        self._look_ms = self.next_look_ms(view)
        decisions = decide(view, admit=self.admit, policy=self.policy)
        changed = await self.actor.carry_out(decisions, view, self.epoch)
        async with self.store.begin() as uow:
            await uow.check_epoch(self.epoch)
            await uow.heartbeat(view.now_ms)
            await uow.put_hosts(view.hosts)
            await uow.commit()
        return changed

    def rest_s(self) -> float:
        """Return for how long the farm need not be looked at: a tick, or until time alone may change a decision."""
        if self._look_ms is None:
            return self.tick_s
        return min(self.tick_s, max(0, self._look_ms - self.clock.now_ms()) / 1000)

    async def sweep(self) -> list[Event]:
        """Stop tenants' work outside its leases, and store what was found."""
        async with self.store.begin(write=False) as uow:
            leases = await uow.leases.list(open_only=True)
        events = list(await self.watch.sweep(leases))
        if events:
            async with self.store.begin() as uow:
                await uow.check_epoch(self.epoch)
                for event in events:
                    log.warning("%s %s: %s", event.kind, event.subject, event.message)
                    await uow.events.append(event)
                    await self._tell_job(uow, event)
                await uow.commit()
        return events

    async def _tell_job(self, uow: UnitOfWork, event: Event) -> None:
        for job in await uow.jobs.list(open_only=True):
            if job.ray_id == event.subject:
                await uow.jobs.update(replace(job, message=event.message, error_type=LEFT_ITS_LEASE))

    def report(self, report: LoadReport) -> None:
        """Take what services are asked; one that is waited for is looked at now."""
        self._loads = report
        if any(load.waiting for load in report.loads.values()):
            self.wake()

    def wake(self) -> None:
        """Make the runner step now."""
        self._woken.set()

    async def run(self) -> None:
        """Take over, then repeat steps and sweeps.

        Raises:
            ExceptionGroup: with a FencedError when a newer steward has taken over, or with what should not happen.
        """
        await self.take_over()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._step_forever())
            both.create_task(self._sweep_forever())

    async def _step_forever(self) -> None:
        while True:
            self._woken.clear()
            try:
                changed = await self.step()
            except FencedError:
                raise
            except CloudfarmError as error:
                log.warning("a step failed and is tried again: %s", error)
                changed = 0
            if not changed:
                await self._rest(self.rest_s())

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self.watch_s)
            try:
                await self.sweep()
            except FencedError:
                raise
            except CloudfarmError as error:
                log.warning("a sweep failed and is tried again: %s", error)

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._woken.wait(), timeout=seconds)
        except TimeoutError:
            return
