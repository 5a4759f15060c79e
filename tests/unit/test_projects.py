"""Projects: a service's lease counts against its own, and what they have used stands in their past."""

from cloudfarm.domain.quota import Quota
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants

HOUR_MS = 3_600_000


async def test_a_services_lease_counts_against_its_project() -> None:
    farm = MemoryFarm()
    await farm.begin()
    await farm.deploy("wind", project="night")
    await farm.settle()
    (lease,) = await farm.leases_of("r-wind-1")
    assert (lease.project, lease.status) == ("night", LeaseStatus.ACTIVE)


async def test_what_a_project_has_used_counts_when_its_leases_have_ended() -> None:
    farm = MemoryFarm(quotas=[Quota("a"), Quota("a/x", "a"), Quota("a/y", "a"), Quota("b")])
    await farm.begin()
    await farm.request("big", "2x1", project="x", hours=3)
    await farm.request("small", "0.5", project="y", hours=3)
    await farm.request("other", "0.5", tenant="b", hours=3)
    await farm.settle()
    farm.clock.advance(2 * HOUR_MS)
    for lease_id in ("big", "small", "other"):
        await farm.release(lease_id)
    await farm.settle()
    await check_invariants(farm.store)
    farm.clock.advance(HOUR_MS)
    past = (await farm.steward.observer.look(farm.store.state.epoch)).past
    assert set(past) == {"a", "a/x", "a/y", "b", "b/"}
    assert past["a/x"] == 4 * past["a/y"] == 4 * past["b/"] > 0
    assert past["a"] == past["a/x"] + past["a/y"]
