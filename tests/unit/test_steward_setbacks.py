"""A service whose leases do not start asks for others, but ever later."""

import pytest

from cloudfarm.domain.load import Load, LoadReport
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus
from cloudfarm.steward.scaling import SILENT_MS
from cloudfarm.steward.setbacks import FIRST_MS, LONGEST_MS, Setbacks
from cloudfarm.testing.factories import make_lease
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants

WIND = "s-wind"
HOUR_MS = 3_600_000


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


async def test_what_does_not_start_is_tried_again_ever_later_until_it_does(farm) -> None:
    farm.hosts.broken = {"h0", "h1"}
    began_ms = farm.clock.now_ms()
    await farm.deploy("wind", min_replicas=2, max_replicas=2)
    await farm.settle()
    await pass_time(farm, 1_000_000)

    async def asked_s() -> list[int]:
        async with farm.store.begin(write=False) as uow:
            return sorted((lease.created_ms - began_ms) // 1000 for lease in await uow.leases.list())

    pauses_s = [0, 5, 10, 20, 40, 80, 160, 300, 300]
    assert await asked_s() == [sum(pauses_s[: each + 1]) for each in range(9) for _ in range(2)]
    farm.hosts.broken.clear()
    await pass_time(farm, 301_000)
    assert await status(farm) is RevisionStatus.RUNNING
    # One that has started makes up for them: the next one that does not is tried again as soon as the first.
    farm.hosts.broken = {"h0", "h1"}
    lost_ms = farm.clock.now_ms()
    farm.hosts.lose((await farm.leases_of("r-wind-1"))[0].slices[0].name)
    await pass_time(farm, 6_000)
    assert (await asked_s())[-2:] == [(lost_ms + after_ms - began_ms) // 1000 for after_ms in (1_000, 6_000)]
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


def test_what_was_long_ago_is_forgotten():
    setbacks = Setbacks()

    def failed(lease_id: str):
        return make_lease(
            lease_id, status=LeaseStatus.ENDING, reason=EndReason.START_FAILED, revision_id="r1"
        )

    assert setbacks.look([failed("l0")], 0) == {"r1": FIRST_MS}
    assert setbacks.look([failed("l0")], 2_000) == {"r1": FIRST_MS}
    assert setbacks.look([failed("l1"), failed("l2")], 10_000) == {"r1": 10_000 + 2 * FIRST_MS}
    until_ms = 10_000 + 2 * FIRST_MS
    assert setbacks.look([], until_ms + LONGEST_MS - 1) == {"r1": until_ms}
    assert setbacks.look([], until_ms + LONGEST_MS) == {}
    assert setbacks.look([failed("l3")], HOUR_MS) == {"r1": HOUR_MS + FIRST_MS}
