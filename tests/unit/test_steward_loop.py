"""When the runner looks again: at its tick, when it is woken, and when time alone may change a decision."""

import asyncio

import pytest

from cloudfarm.domain.quantities import GIB
from cloudfarm.domain.quota import Amounts, Quota
from cloudfarm.errors import UnavailableError
from cloudfarm.scheduler.rules import Rules
from cloudfarm.steward.view import FarmView
from cloudfarm.testing.fake_farm import FakeHosts
from cloudfarm.testing.farm import MemoryFarm


@pytest.fixture
async def farm() -> MemoryFarm:
    """Tenant a has borrowed the half of the farm that is promised to b, just now."""
    quotas = [Quota(name, None, Amounts(2000, 16, 64 * GIB)) for name in ("a", "b")]
    farm = MemoryFarm(rules=Rules(min_run_ms=600_000, preempt_notice_ms=60_000), quotas=quotas)
    await farm.begin()
    await farm.request("borrowed", "4x1", hours=10)
    await farm.settle()
    farm.steward.tick_s = 1000.0
    return farm


async def test_it_rests_for_a_tick_when_only_an_event_can_change_anything(farm) -> None:
    assert farm.steward.rest_s() == 1000.0


async def test_it_looks_when_a_borrower_has_run_long_enough_to_give_way(farm) -> None:
    farm.clock.advance(1000)
    await farm.request("promised", "2x1", tenant="b")
    await farm.steward.step()
    assert farm.steward.rest_s() == 599.0
    farm.clock.advance(598_500)
    assert farm.steward.rest_s() == 0.5
    farm.clock.advance(500)
    assert farm.steward.rest_s() == 0
    assert (await farm.lease("borrowed")).preempted_ms is None
    await farm.steward.step()
    await farm.steward.actor.finish()
    assert (await farm.lease("borrowed")).preempted_ms is not None


async def test_it_rests_no_longer_than_a_tick(farm) -> None:
    await farm.request("promised", "2x1", tenant="b")
    farm.steward.tick_s = 5.0
    await farm.steward.step()
    assert farm.steward.rest_s() == 5.0


async def test_a_step_that_failed_is_tried_again_at_the_tick_and_not_at_once(farm, monkeypatch) -> None:
    await farm.request("promised", "2x1", tenant="b")
    await farm.steward.step()
    farm.clock.advance(700_000)
    assert farm.steward.rest_s() == 0

    async def down(_hosts):
        raise UnavailableError("down")

    monkeypatch.setattr(FakeHosts, "observe", down)
    with pytest.raises(UnavailableError):
        await farm.steward.step()
    assert farm.steward.rest_s() == 1000.0


async def test_the_runner_wakes_by_itself_when_it_said_it_would(farm) -> None:
    steps: asyncio.Queue[int] = asyncio.Queue()

    def soon(view: FarmView) -> int:
        steps.put_nowait(view.now_ms)
        return view.now_ms + 1

    farm.steward.next_look_ms = soon
    async with asyncio.timeout(5):
        running = asyncio.create_task(farm.steward._step_forever())
        for _ in range(3):
            await steps.get()
    running.cancel()
