"""A farm's past told anew: what is taken for what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.domain.lease import LeaseKind
from cloudfarm.domain.quota import Quota, QuotaTree
from cloudfarm.domain.status import EndReason
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.history import Memory, PastUse, Use, past_shares
from cloudfarm.simulate.compare import Window
from cloudfarm.simulate.history import read_past
from cloudfarm.testing.factories import keep
from cloudfarm.testing.memory_store import MemoryStore
from tests.lived import at, lived, minutes_of, past, tell
from tests.scheduling import HOUR, MINUTE, gpus


def works_of(told):
    return {work.id: work for work in told.works}


HALF = lived("zz1", 0, (0, 30), over=30)
"""Of all that is known, the usual part is then a half."""


# What is taken for what


def test_what_ended_runs_for_as_long_as_it_did():
    told = tell(past(lived("aa1", 5, (7, 40), over=40)))
    (work,) = told.works
    assert (work.arrives_ms, work.runs_ms, work.ask.duration_ms) == (at(5), 33 * MINUTE, HOUR)
    assert minutes_of(told.courses["aa1"]) == [(7, 40)]
    assert (told.courses["aa1"].is_known, told.assumed, told.left_out) == (True, 0, 0)


def test_what_was_preempted_is_one_story_and_what_it_did_twice_is_not_its_run_time():
    told = tell(past(lived("aa1", 0, (0, 26), (36, 76), over=76, limit=60, lost=[6])))
    (work,) = told.works
    assert (work.runs_ms, work.ask.duration_ms) == (60 * MINUTE, 60 * MINUTE)
    course = told.courses["aa1"]
    assert minutes_of(course) == [(0, 26), (36, 76)]
    assert (course.preempted, course.lost_ms) == (1, 6 * MINUTE)


def test_what_still_runs_runs_to_its_limit():
    found = past(
        lived("aa1", 0, (0, 26), (36,), limit=100, lost=[6]),
        lived("aa2", 0, (0,), limit=9000),
        HALF,
        seen=50,
    )
    told = tell(found)
    assert {id_: work.runs_ms for id_, work in works_of(told).items()} == {
        "aa1": 100 * MINUTE,
        "aa2": 9000 * MINUTE,
        "zz1": 30 * MINUTE,
    }
    assert minutes_of(told.courses["aa1"]) == [(0, 26), (36, 50)]
    assert told.courses["aa1"].over_ms is None
    assert told.assumed == 2


def test_what_waits_anew_runs_to_its_limit():
    told = tell(past(lived("aa1", 0, (0, 26), limit=100, lost=[6], waits_anew=True), HALF, seen=50))
    assert works_of(told)["aa1"].runs_ms == 100 * MINUTE
    assert (told.courses["aa1"].preempted, told.courses["aa1"].over_ms) == (1, None)


def test_what_was_given_up_is_given_up_then_or_runs_the_usual_part_of_its_limit():
    # Of aa five ran half of their limits; of bb too few are known, so the farm's median counts.
    half = [lived(f"aa{number}", number, (number, number + 30), over=number + 30) for number in range(5)]
    quarter = lived("bb1", 0, (0, 15), over=15)
    given_up = [lived("aa9", 50, over=70), lived("bb9", 50, over=80)]
    told = tell(past(*half, quarter, *given_up))
    works = works_of(told)
    assert (works["aa9"].runs_ms, works["aa9"].gives_up_ms) == (30 * MINUTE, at(70))
    assert (works["bb9"].runs_ms, works["bb9"].gives_up_ms) == (30 * MINUTE, at(80))
    assert told.courses["aa9"].over_ms == at(70)
    assert not told.courses["aa9"].is_known
    assert told.assumed == 2


def test_the_farms_usual_part_counts_for_a_tenant_of_whom_little_is_known():
    half = [lived(f"aa{number}", number, (number, number + 30), over=number + 30) for number in range(5)]
    quarters = [lived(f"bb{number}", number, (number, number + 15), over=number + 15) for number in range(4)]
    thirds = [lived(f"cc{number}", number, (number, number + 20), over=number + 20) for number in range(4)]
    waits = [lived("aa9", 50), lived("bb9", 50), lived("cc9", 50)]
    works = works_of(tell(past(*half, *quarters, *thirds, *waits)))
    assert [works[id_].runs_ms // MINUTE for id_ in ("aa9", "bb9", "cc9")] == [30, 20, 20]
    assert works["aa9"].gives_up_ms is None


def test_a_service_that_never_started_would_be_held_to_its_limit():
    told = tell(past(lived("aa1", 0, kind=LeaseKind.SERVICE, limit=50_000), HALF))
    assert works_of(told)["aa1"].runs_ms == 50_000 * MINUTE


def test_what_ended_while_it_started_is_left_out():
    failed = lived("aa1", 0, over=2, granted_ms=at(0), reason=EndReason.START_FAILED)
    told = tell(past(failed, lived("aa2", 0, (0, 9), over=9)))
    assert [work.id for work in told.works] == ["aa2"]
    assert (told.left_out, told.assumed) == (1, 0)


def test_what_was_there_before_the_window_is_there_at_its_beginning_in_its_order():
    found = past(
        lived(
            "aa1", 0, (10, 26), (40, 84), over=84, limit=100, lost=[6]
        ),  # ran, with 10 minutes done until 50
        lived("bb1", 30, (84, 99), over=99),  # waited
        lived("bb2", 20, over=95),  # waited before it, and was given up
        lived("aa2", 0, (0, 26), over=26),  # was over
        lived("aa3", 60, (99, 120), over=120),
        lived("aa4", 130, (130, 140), over=140),  # came later
    )
    told = tell(found, from_=50, until=125)
    assert [work.id for work in told.works] == ["aa1", "bb2", "bb1", "aa3"]
    ran, waited, _, new = told.works
    assert [work.arrives_ms for work in told.works] == [at(50) - 3, at(50) - 2, at(50) - 1, at(60)]
    assert (ran.runs_ms, ran.ask.duration_ms) == (34 * MINUTE + 3, 80 * MINUTE + 3)  # 10 saved, 10 since 40
    assert waited.gives_up_ms == at(95)
    assert new.ask.duration_ms == HOUR
    courses = told.courses
    assert minutes_of(courses["aa1"]) == [(50, 84)]
    assert (courses["aa1"].preempted, courses["aa1"].lost_ms) == (0, 0)
    assert (courses["bb1"].asked_ms, courses["bb1"].is_new) == (at(50), False)
    assert told.begin_ms == at(50) - 3
    assert sum(use.until_ms - use.from_ms for use in told.uses) == (10 + 10 + 26) * MINUTE
    assert len(told.asks) == 4


@pytest.mark.parametrize(
    ("from_", "until", "says"), [(50, 40, "before it begins"), (None, -5, "nothing to replay")]
)
def test_a_window_with_nothing_in_it_is_refused(from_, until, says):
    with pytest.raises(InvalidInputError, match=says):
        tell(past(lived("aa1", 0, (0, 9), over=9)), from_, until)


def test_a_window_in_which_nothing_was_there_is_refused():
    with pytest.raises(InvalidInputError, match="nothing to replay"):
        tell(past(lived("aa1", 0, (0, 9), over=9)), 20, 30)


# The store


async def test_all_of_the_past_is_read_and_nothing_written():
    lives = [lived("aa1", 0, (0, 26), (36, 76), over=76, lost=[6]), lived("bb1", 3)]
    found = past(*lives, quotas=[Quota("aa", guarantee=gpus(1))], seen=90)
    store = MemoryStore()

    async def fill(uow):
        for tenant in found.tenants:
            await uow.tenants.add(tenant)
        for lease in found.leases:
            await uow.leases.add(lease)
        for entry in found.entries:
            await uow.ledger.append(entry)
        await uow.quotas.replace_all(found.quotas)
        await uow.put_hosts(found.hosts)
        await uow.heartbeat(found.seen_ms)

    await keep(store, fill)
    state = store.state
    read = await read_past(store)
    assert store.state is state
    assert read == found


async def test_a_farm_that_was_never_looked_at_was_last_seen_when_something_happened():
    store = MemoryStore()
    lease, _ = lived("aa1", 0, over=9)
    await keep(store, lambda uow: uow.tenants.add(Tenant("aa", "aa", 0)))
    await keep(store, lambda uow: uow.leases.add(lease))
    assert (await read_past(store)).seen_ms == at(9)


# What was had before


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("aa/", "bb/", "bb/x")),
            st.integers(0, 5000),
            st.integers(0, 500),
            st.integers(0, 500),
        ),
        max_size=8,
    ),
    st.integers(1, 40),
)
def test_past_use_added_up_is_past_use(found, half_life):
    tree = QuotaTree.of([Quota("p"), Quota("bb", "p")])
    memory = Memory(half_life_ms=half_life * MINUTE)
    uses = [Use(quota, milli, at(start), at(start + length)) for quota, milli, start, length in found]
    half = len(uses) // 2
    added = PastUse(tree, 4000, memory)
    for use in uses[:half]:
        added.add(use)
    expected = past_shares(uses, tree, 4000, at(1001), memory)
    assert added.shares(at(1001), uses[half:]) == pytest.approx(expected, abs=1e-12)


def test_the_window_cuts_and_what_ends_at_its_beginning_is_not_in_it():
    window = Window(10, 20)
    assert window.cut([(0, 10), (5, 12), (15, 30), (20, 25)]) == ((10, 12), (15, 20))
    assert [window.has(moment) for moment in (10, 11, 20, 21)] == [False, True, True, False]
