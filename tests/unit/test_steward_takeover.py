"""Services of which something goes while they are asked: what is replaced, shrunk, lost or moved."""

from dataclasses import replace

import pytest

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus
from cloudfarm.domain.workload import DRAIN_S, Replica
from cloudfarm.steward.decide import decide
from cloudfarm.steward.scaling import SILENT_MS
from cloudfarm.steward.scene import LEAVE_MS
from cloudfarm.steward.services import GO_MS, services
from cloudfarm.steward.setbacks import LONGEST_START_MS
from cloudfarm.steward.view import DeployServices, LeaseReplicas, ReleaseLease
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants

from .test_steward_services import WIND, pass_time, report, statuses


@pytest.fixture
async def farm() -> MemoryFarm:
    farm = MemoryFarm()
    await farm.begin()
    farm.clock.advance(SILENT_MS + 1)
    return farm


async def replaced(farm: MemoryFarm, **under_way: int) -> None:
    """Let a service of two replicas be given another model, with requests under way, and stop as that takes over."""
    await farm.deploy("wind", min_replicas=2, max_replicas=2, target_load=10)
    await farm.settle()
    await farm.deploy("wind")
    report(farm, peak=20, **under_way)
    await farm.settle()
    assert (await farm.service(WIND)).current_id == "r-wind-2"


async def test_what_waits_for_a_replica_of_the_one_before_is_answered_by_it(farm) -> None:
    """Its replicas are busy, so requests wait in the front door, to which Serve would never name a replica again."""
    await replaced(farm, r1=15)
    await pass_time(farm, 60_000)
    assert farm.serving.applied["a.wind.1"].replicas == 2
    report(farm, peak=20, r1=10)
    await farm.settle()
    assert farm.serving.applied["a.wind.1"].replicas == 1
    assert len(await farm.leases_of("r-wind-1")) == 1
    report(farm, peak=20)
    await farm.settle()
    assert "a.wind.1" not in farm.serving.applied
    assert await statuses(farm) == [RevisionStatus.ENDED, RevisionStatus.RUNNING]


async def test_what_was_said_before_the_last_request_can_have_come_says_nothing_of_it(farm) -> None:
    await replaced(farm)
    farm.clock.advance(LEAVE_MS)
    await farm.settle()
    assert farm.serving.applied["a.wind.1"].replicas == 2
    report(farm, peak=20)
    await farm.settle()
    assert "a.wind.1" not in farm.serving.applied


async def test_the_one_before_answers_no_longer_than_the_longest_stream(farm) -> None:
    await replaced(farm, r1=1)
    farm.clock.advance(LEAVE_MS + DRAIN_S * 1000 - 1)
    report(farm, peak=20, r1=1)
    await farm.settle()
    assert "a.wind.1" in farm.serving.applied
    farm.clock.advance(1)
    await farm.settle()
    assert "a.wind.1" not in farm.serving.applied


async def test_a_front_door_that_is_silent_for_long_has_lost_its_requests(farm) -> None:
    await replaced(farm, r1=15)
    farm.clock.advance(SILENT_MS)
    await farm.settle()
    assert "a.wind.1" in farm.serving.applied
    farm.clock.advance(1)
    await farm.settle()
    assert "a.wind.1" not in farm.serving.applied


async def test_a_steward_that_has_just_begun_waits_to_hear_what_is_under_way(farm) -> None:
    await replaced(farm, r1=15)
    farm.clock.advance(60_000)
    await farm.crash()
    await farm.settle()
    assert farm.serving.applied["a.wind.1"].replicas == 2
    await pass_time(farm, SILENT_MS + 1_000)
    assert "a.wind.1" not in farm.serving.applied


@pytest.mark.parametrize("lost", [0, 1])
async def test_no_other_replica_goes_before_serve_has_seen_that_one_is_lost(farm, lost: int) -> None:
    """Serve chooses who goes if there are to be fewer, and one that it takes for running is as good as any."""
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    leases = await farm.leases_of("r-wind-1")
    gone, kept = leases[lost].slices[0], leases[1 - lost].slices[0]
    farm.serving.blind = True
    farm.hosts.slow |= {"h0", "h1"}
    farm.hosts.lose(gone.name)
    await farm.settle()
    assert farm.serving.nodes_of("a.wind.1") == {gone.node_id, kept.node_id}
    farm.serving.blind = False
    await farm.settle()
    assert farm.serving.applied["a.wind.1"].replicas == 1
    assert farm.serving.nodes_of("a.wind.1") == {kept.node_id}


