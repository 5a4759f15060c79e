"""What is learned from how forecasts turned out, and when new ones are made."""

import random
from dataclasses import replace

import pytest

from cloudfarm.domain.lease import ExpectedStart, LeaseKind
from cloudfarm.domain.status import EndReason, LeaseStatus
from cloudfarm.scheduler.calibration import MISSED, NONE, STEP, Guess, corrected, learned
from cloudfarm.steward.foresight import EVERY_MS, SOONEST_MS, Foresight
from cloudfarm.steward.past import _runs
from cloudfarm.steward.view import Run
from cloudfarm.testing.factories import make_lease
from cloudfarm.testing.farm import MemoryFarm

NOW = 1_700_000_000_000
MINUTE = 60_000
START = ExpectedStart("x", NOW + MINUTE, NOW + 2 * MINUTE, NOW + 4 * MINUTE)


def test_a_guess_is_told_as_it_is_until_something_is_known():
    told = corrected(Guess("x", 61_500, 90_000, 150_001, 10**9), NONE, NOW)
    assert told == ExpectedStart("x", NOW + 61_000, NOW + 90_000, NOW + 151_000)
    told = corrected(Guess("x", 0, 0, 0, 10**9), NONE, NOW + 500)
    assert told == ExpectedStart("x", NOW + 500, NOW + 500, NOW + 1000)  # not in the past


def test_a_correction_is_a_factor_on_the_time_to_go_and_a_minute():
    log_2 = 0.6931471805599453
    told = corrected(Guess("x", 60_000, 120_000, 180_000, 10**9), (-log_2, 0.0, log_2), NOW)
    assert told == ExpectedStart("x", NOW, NOW + 120_000, NOW + 420_000)
    crossed = corrected(Guess("x", 60_000, 120_000, 180_000, 10**9), (3.0, 0.0, -3.0), NOW)
    assert crossed == ExpectedStart("x", NOW + 120_000, NOW + 120_000, NOW + 120_000)


def test_a_bound_moves_a_little_inwards_or_much_outwards():
    nothing = {"x": NONE}
    inside = learned(nothing, START, NOW + 3 * MINUTE)
    assert inside == {"x": (STEP * MISSED, STEP / 2, -STEP * MISSED)}
    late = learned(nothing, START, NOW + 5 * MINUTE)
    assert late == {"x": (STEP * MISSED, STEP / 2, STEP * (1 - MISSED))}
    early = learned(late, START, NOW)
    assert early["x"] == pytest.approx((STEP * (2 * MISSED - 1), 0.0, STEP * (1 - 2 * MISSED)))
    assert learned({"y": (1.0, 1.0, 1.0)}, START, NOW + 2 * MINUTE)["y"] == (1.0, 1.0, 1.0)


def test_in_the_long_run_the_stated_share_comes_true_though_guesses_are_bad_and_the_farm_changes():
    rng = random.Random(7)  # noqa: S311 - no secret
    corrections, inside = {}, []
    for number in range(6000):
        factor = 4 if number >= 3000 else 0.3
        wait_ms = 10 * MINUTE * factor * rng.lognormvariate(0, 0.7)
        guess = Guess("x", 9 * MINUTE, 10 * MINUTE, 11 * MINUTE, 12 * MINUTE)
        told = corrected(guess, corrections.get("x", NONE), NOW)
        inside.append(told.earliest_ms <= NOW + wait_ms <= told.latest_ms)
        corrections = learned(corrections, told, round(NOW + wait_ms))
    for part in (inside[:3000], inside[3000:]):
        assert abs(sum(part) / len(part) - (1 - 2 * MISSED)) < 0.03


def seen(*names, **changes):
    return [make_lease(name, **changes) for name in names]


def test_forecasts_are_made_now_and_then_while_somebody_waits():
    foresight = Foresight()
    assert foresight.look([], NOW) is None
    assert foresight.look(seen("l1"), NOW) == {}
    assert foresight.look(seen("l1"), NOW + EVERY_MS - 1) is None
    assert foresight.look(seen("l1"), NOW + EVERY_MS) == {}
    assert foresight.look([], NOW + 9 * EVERY_MS) is None


