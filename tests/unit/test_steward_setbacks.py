"""A service whose leases do not start, or that fails on them, asks for others, but ever later."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import pytest

from cloudfarm.domain.load import Load, LoadReport
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus
from cloudfarm.steward.scaling import SILENT_MS
from cloudfarm.steward.setbacks import FIRST_MS, LONGEST_START_MS, Setbacks
from cloudfarm.steward.view import FarmView
from cloudfarm.testing.factories import make_lease
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants

WIND = "s-wind"
HOUR_MS = 3_600_000
PAUSES_S = (0, 5, 10, 20, 40, 80, 160)


@pytest.fixture
async def farm() -> MemoryFarm:
    farm = MemoryFarm()
    await farm.begin()
    farm.clock.advance(SILENT_MS + 1)
    return farm


async def pass_time(farm: MemoryFarm, milliseconds: int) -> None:
    for _ in range(milliseconds // 1_000):
        farm.clock.advance(1_000)
        await farm.settle()


async def status(farm: MemoryFarm) -> RevisionStatus:
    (revision,) = await farm.revisions(WIND)
    return revision.status


async def asked_s(farm: MemoryFarm, since_ms: int) -> list[int]:
    """After how many seconds each lease was asked for."""
    async with farm.store.begin(write=False) as uow:
        return sorted((lease.created_ms - since_ms) // 1000 for lease in await uow.leases.list())


def twice_each(pauses_s: Sequence[int]) -> list[int]:
    """Return when two leases are asked for after each pause."""
    return [at_s for at_s in accumulate(pauses_s) for _ in range(2)]


async def test_what_does_not_start_is_tried_again_ever_later_until_it_does(farm) -> None:
    farm.hosts.broken = {"h0", "h1"}
    began_ms = farm.clock.now_ms()
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    await pass_time(farm, 1_000_000)

    assert await asked_s(farm, began_ms) == twice_each((*PAUSES_S, 300, 300))
    farm.hosts.broken.clear()
    await pass_time(farm, 301_000)
    assert await status(farm) is RevisionStatus.RUNNING
    # One that has started makes up for them: the next one that does not is tried again as soon as the first.
    farm.hosts.broken = {"h0", "h1"}
    lost_ms = farm.clock.now_ms()
    farm.hosts.lose((await farm.leases_of("r-wind-1"))[0].slices[0].name)
    await pass_time(farm, 6_000)
    assert (await asked_s(farm, lost_ms))[-2:] == [1, 6]
    await check_invariants(farm.store)


async def test_a_replica_that_does_not_start_is_held_off_beside_one_that_runs(farm) -> None:
    await farm.deploy("wind", min_replicas=1, max_replicas=2)
    await farm.settle()
    farm.hosts.broken = {"h0", "h1"}
    for _ in range(4):
        now_ms = farm.clock.now_ms()
        farm.steward.report(LoadReport(now_ms, now_ms - HOUR_MS, {WIND: Load(30, 0, now_ms)}, {}))
        await pass_time(farm, 1_000)
    async with farm.store.begin(write=False) as uow:
        assert len(await uow.leases.list()) == 2
    assert await status(farm) is RevisionStatus.RUNNING


async def test_what_fails_costs_its_tries_and_nothing_between_them(farm) -> None:
    farm.serving.failing.add("a.wind.1")
    began_ms = farm.clock.now_ms()
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    while farm.clock.now_ms() - began_ms < 6_200_000:
        (revision,) = await farm.revisions(WIND)
        assert (revision.status, revision.message) == (RevisionStatus.FAILED, "broken")
        assert await farm.leases_of("r-wind-1") == []
        farm.clock.advance(FIRST_MS)
        await farm.settle()
    assert await asked_s(farm, began_ms) == twice_each((*PAUSES_S, 320, 640, 1280, 1800, 1800))
    farm.serving.failing.clear()
    await pass_time(farm, 1_800_000)
    assert await status(farm) is RevisionStatus.RUNNING
    assert len(await farm.leases_of("r-wind-1")) == 2
    await check_invariants(farm.store)


async def test_what_may_sleep_is_tried_again_by_the_next_request_that_comes_late_enough(farm) -> None:
    def ask(peak: int) -> None:
        now_ms = farm.clock.now_ms()
        farm.steward.report(LoadReport(now_ms, now_ms - HOUR_MS, {WIND: Load(peak, peak, now_ms)}, {}))

    farm.serving.failing.add("a.wind.1")
    await farm.deploy("wind", min_replicas=0)
    await farm.settle()
    ask(1)
    await pass_time(farm, FIRST_MS - 1_000)
    assert await status(farm) is RevisionStatus.FAILED
    ask(0)
    await pass_time(farm, 60_000)
    (idle,) = await farm.revisions(WIND)
    assert idle.status is RevisionStatus.IDLE
    assert idle.message == "asleep until the next request; did not run: broken"
    async with farm.store.begin(write=False) as uow:
        assert len(await uow.leases.list()) == 1
    farm.serving.failing.clear()
    ask(1)
    await farm.settle()
    assert await status(farm) is RevisionStatus.RUNNING


def test_what_was_long_ago_is_forgotten():
    setbacks = Setbacks()

    def look(now_ms: int, *failed: str) -> Mapping[str, int]:
        leases = [
            make_lease(each, status=LeaseStatus.ENDING, reason=EndReason.START_FAILED, revision_id="r1")
            for each in failed
        ]
        view = FarmView(now_ms, tenants={}, hosts=(), leases=tuple(leases), jobs=(), services=())
        return setbacks.look(view)

    assert look(0, "l0") == {"r1": FIRST_MS}
    assert look(2_000, "l0") == {"r1": FIRST_MS}
    assert look(10_000, "l1", "l2") == {"r1": 10_000 + 2 * FIRST_MS}
    until_ms = 10_000 + 2 * FIRST_MS
    assert look(until_ms + LONGEST_START_MS - 1) == {"r1": until_ms}
    assert look(until_ms + LONGEST_START_MS) == {}
    assert look(HOUR_MS, "l3") == {"r1": HOUR_MS + FIRST_MS}
