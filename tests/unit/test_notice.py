"""Who is told to go is known to the store first and is drained then, whatever hosts and stewards do meanwhile."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from cloudfarm.domain.status import EndReason, LeaseStatus
from cloudfarm.errors import HostError
from cloudfarm.steward.decide import decide
from cloudfarm.testing.fake_farm import FakeHosts
from cloudfarm.testing.farm import POLICY, MemoryFarm

HOUR_MS = 3_600_000
NODES = {"ray-l0-0", "ray-l0-1", "ray-l0-2", "ray-l0-3"}


@pytest.fixture
async def farm() -> MemoryFarm:
    """One lease, for an hour, has the GPUs of both hosts; it works on h1 only, and its notice is due."""
    farm = MemoryFarm()
    farm.hosts.busy = {"h1"}
    await farm.begin()
    await farm.request("l0", "4x1", hours=1)
    await farm.settle()
    farm.clock.advance(HOUR_MS - POLICY.notice_ms)
    return farm


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Hosts whose nodes cannot be drained just now: h1, unless a test says otherwise."""
    drain, hosts = FakeHosts.drain_node, {"h1"}

    async def refuse(fake: FakeHosts, host: str, node_id: str, **order: object) -> None:
        if host in hosts:
            raise HostError(f"the agent of host {host} does not answer")
        await drain(fake, host, node_id, **order)

    monkeypatch.setattr(FakeHosts, "drain_node", refuse)
    return hosts


def drained(farm: MemoryFarm) -> Counter[str]:
    return Counter(node_id for _, node_id, _ in farm.hosts.drained)


async def test_a_host_that_is_slow_to_drain_costs_nobody_the_rest_of_the_notice(farm, monkeypatch) -> None:
    drain, go = FakeHosts.drain_node, asyncio.Event()

    async def slow(fake: FakeHosts, host: str, node_id: str, **order: object) -> None:
        if host == "h1":
            await go.wait()
        await drain(fake, host, node_id, **order)

    monkeypatch.setattr(FakeHosts, "drain_node", slow)
    farm.steward.actor.patience_s = 0.01
    while len(drained(farm)) < 2:
        await farm.steward.step()
    await farm.steward.step()  # the idle nodes of h0 are gone
    lease = await farm.lease("l0")
    assert (lease.status, lease.noticed_ms) == (LeaseStatus.ACTIVE, farm.clock.now_ms())
    go.set()
    await farm.settle()
    assert drained(farm) == Counter(NODES)
    assert {deadline_ms for *_, deadline_ms in farm.hosts.drained} == {lease.ends_ms}
    farm.clock.advance(POLICY.notice_ms)
    await farm.settle()
    lease = await farm.lease("l0")
    assert (lease.reason, lease.ended_ms) == (EndReason.EXPIRED, lease.ends_ms)


@pytest.mark.parametrize("preempted", [False, True])
async def test_a_node_that_could_not_be_drained_is_drained_as_soon_as_it_can(
    farm, refused, preempted
) -> None:
    if preempted:
        async with farm.store.begin() as uow:
            lease = await uow.leases.get("l0")
            await uow.leases.update(replace(lease, preempted_ms=farm.clock.now_ms() + 20_000))
            await uow.commit()
    await farm.settle()
    assert set(drained(farm)) == {"ray-l0-0", "ray-l0-1"}
    refused.clear()
    farm.clock.advance(1000)
    await farm.settle()
    farm.clock.advance(1000)
    await farm.settle()
    assert drained(farm) == Counter(NODES)  # each once


async def test_a_steward_that_dies_after_it_gave_notice_leaves_the_drains_to_the_next(farm, refused) -> None:
    refused.add("h0")
    await farm.step()
    assert (await farm.lease("l0")).noticed_ms == farm.clock.now_ms()
    assert not drained(farm)
    refused.clear()
    await farm.crash()
    await farm.settle()
    assert drained(farm) == Counter(NODES)


async def test_a_lease_that_is_extended_as_its_notice_is_given_gets_none(farm) -> None:
    view = await farm.steward.observer.look(farm.steward.epoch)
    decisions = decide(view, admit=farm.steward.admit, policy=farm.steward.policy)
    async with farm.store.begin() as uow:
        lease = await uow.leases.get("l0")
        await uow.leases.update(replace(lease, ends_ms=lease.ends_ms + HOUR_MS))
        await uow.commit()
    await farm.steward.actor.carry_out(decisions, view, farm.steward.epoch)
    await farm.settle()
    assert (await farm.lease("l0")).noticed_ms is None
    assert not drained(farm)
    farm.clock.advance(HOUR_MS)
    await farm.settle()
    assert (await farm.lease("l0")).noticed_ms == farm.clock.now_ms()
