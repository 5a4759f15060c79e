"""Whoever asks a service is answered, once, whatever it, the front door, the steward and Serve do at that moment.

The real gateway of the front door and the real steward over one store, both slow at will, and a Serve that takes what
it is told when it likes and has nothing for a request that comes too late.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from cloudfarm.domain.bundles import SERVE_APP
from cloudfarm.domain.status import JobStatus
from cloudfarm.domain.tenant import Credential, CredentialKind, Role, hash_secret
from cloudfarm.domain.workload import RUN_APP
from cloudfarm.errors import CloudfarmError, NoReplicaError
from cloudfarm.steward.scaling import SILENT_MS
from cloudfarm.steward.scene import LEAVE_MS
from cloudfarm.testing.fake_farm import FakeRayJobs
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants
from cloudfarm.testing.memory_journal import MemoryJournal
from cloudfarm.testing.memory_store import MemoryStore
from cloudfarm.troubles import Troubles
from cloudfarm.usecases.gate import Gate
from cloudfarm.usecases.inference import Calls
from cloudfarm.usecases.load import LoadReporter, Loads
from cloudfarm.usecases.metering import Meter
from cloudfarm.usecases.open_requests import OpenRequests
from cloudfarm.usecases.revisions import WaitingRoom

SECRET = "cfk_x"  # noqa: S105 - of nobody
MODEL, OWN = "wind", "sea"
MOST_AT_ONCE = 1
"""Requests that a replica takes; the others wait in the front door."""
SPEC = {"import_path": "main:app", "runtime_env": {}, "args": {}}


@dataclass(slots=True)
class SlowStore:
    """The store as one part of the farm sees it, which waits for it as long as the test likes."""

    store: MemoryStore
    quick: asyncio.Event
    stalls_after: int | None = None
    """So many transactions more, and it is slow from then on."""

    @asynccontextmanager
    async def begin(self, *, write: bool = True) -> AsyncIterator[Any]:
        if self.stalls_after is not None:
            self.stalls_after -= 1
            if self.stalls_after < 0:
                self.stalls_after = None
                self.quick.clear()
        await self.quick.wait()
        async with self.store.begin(write=write) as uow:
            yield uow


@dataclass(slots=True)
class SlowJobs(FakeRayJobs):
    """Jobs that end as slowly as the test likes."""

    end_at_once: asyncio.Event = field(default_factory=asyncio.Event)

    async def stop(self, ray_id: str) -> bool:
        await self.end_at_once.wait()
        return await FakeRayJobs.stop(self, ray_id)


@dataclass(slots=True)
class Replicas:
    """Takes requests as Serve does, for the services' replicas and for tenants' own applications."""

    farm: MemoryFarm
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while requests end at once."""
    taken: Counter[str] = field(default_factory=Counter)
    """How often a replica has got each request."""
    under_way: Counter[str] = field(default_factory=Counter)

    async def call(self, app_name: str, payload: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        del timeout_s
        await self._take(app_name, payload["id"])
        return {}

    async def answer(
        self, app_name: str, _scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Mapping[str, Any]]:
        await self._take(app_name, body.decode())
        yield {"type": "http.response.start", "status": 200}

    def running(self, app_name: str) -> int:
        """Return how many replicas take requests."""
        serving = self.farm.serving
        there = sum(each.running for each in serving.replicas().get(app_name, ()))
        return there + (app_name in serving.started)

    async def _take(self, app_name: str, request: str) -> None:
        serving = self.farm.serving
        if app_name not in serving.started and app_name not in serving.replicas():
            raise NoReplicaError  # an application that is there no more
        while True:  # in its router, for ever if need be: of what ends meanwhile Serve tells nobody
            if self.under_way[app_name] < MOST_AT_ONCE * self.running(app_name):
                break
            await asyncio.sleep(0)
        self.taken[request] += 1
        self.under_way[app_name] += 1
        serving.busy.add(app_name)
        try:
            await self.done.wait()
        finally:
            self.under_way[app_name] -= 1
            if not self.under_way[app_name]:
                serving.busy.discard(app_name)


class SleepMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.requests: dict[str, asyncio.Task[Any]] = {}
        self.looking: asyncio.Task[int] | None = None
        self.do(self.open())

    def do(self, work):
        return self.loop.run_until_complete(work)

    async def open(self) -> None:
        self.farm = farm = MemoryFarm()
        self.steward_store, self.door_store = asyncio.Event(), asyncio.Event()
        farm.ray_jobs = self.jobs = SlowJobs(farm.clock)
        farm.steward = farm.new_steward()
        await farm.begin()
        farm.clock.advance(SILENT_MS + 1)
        own = {"import_path": RUN_APP, "manifest": {"kind": SERVE_APP, "spec": SPEC}}
        for name, more in ((MODEL, {"manifest": {"kind": "windpower-forecaster"}}), (OWN, own)):
            await farm.deploy(name, min_replicas=0, idle_ms=6_000, **more)
        async with farm.store.begin() as uow:
            await uow.credentials.add(
                Credential("c", CredentialKind.KEY, "a", "app", Role.VIEWER, hash_secret(SECRET), 1)
            )
            await uow.commit()
        self.new_steward()
        store = self.slow_door_store = SlowStore(farm.store, self.door_store)
        self.replicas = Replicas(farm)
        self.farm.serving.taking = asyncio.Event()
        loads = Loads(farm.clock)
        self.reporter = LoadReporter(loads, self, Troubles(farm.store, farm.clock))
        room = WaitingRoom(store, farm.clock, loads, self, most_waiting=1_000, timeout_s=10**6, poll_s=0)
        meter = Meter(farm.store, farm.clock, MemoryJournal())
        self.calls = Calls(
            Gate(store, farm.clock, room), meter, OpenRequests(1_000, 1_000), self.replicas, self.replicas
        )
        self.everything(quick=True)
        await meter.step()
        await self.rest()

    def new_steward(self) -> None:
        actor = self.farm.steward.actor
        store = SlowStore(self.farm.store, self.steward_store)
        self.farm.steward.actor = type(actor)(
            store,
            actor.clock,
            actor.hosts,
            actor.ray_jobs,
            actor.serving,
            actor.artifacts,
            1_000,
            patience_s=0,
        )

    def everything(self, *, quick: bool) -> None:
        for event in (
            self.steward_store,
            self.door_store,
            self.jobs.end_at_once,
            self.farm.serving.taking,
            self.replicas.done,
        ):
            (event.set if quick else event.clear)()

    def nudge(self) -> None:
        raise AssertionError("nothing is changed here")

    def report(self, report) -> None:
        """Take the front door's report to the steward, at once."""
        self.farm.steward.report(report)

    async def let_run(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    async def look_once(self) -> None:
        """Let the steward look, and the jobs do that it has started, which run tenants' own applications."""
        if self.looking is None or self.looking.done():  # else it waits for the store
            self.looking = asyncio.create_task(self.farm.steward.step())
        await self.let_run()
        if self.looking.done():
            await self.looking
        serving, ray_jobs = self.farm.serving, self.farm.ray_jobs
        for driver in list(ray_jobs.drivers.values()):
            runs = ray_jobs.jobs[driver.job.ray_id].status is JobStatus.RUNNING
            if runs and not serving.started:
                serving.start("a.sea.1", driver.job.lease_id)
            elif not runs and driver.job.lease_id in self.own_lease():
                del serving.started["a.sea.1"]

    def own_lease(self) -> frozenset[str]:
        app = self.farm.serving.started.get("a.sea.1")
        return frozenset() if app is None else app.lease_ids

    async def rest(self) -> None:
        for _ in range(12):
            await self.look_once()

    @rule(name=st.sampled_from([MODEL, OWN]), stalls=st.sampled_from([None, 3]))
    def ask(self, name: str, stalls: int | None) -> None:
        """Send a request; with ``stalls`` the store is slow once that has been asked so often."""
        self.slow_door_store.stalls_after = stalls
        number = str(len(self.requests))

        async def work() -> None:
            if name == MODEL:
                await self.calls.predict(SECRET, name, {"id": number})
                return
            async for _ in self.calls.exchange(SECRET, name, {}, number.encode()):
                pass

        async def begin() -> None:
            self.requests[number] = asyncio.create_task(work())
            await self.let_run()

        self.do(begin())
        self.slow_door_store.stalls_after = None

    @rule(milliseconds=st.sampled_from([100, 400, 600, LEAVE_MS - 1, LEAVE_MS]), looks=st.integers(0, 2))
    def time_passes(self, milliseconds: int, looks: int) -> None:
        self.farm.clock.advance(milliseconds)
        self.reporter.step()
        self.look(looks)

    @rule(asked=st.integers(0, 3), then=st.sampled_from([0, LEAVE_MS - 1, LEAVE_MS]))
    def replace_model(self, asked: int, then: int) -> None:
        """Let another model take over, if nothing is in its way, while the one before is asked more than it takes."""
        for _ in range(asked):
            self.trouble("replicas", quick=False)
            self.ask(MODEL, None)
        self.do(self.farm.deploy(MODEL, manifest={"kind": "windpower-forecaster"}))
        self.look(3)
        self.time_passes(then, 1)

    @rule(times=st.integers(1, 3))
    def look(self, times: int) -> None:
        for _ in range(times):
            self.do(self.look_once())

    @rule(then=st.sampled_from([None, LEAVE_MS - 1, LEAVE_MS, LEAVE_MS]), serve_is_quick=st.booleans())
    def nobody_asks_for_long(self, then: int | None, *, serve_is_quick: bool) -> None:
        """Let services fall asleep, if nothing is in their way, and time pass until their replicas go, or nearly."""
        self.farm.clock.advance(31_000)
        self.reporter.step()
        self.look(2)
        if then is not None:
            self.trouble("serve", quick=serve_is_quick)
            self.trouble("jobs", quick=serve_is_quick)
            self.time_passes(then, 1)

    @rule(
        what=st.sampled_from(["steward", "door", "serve", "jobs", "replicas"]),
        quick=st.sampled_from([True, True, False]),
    )
    def trouble(self, what: str, *, quick: bool) -> None:
        event = {
            "steward": self.steward_store,
            "door": self.door_store,
            "serve": self.farm.serving.taking,
            "jobs": self.jobs.end_at_once,
            "replicas": self.replicas.done,
        }[what]
        (event.set if quick else event.clear)()
        self.do(self.let_run())

    def teardown(self) -> None:
        try:
            self.do(self.all_are_answered())
        finally:
            self.do(self.close())
            self.loop.close()

    async def all_are_answered(self) -> None:
        self.everything(quick=True)
        for _ in range(60):
            self.farm.clock.advance(500)
            self.reporter.step()
            await self.look_once()
            if all(request.done() for request in self.requests.values()):
                break
        failed = {
            number: request.exception() if request.done() else "waits for ever"
            for number, request in self.requests.items()
            if not request.done() or request.exception()
        }
        assert failed == {}
        assert self.replicas.taken == dict.fromkeys(self.requests, 1)
        await self.farm.steward.actor.finish()
        await check_invariants(self.farm.store)

    async def close(self) -> None:
        for request in self.requests.values():
            request.cancel()
        with suppress(CloudfarmError):
            await asyncio.gather(*self.requests.values(), return_exceptions=True)


TestSleepMachine = SleepMachine.TestCase
TestSleepMachine.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
