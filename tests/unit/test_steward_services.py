"""Services over a whole farm in memory: a lease a replica, revisions that take over, replicas that come and go."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cloudfarm.domain.lease import Lease, LeaseKind, Slice
from cloudfarm.domain.load import Load, LoadReport
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus, ServiceStatus, Target
from cloudfarm.domain.workload import Replica, Revision, ServeApp
from cloudfarm.steward.decide import decide
from cloudfarm.steward.scaling import SILENT_MS
from cloudfarm.steward.scene import LEAVE_MS
from cloudfarm.steward.services import services
from cloudfarm.steward.setbacks import FIRST_MS
from cloudfarm.steward.view import EndRevision, FarmView, ReleaseLease
from cloudfarm.testing.factories import make_lease, make_revision, make_service
from cloudfarm.testing.fake_serving import FRONT_DOOR
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants

WIND = "s-wind"


@pytest.fixture
async def farm() -> MemoryFarm:
    farm = MemoryFarm()
    await farm.begin()
    farm.clock.advance(
        SILENT_MS + 1
    )  # a steward that would have heard of the load by now, if anybody told it
    return farm


async def pass_time(farm: MemoryFarm, milliseconds: int = LEAVE_MS) -> None:
    """Let time pass as it does on a farm: every second the front door, if there is one, says the same, and is heard."""
    for _ in range(-(-milliseconds // 1000)):
        farm.clock.advance(1000)
        said = farm.steward._loads
        if said is not None and said.at_ms == farm.clock.now_ms() - 1000:
            farm.steward.report(replace(said, at_ms=farm.clock.now_ms()))
        await farm.settle()


async def revision(farm: MemoryFarm, revision_id: str = "r-wind-1") -> Revision:
    async with farm.store.begin(write=False) as uow:
        return await uow.revisions.get(revision_id)


async def statuses(farm: MemoryFarm) -> list[RevisionStatus]:
    return [each.status for each in await farm.revisions(WIND)]


def report(
    farm: MemoryFarm, peak: int, *, waiting: int = 0, last_ms: int | None = None, **under_way: int
) -> None:
    """Say what the service is asked, as a front door does that has been counting for an hour.

    Args:
        farm: whose steward is told.
        peak: requests at once.
        waiting: for it to start.
        last_ms: when the last one was under way; now, if not given.
        under_way: requests that have not ended, by revision: ``r1``.
    """
    now_ms = farm.clock.now_ms()
    load = Load(peak, waiting, now_ms if last_ms is None else last_ms)
    there = {f"a.wind.{revision[1:]}": count for revision, count in under_way.items()}
    farm.steward.report(LoadReport(now_ms, now_ms - 3_600_000, {WIND: load}, there))


def nodes(leases: Sequence[Lease]) -> set[str | None]:
    return {piece.node_id for lease in leases for piece in lease.slices}


async def test_each_replica_has_a_lease_of_its_own(farm) -> None:
    await farm.deploy("wind", min_replicas=3, max_replicas=3)
    assert await statuses(farm) == [RevisionStatus.PENDING]
    await farm.settle()
    leases = await farm.leases_of("r-wind-1")
    assert [(lease.status, lease.milli_gpus, lease.ask.shape.count) for lease in leases] == [
        (LeaseStatus.ACTIVE, 500, 1)
    ] * 3
    assert farm.serving.nodes_of("a.wind.1") == nodes(leases)
    assert len(nodes(leases)) == 3
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    await check_invariants(farm.store)


async def test_a_service_runs_with_as_many_replicas_as_there_is_room_for(farm) -> None:
    await farm.deploy("wind", min_replicas=6, max_replicas=6, milli_gpus=1000)
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    assert len(farm.serving.nodes_of("a.wind.1")) == farm.serving.applied["a.wind.1"].replicas == 4
    held = [lease.status for lease in await farm.leases_of("r-wind-1")]
    assert sorted(held) == [LeaseStatus.ACTIVE] * 4 + [LeaseStatus.WAITING] * 2


async def test_a_lost_lease_is_replaced_and_the_other_replica_goes_on(farm) -> None:
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    lost, kept = await farm.leases_of("r-wind-1")
    farm.hosts.lose(lost.slices[0].name)
    await farm.settle()
    leases = await farm.leases_of("r-wind-1")
    assert [lease.status for lease in leases] == [LeaseStatus.ACTIVE] * 2
    assert kept.id in {lease.id for lease in leases}
    assert farm.serving.nodes_of("a.wind.1") == nodes(leases)
    assert (await farm.lease(lost.id)).reason is EndReason.NODE_LOST
    assert farm.serving.deployed == {FRONT_DOOR: 1, "a.wind.1": 1}


async def test_shrinking_gives_back_only_leases_that_no_replica_is_on(farm) -> None:
    await farm.deploy("wind", min_replicas=3, max_replicas=3)
    await farm.settle()
    before = await farm.leases_of("r-wind-1")
    farm.serving.busy.add("a.wind.1")  # the replica that is to go has a stream to finish
    async with farm.store.begin() as uow:
        service = await uow.services.get(WIND)
        await uow.services.update(replace(service, min_replicas=1, max_replicas=1))
        await uow.commit()
    await farm.settle()
    assert farm.serving.applied["a.wind.1"].replicas == 1
    assert await farm.leases_of("r-wind-1") == before
    farm.serving.busy.clear()
    await farm.settle()
    (kept,) = await farm.leases_of("r-wind-1")
    assert farm.serving.nodes_of("a.wind.1") == nodes([kept])
    gone = [await farm.lease(lease.id) for lease in before if lease.id != kept.id]
    assert [lease.reason for lease in gone] == [EndReason.SCALED_DOWN] * 2
    assert farm.serving.deployed["a.wind.1"] == 1


async def test_shrinking_gives_back_first_what_waits(farm) -> None:
    await farm.deploy("wind", min_replicas=6, max_replicas=6, milli_gpus=1000)
    await farm.settle()
    running = farm.serving.nodes_of("a.wind.1")
    async with farm.store.begin() as uow:
        service = await uow.services.get(WIND)
        await uow.services.update(replace(service, min_replicas=4, max_replicas=4))
        await uow.commit()
    await farm.settle()
    leases = await farm.leases_of("r-wind-1")
    assert [lease.status for lease in leases] == [LeaseStatus.ACTIVE] * 4
    assert farm.serving.nodes_of("a.wind.1") == running == nodes(leases)


async def test_another_model_takes_over_when_it_runs_and_the_one_before_ends_later(farm) -> None:
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    farm.hosts.slow |= {"h0", "h1"}
    await farm.deploy("wind")
    await farm.settle()
    assert (await farm.service(WIND)).current_id == "r-wind-1"
    assert await statuses(farm) == [RevisionStatus.RUNNING, RevisionStatus.PENDING]
    farm.hosts.quicken()
    await farm.settle()
    assert (await farm.service(WIND)).current_id == "r-wind-2"
    assert farm.serving.nodes_of("a.wind.1")  # requests may still be on their way to it
    assert await statuses(farm) == [RevisionStatus.RUNNING, RevisionStatus.RUNNING]
    farm.serving.busy.add("a.wind.1")
    await pass_time(farm)
    assert "a.wind.1" not in farm.serving.applied
    assert await statuses(farm) == [RevisionStatus.RUNNING, RevisionStatus.RUNNING]  # Serve lets it finish
    assert len(await farm.leases_of("r-wind-1")) == 2
    farm.serving.busy.clear()
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.ENDED, RevisionStatus.RUNNING]
    assert await farm.leases_of("r-wind-1") == []
    assert len(await farm.leases_of("r-wind-2")) == 2
    assert farm.serving.deployed == {FRONT_DOOR: 1, "a.wind.1": 1, "a.wind.2": 1}
    await check_invariants(farm.store)


async def test_a_replacement_takes_over_with_what_there_is_room_for(farm) -> None:
    await farm.deploy("wind", min_replicas=3, max_replicas=3, milli_gpus=1000)
    await farm.settle()
    await farm.deploy("wind")
    await farm.settle()
    assert (await farm.service(WIND)).current_id == "r-wind-2"
    assert len(farm.serving.nodes_of("a.wind.2")) == 1
    await pass_time(farm)
    assert len(farm.serving.nodes_of("a.wind.2")) == 3


async def test_a_model_that_does_not_run_never_takes_over(farm) -> None:
    await farm.deploy("wind")
    await farm.settle()
    farm.serving.failing.add("a.wind.2")
    await farm.deploy("wind")
    await farm.settle()
    await pass_time(farm)
    service = await farm.service(WIND)
    assert service.current_id == "r-wind-1"
    assert service.message == "revision 2 does not run: broken"
    assert await statuses(farm) == [RevisionStatus.RUNNING, RevisionStatus.ENDED]
    assert await farm.leases_of("r-wind-2") == []


async def test_the_first_revision_may_fail_and_recover(farm) -> None:
    farm.serving.failing.add("a.wind.1")
    await farm.deploy("wind")
    await farm.settle()
    found = await revision(farm)
    assert (found.status, found.message) == (RevisionStatus.FAILED, "broken")
    farm.serving.failing.clear()
    await pass_time(farm, FIRST_MS)
    assert await statuses(farm) == [RevisionStatus.RUNNING]


async def test_a_canary_waits_until_it_is_promoted(farm) -> None:
    await farm.deploy("wind")
    await farm.settle()
    await farm.deploy("wind", canary_percent=10)
    await farm.settle()
    await pass_time(farm)
    assert (await farm.service(WIND)).current_id == "r-wind-1"
    assert await statuses(farm) == [RevisionStatus.RUNNING] * 2
    async with farm.store.begin() as uow:
        canary = await uow.revisions.get("r-wind-2")
        await uow.revisions.update(replace(canary, canary_percent=0))
        await uow.commit()
    await farm.settle()
    await pass_time(farm)
    assert (await farm.service(WIND)).current_id == "r-wind-2"
    assert await statuses(farm) == [RevisionStatus.ENDED, RevisionStatus.RUNNING]


async def test_a_deleted_service_leaves_serve_before_its_leases_end(farm) -> None:
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    farm.serving.busy.add("a.wind.1")
    await farm.undeploy(WIND)
    await pass_time(farm)
    assert farm.serving.applied == {}
    assert [lease.status for lease in await farm.leases_of("r-wind-1")] == [LeaseStatus.ACTIVE] * 2
    farm.serving.busy.clear()
    await farm.settle()
    assert (await farm.service(WIND)).status is ServiceStatus.DELETED
    assert farm.hosts.nodes == {}
    async with farm.store.begin(write=False) as uow:
        reasons = {lease.reason for lease in await uow.leases.list()}
    assert reasons == {EndReason.SERVICE_DELETED}
    await check_invariants(farm.store)


async def test_nothing_is_concluded_while_serve_cannot_be_seen(farm) -> None:
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    before = await farm.leases_of("r-wind-1")
    farm.serving.down = True
    await farm.undeploy(WIND)
    await pass_time(farm, 10_000)
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    assert await farm.leases_of("r-wind-1") == before


async def test_replicas_follow_the_load(farm) -> None:
    await farm.deploy("wind", min_replicas=1, max_replicas=4, target_load=10)
    await farm.settle()
    report(farm, peak=31)
    await farm.settle()
    assert len(farm.serving.nodes_of("a.wind.1")) == 4
    report(farm, peak=11)
    await farm.settle()
    assert len(farm.serving.nodes_of("a.wind.1")) == len(await farm.leases_of("r-wind-1")) == 2
    report(farm, peak=0)
    await farm.settle()
    assert len(farm.serving.nodes_of("a.wind.1")) == 1
    assert farm.serving.deployed["a.wind.1"] == 1


async def test_without_a_fresh_report_nothing_shrinks(farm) -> None:
    await farm.deploy("wind", min_replicas=0, max_replicas=4, target_load=10)
    await farm.settle()
    report(farm, peak=40)
    await farm.settle()
    await farm.crash()
    await pass_time(farm, 30_000)
    assert len(farm.serving.nodes_of("a.wind.1")) == 4
    report(farm, peak=0)
    farm.clock.advance(60_000)  # the front door has been silent since
    await farm.settle()
    assert len(farm.serving.nodes_of("a.wind.1")) == 4


async def test_a_service_falls_asleep_and_wakes(farm) -> None:
    await farm.deploy("wind", min_replicas=0, max_replicas=2, idle_ms=60_000)
    await farm.settle()
    last_ms = farm.clock.now_ms()
    farm.clock.advance(59_000)
    report(farm, peak=0, last_ms=last_ms)
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    farm.clock.advance(1_000)
    report(farm, peak=0, last_ms=last_ms)
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.IDLE]
    assert len(farm.serving.nodes_of("a.wind.1")) == 1  # for requests on their way
    await pass_time(farm)
    assert farm.serving.nodes_of("a.wind.1") == set()
    assert await farm.leases_of("r-wind-1") == []
    assert farm.hosts.nodes == {}
    report(farm, peak=1, waiting=1)
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    assert len(farm.serving.nodes_of("a.wind.1")) == 1
    assert (await revision(farm)).left_ms is None
    await check_invariants(farm.store)


async def test_who_comes_while_a_service_falls_asleep_finds_it_running(farm) -> None:
    await farm.deploy("wind", min_replicas=0, idle_ms=60_000)
    await farm.settle()
    before = farm.serving.nodes_of("a.wind.1")
    last_ms = farm.clock.now_ms()
    farm.clock.advance(60_000)
    report(farm, peak=0, last_ms=last_ms)
    await farm.settle()
    farm.clock.advance(1_000)
    report(farm, peak=1, waiting=1)
    await farm.settle()
    await pass_time(farm)
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    assert farm.serving.nodes_of("a.wind.1") == before


async def test_who_comes_while_serve_is_told_to_let_go_does_not_find_it_running(farm) -> None:
    """What Serve says then is what was before it had taken that: who is sent there finds nothing."""
    await asleep(farm)
    farm.serving.taking = asyncio.Event()
    farm.clock.advance(LEAVE_MS)
    report(farm, peak=0, last_ms=1)
    await look(farm)
    report(farm, peak=1, waiting=1)
    for _ in range(3):
        await look(farm)
    woken = await revision(farm)
    assert (woken.replicas, woken.status) == (1, RevisionStatus.IDLE)
    assert "a.wind.1" in farm.serving.applied
    farm.serving.taking.set()
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    assert farm.serving.deployed["a.wind.1"] == 2
    await check_invariants(farm.store)


async def asleep(farm: MemoryFarm) -> None:
    """Let a service fall asleep, and stop at the moment from which on it gets no requests any more."""
    await farm.deploy("wind", min_replicas=0, idle_ms=60_000)
    await farm.settle()
    last_ms = farm.clock.now_ms()
    farm.clock.advance(60_000)
    report(farm, peak=0, last_ms=last_ms)
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.IDLE]


async def look(farm: MemoryFarm) -> None:
    """Let the steward look once, and wait for none of its orders that takes long."""
    farm.steward.actor.patience_s = 0
    await farm.steward.step()
    for _ in range(100):
        await asyncio.sleep(0)


async def test_requests_stop_coming_when_that_is_stored_and_not_when_it_is_decided(farm) -> None:
    await farm.deploy("wind")
    await farm.settle()
    await farm.deploy("wind")
    for _ in range(20):  # until the second one is to take over
        view = await farm.steward.observer.look(farm.steward.epoch)
        decisions = farm_decisions(farm, view)
        farm.clock.advance(LEAVE_MS)  # the store is slow
        await farm.steward.actor.carry_out(decisions, view, farm.steward.epoch)
        await farm.steward.actor.finish()
        if (await farm.service(WIND)).current_id == "r-wind-2":
            break
    assert (await revision(farm)).left_ms == farm.clock.now_ms()


async def test_requests_to_what_falls_asleep_stop_coming_when_that_is_stored(farm) -> None:
    await asleep(farm)
    report(farm, peak=1, waiting=1)
    await farm.settle()
    farm.clock.advance(60_000)
    report(farm, peak=0, last_ms=1)
    view = await farm.steward.observer.look(farm.steward.epoch, loads=farm.steward._loads)
    await farm.steward.actor.carry_out(farm_decisions(farm, view), view, farm.steward.epoch)
    view = await farm.steward.observer.look(farm.steward.epoch, loads=farm.steward._loads)
    farm.clock.advance(LEAVE_MS)  # the store is slow
    await farm.steward.actor.carry_out(farm_decisions(farm, view), view, farm.steward.epoch)
    idle = await revision(farm)
    assert (idle.status, idle.left_ms) == (RevisionStatus.IDLE, farm.clock.now_ms())


async def test_what_has_taken_over_is_not_ended_by_what_was_decided_before(farm) -> None:
    await farm.deploy("wind")
    await farm.settle()
    await farm.deploy("wind")
    view = await farm.steward.observer.look(farm.steward.epoch)
    await pass_time(farm)
    assert (await farm.service(WIND)).current_id == "r-wind-2"
    late = [EndRevision("r-wind-2", "does not run: no such model")]
    await farm.steward.actor.carry_out(late, view, farm.steward.epoch)
    await farm.steward.actor.finish()
    assert (await revision(farm, "r-wind-2")).target is Target.RUN


async def test_what_is_to_take_over_stays_awake(farm) -> None:
    await farm.deploy("wind", min_replicas=0, idle_ms=60_000)
    await farm.settle()
    await farm.deploy("wind", canary_percent=5)
    await farm.settle()
    farm.clock.advance(120_000)
    report(farm, peak=0, last_ms=1)
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.IDLE, RevisionStatus.RUNNING]


async def test_a_stopping_farm_makes_no_leases_for_services(farm) -> None:
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    async with farm.store.begin() as uow:
        await uow.set_stopping(stopping=True)
        await uow.commit()
    await farm.settle()
    assert await farm.leases_of("r-wind-1") == []
    assert farm.serving.applied == {}
    async with farm.store.begin() as uow:
        await uow.set_stopping(stopping=False)
        await uow.commit()
    await farm.settle()
    assert await statuses(farm) == [RevisionStatus.RUNNING]
    assert len(farm.serving.nodes_of("a.wind.1")) == 2


async def test_a_second_steward_with_an_old_decision_makes_no_lease_too_many(farm) -> None:
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    view = await farm.steward.observer.look(farm.steward.epoch)
    decisions = farm_decisions(farm, view)
    for _ in range(2):
        await farm.steward.actor.carry_out(decisions, view, farm.steward.epoch)
        await farm.steward.actor.finish()
    assert len(await farm.leases_of("r-wind-1")) == 2


def farm_decisions(farm: MemoryFarm, view):
    return decide(view, admit=farm.steward.admit, policy=farm.steward.policy)


@pytest.mark.parametrize(
    ("further", "replicas_wanted", "given_back"),
    [
        ((), 1, ["l2"]),
        ((Replica(None, running=False, stopping=True),), 1, ["l2"]),  # it never had a node, and gets none
        ((Replica(None, running=False),), 1, []),  # Serve is about to place it somewhere
        ((Replica("ray-l2-0", running=False, stopping=True),), 1, []),  # it has a stream to finish
        ((), 2, []),  # Serve has not been told yet
    ],
)
def test_a_lease_is_free_when_no_replica_is_on_it_or_about_to_be(
    further, replicas_wanted, given_back
) -> None:
    leases = tuple(
        make_lease(
            each,
            created_ms=number,
            kind=LeaseKind.SERVICE,
            revision_id="r1",
            status=LeaseStatus.ACTIVE,
            slices=(Slice(each, 0, "h0", (0,), 500, 1, 1, node_id=f"ray-{each}-0"),),
        )
        for number, each in enumerate(("l1", "l2"))
    )
    app = ServeApp(
        "kaist.wind.1",
        running=True,
        failed=False,
        replicas_wanted=replicas_wanted,
        replicas=(Replica("ray-l1-0"), *further),
    )
    view = FarmView(
        now_ms=1_000,
        tenants={},
        hosts=(),
        leases=leases,
        jobs=(),
        services=(make_service(current_id="r1"),),
        revisions=(make_revision(status=RevisionStatus.RUNNING),),
        serve_apps={app.name: app},
    )
    released = [each.lease_id for each in services(view) if isinstance(each, ReleaseLease)]
    assert released == given_back