def test_and_sooner_for_who_is_new():
    foresight = Foresight()
    assert foresight.look(seen("l1"), NOW) == {}
    assert foresight.look(seen("l1", "l2"), NOW + SOONEST_MS - 1) is None
    assert foresight.look(seen("l1", "l2"), NOW + SOONEST_MS) == {}
    assert foresight.look(seen("l2"), NOW + 2 * SOONEST_MS) is None


def test_a_lease_teaches_once_however_often_it_was_told():
    foresight = Foresight()
    second = replace(START, latest_ms=NOW + 9 * MINUTE)
    for told in (None, START, START, second):
        foresight.look(seen("l1", expected_start=told), NOW)
    started = seen("l1", status=LeaseStatus.STARTING, granted_ms=NOW + 5 * MINUTE)
    foresight.look(started, NOW)
    one = learned(learned({}, START, NOW + 5 * MINUTE, 0.5), second, NOW + 5 * MINUTE, 0.5)
    assert foresight.corrections == one
    foresight.look(started, NOW)
    assert foresight.corrections == one


def test_who_gave_up_teaches_nothing():
    foresight = Foresight()
    foresight.look(seen("l1", expected_start=START), NOW)
    foresight.look([], NOW)
    foresight.look(seen("l1", status=LeaseStatus.STARTING, granted_ms=NOW), NOW)
    assert foresight.corrections == {}


async def test_a_lease_that_waits_is_told_and_when_it_starts_no_longer():
    farm = MemoryFarm()  # two hosts with two GPUs each
    await farm.begin()
    await farm.request("first", "4x1", hours=8)
    await farm.settle()
    assert (await farm.lease("first")).expected_start is None
    await farm.request("second", "1", hours=1)
    farm.clock.advance(SOONEST_MS)
    await farm.settle()
    waits = await farm.lease("second")
    hour = 3_600_000  # nothing is known: any part of the 8 hours is as likely
    start = waits.expected_start
    assert 0 < start.earliest_ms - farm.clock.now_ms() < 1.5 * hour
    assert 3.5 * hour < start.expected_ms - farm.clock.now_ms() < 5.5 * hour
    assert start.latest_ms - farm.clock.now_ms() == 8 * hour - SOONEST_MS  # to its limit
    assert waits.told == f"{waits.message}; expected to start {start}"
    farm.clock.advance(EVERY_MS)
    await farm.settle()
    assert (await farm.lease("second")).expected_start == start  # no news
    await farm.crash()
    await farm.settle()
    await farm.release("first")
    await farm.settle()
    assert (await farm.lease("second")).status is LeaseStatus.ACTIVE
    assert (await farm.lease("second")).expected_start is None
    corrections = farm.steward.observer.foresight.corrections
    assert corrections == learned({}, start, farm.clock.now_ms())  # also by the steward after the crash


async def test_who_gives_up_is_expected_no_longer():
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("first", "4x1")
    await farm.settle()
    await farm.request("second", "1")
    farm.clock.advance(SOONEST_MS)
    await farm.settle()
    assert (await farm.lease("second")).expected_start is not None
    await farm.release("second")
    await farm.settle()
    ended = await farm.lease("second")
    assert (ended.status, ended.expected_start) == (LeaseStatus.ENDED, None)


async def test_it_is_learned_from_leases_that_have_ended_in_their_own_time():
    farm = MemoryFarm()
    await farm.begin()
    for name in ("one", "two"):
        await farm.request(name, "1", hours=2)
    await farm.settle()
    farm.clock.advance(3_600_000)
    await farm.release("one")
    await farm.settle()
    await farm.request("gave-up", "4x1")
    await farm.release("gave-up")
    await farm.settle()
    farm.clock.advance(60_000)
    view = await farm.steward.observer.look(farm.steward.epoch)
    assert view.runs == (Run("a", LeaseKind.MANUAL, 3_600_000, 7_200_000),)


@pytest.mark.parametrize("reason", EndReason)
def test_how_a_lease_ended_says_whether_it_is_learned_from(reason):
    (lease,) = seen("l1", reason=reason, started_ms=10, ended_ms=70, status=LeaseStatus.ENDED)
    of_its_own = reason in (
        EndReason.RELEASED,
        EndReason.EXPIRED,
        EndReason.JOB_FINISHED,
        EndReason.SERVICE_DELETED,
        EndReason.SCALED_DOWN,
    )
    assert list(_runs([lease])) == [Run("kaist", LeaseKind.MANUAL, 60, 3_600_000)] * of_its_own