async def promote(farm: MemoryFarm) -> None:
    async with farm.store.begin() as uow:
        canary = await uow.revisions.get("r-wind-2")
        await uow.revisions.update(replace(canary, canary_percent=0))
        await uow.commit()


async def with_canary(farm: MemoryFarm) -> None:
    """Let a service need three replicas, and have a canary with one."""
    await farm.deploy("wind", max_replicas=3, target_load=10)
    report(farm, peak=30)
    await farm.settle()
    await farm.deploy("wind", canary_percent=10)
    await farm.settle()
    assert [len(farm.serving.nodes_of(f"a.wind.{number}")) for number in (1, 2)] == [3, 1]


async def test_a_promoted_canary_grows_before_it_takes_over(farm) -> None:
    await with_canary(farm)
    farm.hosts.slow |= {"h0", "h1"}
    await promote(farm)
    await farm.settle()
    assert len(await farm.leases_of("r-wind-2")) == 3
    assert (await farm.service(WIND)).current_id == "r-wind-1"
    farm.hosts.quicken()
    await farm.settle()
    assert (await farm.service(WIND)).current_id == "r-wind-2"
    assert len(farm.serving.nodes_of("a.wind.2")) == 3


async def test_a_promoted_canary_takes_over_with_what_there_is_room_for(farm) -> None:
    await with_canary(farm)
    await farm.request("l-other", "2x1", tenant="b")
    await farm.settle()
    await promote(farm)
    await farm.settle()
    await pass_time(farm, 1_000)
    assert LeaseStatus.WAITING in {lease.status for lease in await farm.leases_of("r-wind-2")}
    assert (await farm.service(WIND)).current_id == "r-wind-2"


async def broken(farm: MemoryFarm, **settings: int) -> None:
    """Let a service's first revision fail."""
    farm.serving.failing.add("a.wind.1")
    await farm.deploy("wind", **settings)
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.FAILED]


@pytest.mark.parametrize("least", [0, 1])
async def test_what_has_failed_makes_room_for_what_is_to_take_over(least: int) -> None:
    farm = MemoryFarm(limit_milli_gpus=500)
    await farm.begin()
    await broken(farm, min_replicas=least)
    await farm.deploy("wind")
    await farm.settle()
    await pass_time(farm, SILENT_MS + LEAVE_MS)
    assert (await farm.service(WIND)).current_id == "r-wind-2"
    assert await statuses(farm) == [RevisionStatus.ENDED, RevisionStatus.RUNNING]


async def test_what_serve_is_starting_anew_gives_way_to_nothing_that_does_not_run(farm) -> None:
    """Its replica's process has died: it answers again in a moment, if it still has a lease then."""
    await farm.deploy("wind")
    await farm.settle()
    farm.hosts.slow |= {"h0", "h1"}
    await farm.deploy("wind")
    await farm.settle()
    farm.serving.sick.add("a.wind.1")
    await pass_time(farm, 10_000)
    assert (await statuses(farm))[0] is RevisionStatus.FAILED
    farm.serving.sick.clear()
    await farm.settle()
    assert (await statuses(farm))[0] is RevisionStatus.RUNNING
    assert farm.serving.deployed["a.wind.1"] == 1


async def test_what_has_failed_is_tried_again_if_nothing_takes_over(farm) -> None:
    await broken(farm)
    farm.serving.failing.add("a.wind.2")
    await farm.deploy("wind")
    await pass_time(farm, SILENT_MS + LEAVE_MS)
    assert await statuses(farm) == [RevisionStatus.FAILED, RevisionStatus.ENDED]
    farm.serving.failing.clear()
    await pass_time(farm, LONGEST_START_MS)
    assert await statuses(farm) == [RevisionStatus.RUNNING, RevisionStatus.ENDED]


async def shrunk(farm: MemoryFarm) -> None:
    """Let a service shrink from three replicas to two, one of which has a long stream to finish."""
    await farm.deploy("wind", max_replicas=4, target_load=10)
    report(farm, peak=30)
    await farm.settle()
    farm.serving.busy.add("a.wind.1")
    report(farm, peak=20)
    await farm.settle()
    assert running(farm) == 2
    assert len(await farm.leases_of("r-wind-1")) == 3


