"""What the steward sees: the hosts' own word for what is there, the operator's for what may be used."""

from cloudfarm.domain.status import LeaseStatus
from cloudfarm.testing.farm import MemoryFarm


async def cordon(farm: MemoryFarm, host: str, *, cordoned: bool) -> None:
    async with farm.store.begin() as uow:
        await uow.set_cordoned(host, cordoned=cordoned)
        await uow.commit()


async def test_nothing_new_starts_on_a_cordoned_host_and_what_runs_there_goes_on() -> None:
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("before", "0.5")
    await farm.settle()
    assert [piece.host for piece in (await farm.lease("before")).slices] == ["h0"]
    await cordon(farm, "h0", cordoned=True)
    await farm.request("after", "0.5")
    await farm.settle()
    assert [piece.host for piece in (await farm.lease("after")).slices] == ["h1"]
    assert (await farm.lease("before")).status is LeaseStatus.ACTIVE
    await farm.crash()  # a new steward does not forget it
    await farm.request("later", "2x0.75")
    await farm.settle()
    assert (await farm.lease("later")).status is LeaseStatus.WAITING
    await cordon(farm, "h0", cordoned=False)
    await farm.settle()
    assert {piece.host for piece in (await farm.lease("later")).slices} == {"h0", "h1"}
