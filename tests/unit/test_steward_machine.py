"""Whatever happens in whatever order: no GPU is leased twice, the ledger is exact, nothing outlives its lease.

A Hypothesis state machine over the real steward with the memory store and fake hosts: leases and jobs come and go,
nodes die, hosts fall silent, refuse to start or to kill, Ray does not answer, the steward crashes and is fenced.
"""

import asyncio
from collections import Counter
from random import Random
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from cloudfarm.domain import ids
from cloudfarm.domain.lease import LeaseKind
from cloudfarm.domain.status import EndReason, JobStatus, LeaseStatus
from cloudfarm.domain.workload import LEFT_ITS_LEASE
from cloudfarm.errors import FencedError
from cloudfarm.steward.decide import decide
from cloudfarm.testing.farm import POLICY, MemoryFarm
from cloudfarm.testing.invariants import check_invariants

HOSTS = st.sampled_from(["h0", "h1"])
SHAPES = st.sampled_from(["0.25", "0.5", "2x0.5", "1", "2", "4x1", "3x0.3", "0"])


class FarmMachine(RuleBasedStateMachine):
    leases = Bundle("leases")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        # Ids break ties. With others each time the same steps would not lead to the same farm.
        self.ids = patch.object(ids, "secrets", Random(0))  # noqa: S311 - nothing is kept secret here
        self.ids.start()
        self.loop = asyncio.new_event_loop()
        self.farm = self.make_farm()
        self.count = 0

    def make_farm(self) -> MemoryFarm:
        return MemoryFarm()

    def do(self, work):
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        try:
            self.calm()
            self.do(self.everything_ends())
        finally:
            self.loop.close()
            self.ids.stop()

    def calm(self) -> None:
        hosts = self.farm.hosts
        for knob in (hosts.silent, hosts.slow, hosts.broken, hosts.sticky, hosts.busy):
            knob.clear()
        self.farm.ray_jobs.down = False

    async def everything_ends(self) -> None:
        """After all faults are gone and every lease was given back, nothing is left and all is accounted for."""
        farm = self.farm
        async with farm.store.begin(write=False) as uow:
            waiting = list(await uow.leases.list(open_only=True))
        for lease in waiting:
            await farm.release(lease.id)
        await farm.settle()
        assert farm.hosts.nodes == {}
        async with farm.store.begin(write=False) as uow:
            assert list(await uow.leases.list(open_only=True)) == []
            assert list(await uow.jobs.list(open_only=True)) == []
        await check_invariants(farm.store)

    @initialize()
    def begin(self) -> None:
        self.do(self.farm.begin())

    def new_id(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    @rule(
        target=leases, shape=SHAPES, tenant=st.sampled_from("ab"), hours=st.sampled_from([0.001, 0.01, 1.0])
    )
    def request(self, shape: str, tenant: str, hours: float) -> str:
        lease_id = self.new_id("l")
        self.do(self.farm.request(lease_id, shape, tenant=tenant, hours=hours))
        return lease_id

    @rule(target=jobs, shape=SHAPES)
    def submit(self, shape: str):
        lease_id, job_id = self.new_id("l"), self.new_id("j")
        self.do(self.farm.request(lease_id, shape, kind=LeaseKind.JOB))
        self.do(self.farm.submit(job_id, lease_id))
        return job_id

    @rule(lease_id=consumes(leases))
    def release(self, lease_id: str) -> None:
        self.do(self.farm.release(lease_id))

    @rule(job_id=consumes(jobs), status=st.sampled_from([JobStatus.SUCCEEDED, JobStatus.FAILED]))
    def job_ends(self, job_id: str, status: JobStatus) -> None:
        ray_id = f"a.{job_id}.{job_id}"
        if ray_id in self.farm.ray_jobs.jobs:
            self.farm.ray_jobs.end(ray_id, status)

    @rule(host=HOSTS, knob=st.sampled_from(["silent", "slow", "broken", "sticky", "busy"]), on=st.booleans())
    def trouble(self, host: str, knob: str, on: bool) -> None:
        hosts = getattr(self.farm.hosts, knob)
        if on:
            hosts.add(host)
        else:
            hosts.discard(host)

    @rule(down=st.booleans())
    def ray_trouble(self, down: bool) -> None:
        self.farm.ray_jobs.down = down

    @rule(pick=st.randoms(use_true_random=False), without_trace=st.booleans())
    def a_node_dies(self, pick, without_trace: bool) -> None:
        names = sorted(name for _, name in self.farm.hosts.nodes)
        if names:
            die = self.farm.hosts.wipe if without_trace else self.farm.hosts.lose
            die(pick.choice(names))

    @rule()
    def the_steward_crashes(self) -> None:
        old = self.farm.steward
        self.do(self.farm.crash())
        with pytest.raises(FencedError):
            self.do(old.step())

    @rule(seconds=st.sampled_from([0.2, 1, 5, 40, 70]))
    def time_passes(self, seconds: float) -> None:
        self.farm.clock.advance(int(seconds * 1000))

    @rule()
    def step(self) -> None:
        self.do(self.farm.step())

    @rule()
    def calm_down_and_settle(self) -> None:
        self.calm()
        self.do(self.farm.settle())
        self.do(self.work_is_conserved())

    async def work_is_conserved(self) -> None:
        """With no trouble left, every node belongs to a lease that holds capacity, and every active one is whole."""
        async with self.farm.store.begin(write=False) as uow:
            leases = await uow.leases.list(open_only=True)
        owned = {piece.name for lease in leases if lease.status.holds_capacity for piece in lease.slices}
        running = {name for _, name in self.farm.hosts.nodes}
        assert running <= owned
        for lease in leases:
            if lease.status is LeaseStatus.ACTIVE:
                assert lease.noticed_ms is None  # else its nodes were drained, whatever failed, and are idle
                assert {piece.name for piece in lease.slices} <= running

    @invariant()
    def promises_hold(self) -> None:
        self.do(check_invariants(self.farm.store))
        self.do(self.no_gpu_is_really_shared_beyond_itself())

    async def no_gpu_is_really_shared_beyond_itself(self) -> None:
        """Count what runs on the hosts, whatever the store believes."""
        async with self.farm.store.begin(write=False) as uow:
            slices = {piece.name: piece for lease in await uow.leases.list() for piece in lease.slices}
        used: Counter[tuple[str, int]] = Counter()
        for host, name in self.farm.hosts.nodes:
            for gpu in slices[name].gpu_indices:
                used[host, gpu] += slices[name].milli_gpus // len(slices[name].gpu_indices)
        assert all(milli <= 1000 for milli in used.values()), used


TestFarmMachine = FarmMachine.TestCase
TestFarmMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


async def test_the_runner_ends_when_it_is_fenced_and_when_a_sweep_breaks() -> None:
    farm = MemoryFarm()
    await farm.begin()
    farm.steward.tick_s = farm.steward.watch_s = 0.001
    took_over = asyncio.Event()

    async def quiet(_leases):
        took_over.set()  # nothing is swept before
        return []

    farm.watch.sweep = quiet
    running = asyncio.create_task(farm.steward.run())
    await took_over.wait()
    await farm.crash()
    with pytest.raises(ExceptionGroup) as ended:
        await running
    assert ended.group_contains(FencedError)

    async def broken(_leases):
        raise ValueError("a bug")

    farm.watch.sweep = broken
    farm.steward.tick_s = farm.steward.watch_s = 0.001
    with pytest.raises(ExceptionGroup) as ended:
        await farm.steward.run()
    assert ended.group_contains(ValueError)


async def test_a_job_whose_work_left_its_lease_has_failed() -> None:
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("l1", "0.5", kind=LeaseKind.JOB)
    job = await farm.submit("j1", "l1")
    await farm.settle()
    farm.watch.escape(job.ray_id, "l1")
    (event,) = await farm.steward.sweep()
    assert (event.subject, event.tenant) == (job.ray_id, "a")
    await farm.settle()
    ended = await farm.job("j1")
    assert (ended.status, ended.error_type, ended.message) == (
        JobStatus.FAILED,
        LEFT_ITS_LEASE,
        event.message,
    )
    assert (await farm.lease("l1")).status is LeaseStatus.ENDED
    assert await farm.steward.sweep() == []


async def test_a_new_steward_that_has_not_heard_from_a_host_takes_nothing_on_it_for_lost() -> None:
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("l1", "0.5")
    await farm.settle()
    farm.clock.advance(10 * POLICY.host_lost_ms)  # no steward ran for a long time
    farm.hosts.silent.add("h0")
    await farm.crash()
    await farm.settle()
    assert (await farm.lease("l1")).status is LeaseStatus.ACTIVE
    farm.clock.advance(POLICY.host_lost_ms - 1)
    await farm.settle()
    assert (await farm.lease("l1")).status is LeaseStatus.ACTIVE
    farm.clock.advance(2)
    await farm.settle()
    lost = await farm.lease("l1")
    assert (lost.status, lost.reason) == (LeaseStatus.ENDED, EndReason.NODE_LOST)
    assert lost.ended_ms == lost.started_ms  # it was last seen when it started


async def test_what_was_lost_while_no_steward_ran_is_charged_until_it_was_last_seen() -> None:
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("l1", "0.5")
    await farm.settle()
    farm.clock.advance(5_000)
    await farm.settle()
    seen_ms = farm.clock.now_ms()
    farm.hosts.lose("l1-0")
    farm.clock.advance(3_600_000)
    farm.hosts.silent.add("h0")  # the new steward's first looks do not find the host
    await farm.crash()
    await farm.settle()
    farm.clock.advance(10_000)
    await farm.settle()
    farm.hosts.silent.clear()
    await farm.settle()
    lost = await farm.lease("l1")
    assert (lost.reason, lost.ended_ms) == (EndReason.NODE_LOST, seen_ms)
    await check_invariants(farm.store)


async def test_a_fenced_steward_changes_nothing_even_with_a_view_from_before() -> None:
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("l1", "0.5")
    old = farm.steward
    view = await old.observer.look(old.epoch)
    decisions = decide(view, admit=old.admit, policy=old.policy)
    assert decisions
    await farm.crash()
    with pytest.raises(FencedError):
        await old.actor.carry_out(decisions, view, old.epoch)
    assert (await farm.lease("l1")).status is LeaseStatus.WAITING