def running(farm: MemoryFarm, number: int = 1) -> int:
    return sum(each.running for each in farm.serving.replicas().get(f"a.wind.{number}", ()))


async def test_a_replica_that_finishes_is_in_no_others_way(farm) -> None:
    await shrunk(farm)
    report(farm, peak=40)
    await farm.settle()
    assert running(farm) == 4
    leases = await farm.leases_of("r-wind-1")
    assert [lease.status for lease in leases] == [LeaseStatus.ACTIVE] * 5
    await pass_time(farm, 2_000)
    assert await farm.leases_of("r-wind-1") == leases  # none goes that a replica is on, and none comes
    farm.serving.busy.clear()
    await farm.settle()
    assert (running(farm), len(await farm.leases_of("r-wind-1"))) == (4, 4)
    assert farm.serving.deployed["a.wind.1"] == 1


async def test_an_old_decision_to_grow_beside_one_that_finishes_makes_no_lease_too_many(farm) -> None:
    await shrunk(farm)
    report(farm, peak=30)
    await farm.step()
    view = await farm.steward.observer.look(farm.steward.epoch, loads=farm.steward._loads)
    decisions = decide(view, admit=farm.steward.admit, policy=farm.steward.policy)
    for _ in range(2):
        await farm.steward.actor.carry_out(decisions, view, farm.steward.epoch)
        await farm.steward.actor.finish()
    assert len(await farm.leases_of("r-wind-1")) == 4


async def test_what_serve_starts_anew_where_it_was_needs_no_other_lease(farm) -> None:
    """Serve stops a replica that does not answer, and has another one ready for its node."""
    await farm.deploy("wind")
    await farm.settle()
    (lease,) = await farm.leases_of("r-wind-1")
    node_id = lease.slices[0].node_id
    view = await farm.steward.observer.look(farm.steward.epoch)
    app = (view.serve_apps or {})["a.wind.1"]
    replicas = (Replica(node_id, running=False, stopping=True), Replica(None, running=False))
    decisions = list(services(replace(view, serve_apps={app.name: replace(app, replicas=replicas)})))
    assert DeployServices((("r-wind-1", 1),)) in decisions
    assert not any(isinstance(each, LeaseReplicas | ReleaseLease) for each in decisions)


async def given_notice(farm: MemoryFarm, notice_ms: int = 60_000) -> Lease:
    """Tell a service's only lease that it is to go."""
    (lease,) = await farm.leases_of("r-wind-1")
    async with farm.store.begin() as uow:
        told = replace(lease, preempted_ms=farm.clock.now_ms() + notice_ms, message="for another one")
        await uow.leases.update(told)
        await uow.commit()
    return lease


async def test_what_is_preempted_answers_until_another_replica_does(farm) -> None:
    await farm.deploy("wind")
    await farm.settle()
    farm.hosts.slow |= {"h0", "h1"}
    told = await given_notice(farm)
    for second in range(10):
        await pass_time(farm, 1_000)
        assert running(farm) == 1
        if second == 5:
            assert len(await farm.leases_of("r-wind-1")) == 2
            farm.hosts.quicken()
    (lease,) = await farm.leases_of("r-wind-1")
    assert lease.id != told.id
    assert farm.serving.nodes_of("a.wind.1") == {lease.slices[0].node_id}
    assert farm.serving.applied["a.wind.1"].replicas == 1
    assert (await farm.lease(told.id)).reason is EndReason.SCALED_DOWN
    assert farm.serving.deployed["a.wind.1"] == 1


async def test_what_is_preempted_without_room_elsewhere_answers_almost_until_it_has_to_go(farm) -> None:
    await farm.deploy("wind", milli_gpus=1000)
    await farm.settle()
    await farm.request("l-other", "3x1", tenant="b")
    await farm.settle()
    told = await given_notice(farm)
    await pass_time(farm, 60_000 - GO_MS - 1_000)
    assert (running(farm), farm.hosts.drained) == (1, [])
    await pass_time(farm, 1_000)
    assert [node_id for _, node_id, _ in farm.hosts.drained] == [told.slices[0].node_id]
    await pass_time(farm, GO_MS)
    (lease,) = await farm.leases_of("r-wind-1")
    assert (lease.status, lease.gone_by_ms) == (LeaseStatus.ACTIVE, None)
    assert running(farm) == 1
    await check_invariants(farm.store)
