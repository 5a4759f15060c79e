"""A farm's past told anew: what is taken for what, and that a replay of a past under the same farm is that past."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.ledger import REFUND, LedgerEntry, amount
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.quota import Quota, QuotaTree
from cloudfarm.domain.status import EndReason, LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.history import Memory, PastUse, Use, past_shares
from cloudfarm.scheduler.rules import Rules
from cloudfarm.simulate import what_if
from cloudfarm.simulate.compare import Window
from cloudfarm.simulate.history import Past, read_past, retell, window_of
from cloudfarm.simulate.policies import admission
from cloudfarm.simulate.world import Story, Work, World
from cloudfarm.testing.factories import keep
from cloudfarm.testing.fake_farm import make_host
from cloudfarm.testing.memory_store import MemoryStore
from tests.scheduling import HOUR, MINUTE, gpus

T0 = 1_700_000_040_000
CHECKPOINT = 10 * MINUTE
RULES = Rules(min_run_ms=0, preempt_notice_ms=MINUTE)
MEMORY = Memory()


def at(minutes):
    return T0 + round(minutes * MINUTE)


def lived(id_, asked, *segments, over=None, limit=60, lost=(), **more):
    """Return a lease and its ledger entries as the steward writes them; times are minutes.

    All its segments but the last were cut short; one without an end still runs. ``lost`` is what of each cut one was
    done in vain.
    """
    cut = segments if more.pop("waits_anew", False) else segments[:-1]
    lost = [*lost, *[0] * (len(segments) - len(lost))]
    used = sum(end - start - gone for (start, end), gone in zip(cut, lost, strict=False))
    lease = Lease(
        id_,
        id_.rstrip("0123456789"),
        "kim",
        id_,
        more.pop("kind", LeaseKind.JOB),
        Ask(Shape(1, more.pop("milli", 1000)), 1, GIB, round((limit - used) * MINUTE)),
        created_ms=at(asked),
        segment=2 * len(cut) + (len(cut) < len(segments)),
        **more,
    )
    is_running = len(cut) < len(segments)
    if is_running:
        lease = replace(
            lease, status=LeaseStatus.ACTIVE, granted_ms=at(segments[-1][0]), started_ms=at(segments[-1][0])
        )
    if over is not None:
        lease = replace(
            lease, status=LeaseStatus.ENDED, ended_ms=at(over), reason=lease.reason or EndReason.JOB_FINISHED
        )
    entries = []
    for number, (start, *end) in enumerate(segments):
        if not end:
            continue
        entries.append(_entry(lease, 2 * number + 1, lease.milli_gpus, start, end[0], kind="job"))
        if lost[number]:
            entries.append(
                _entry(lease, 2 * number + 2, -lease.milli_gpus, end[0] - lost[number], end[0], kind=REFUND)
            )
    return lease, entries


def _entry(lease, segment, milli, start, end, *, kind):
    return LedgerEntry(
        lease.tenant, lease.id, segment, kind, milli, at(start), at(end), amount(milli, at(start), at(end))
    )


def past(*lives, hosts=1, quotas=(), seen=600):
    leases = sorted((lease for lease, _ in lives), key=lambda lease: (lease.created_ms, lease.id))
    return Past(
        leases,
        [entry for _, entries in lives for entry in entries],
        quotas,
        [Tenant(name, name, 0) for name in sorted({lease.tenant for lease in leases})],
        [make_host(f"h{number}", 1) for number in range(hosts)],
        at(seen),
    )


def tell(found, from_=None, until=None):
    window = window_of(found, None if from_ is None else at(from_), None if until is None else at(until))
    return retell(found, window, CHECKPOINT)


def scenario(found, **changes):
    hosts = what_if.present(found.hosts)
    made = what_if.Scenario(hosts, what_if.tree_of(found, hosts, 100_000), RULES, MEMORY)
    return replace(made, **changes)


def minutes_of(course):
    return [((start - T0) / MINUTE, (end - T0) / MINUTE) for start, end in course.segments]


def works_of(told):
    return {work.id: work for work in told.works}


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
        lived("aa1", 0, (0, 26), (36,), limit=100, lost=[6]), lived("aa2", 0, (0,), limit=9000), seen=50
    )
    told = tell(found)
    assert {id_: work.runs_ms for id_, work in works_of(told).items()} == {
        "aa1": 100 * MINUTE,
        "aa2": 9000 * MINUTE,
    }
    assert minutes_of(told.courses["aa1"]) == [(0, 26), (36, 50)]
    assert told.courses["aa1"].over_ms is None
    assert told.assumed == 2


def test_what_waits_anew_runs_to_its_limit():
    told = tell(past(lived("aa1", 0, (0, 26), limit=100, lost=[6], waits_anew=True), seen=50))
    assert told.works[0].runs_ms == 100 * MINUTE
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
    (work,) = tell(past(lived("aa1", 0, kind=LeaseKind.SERVICE, limit=50_000))).works
    assert work.runs_ms == 50_000 * MINUTE


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


# Replays


def test_a_small_past_under_its_own_farm_and_under_a_larger_one():
    # One GPU: bb waits for half an hour, and cc is given up after 20 minutes. With two GPUs nobody waits but cc, until
    # aa is done: 60 minutes are offered to two GPUs in the first half hour.
    found = past(
        lived("aa1", 0, (0, 30), over=30),
        lived("bb1", 0, (30, 60), over=60),
        lived("cc1", 10, over=35),
        seen=100,
    )
    told = tell(found)
    as_is = scenario(found)
    comparison = what_if.compare(
        found, told, as_is, replace(as_is, hosts=what_if.changed(as_is.hosts, add=1))
    )
    was, again, more = comparison.outcomes
    assert was.courses == again.courses
    assert [outcome.name for outcome in comparison.outcomes] == ["past", "replay", "what-if"]
    segments = {course.id: minutes_of(course) for course in more.courses}
    assert segments == {
        "aa1": [(0, 30)],
        "bb1": [(0, 30)],
        "cc1": [(30, 60)],
    }  # half of its limit, as the others
    figures = again.figures()
    assert (figures.leases, figures.not_started) == (3, 1)
    assert (figures.wait_mean_s, figures.wait_p50_s) == ((0 + 30 + 25) * 60 / 3, 25 * 60)
    assert (figures.took_mean_s, figures.gpu_hours, figures.utilisation) == ((30 + 60) * 60 / 2, 1.0, 0.6)
    assert more.figures().wait_mean_s == 20 * 60 / 3
    assert more.figures().utilisation == 0.45


def test_fewer_hosts_and_other_policies_do_what_they_should():
    lives = [lived(f"aa{number}", 0, (0, 30), over=30, milli=1000) for number in range(2)]
    found = past(*lives, lived("bb1", 1, (1, 31), over=31), hosts=3)
    as_is = scenario(found)
    fewer = replace(as_is, hosts=what_if.changed(as_is.hosts, without=["h0", "h2"]))
    (course,) = [
        each for each in what_if.replay(tell(found), fewer, "what-if", "").courses if each.id == "bb1"
    ]
    assert minutes_of(course) == [(30, 60)]  # aa has had half an hour already
    promised = replace(fewer, tree=QuotaTree.of([Quota("bb", guarantee=gpus(1))]))
    starts = {}
    for policy in ("fair", "fair-no-preempt", "first-come"):
        outcome = what_if.replay(tell(found), replace(promised, policy=policy), "what-if", "")
        starts[policy] = {each.id: minutes_of(each)[0][0] for each in outcome.courses}["bb1"]
    assert starts == {"fair": 2, "fair-no-preempt": 30, "first-come": 60}


def test_past_use_before_the_window_counts():
    # aa has had the GPU for a day; when both want it, and nobody is promised any, bb goes first, though aa asked first.
    found = past(
        lived("aa1", 0, (0, 1440), over=1440, limit=1440),
        lived("cc1", 1430, (1440, 1500), over=1500),
        lived("aa2", 1460, (1530, 1560), over=1560),
        lived("bb1", 1470, (1500, 1530), over=1530),
        seen=1600,
    )
    told = tell(found, from_=1450)
    (a, b) = (each for each in what_if.replay(told, scenario(found), "replay", "").courses if each.is_new)
    assert (minutes_of(a), minutes_of(b)) == ([(1530, 1560)], [(1500, 1530)])


@st.composite
def workloads(draw):
    works = []
    for number in range(draw(st.integers(1, 12))):
        tenant = draw(st.sampled_from(("aa", "bb", "cc")))
        limit = draw(st.integers(1, 90))
        arrives = at(draw(st.integers(0, 60)))
        ask = Ask(
            Shape(draw(st.sampled_from((1, 1, 2))), draw(st.sampled_from((250, 500, 1000)))),
            1,
            GIB,
            limit * MINUTE,
            priority=draw(st.integers(0, 1)),
            not_before_ms=draw(st.sampled_from((None, None, None, at(70)))),
        )
        runs = draw(st.integers(1, limit)) * MINUTE
        works.append(Work(f"{tenant}{number:02}", tenant, ask, arrives, runs, checkpoint_ms=CHECKPOINT))
    return works


@settings(max_examples=60, deadline=None)
@given(workloads(), st.sampled_from(("fair", "fair-no-preempt", "first-come")))
def test_the_replay_of_a_simulated_past_under_the_same_farm_is_that_past(works, policy):
    hosts = [make_host(f"h{number}", 2) for number in range(2)]
    quotas = [Quota("aa", guarantee=gpus(1)), Quota("bb", guarantee=gpus(2), weight=2)]
    found = replace(past(lived("cc1", 0)), hosts=hosts, quotas=quotas, tenants=())
    farm = scenario(found, policy=policy)
    world = World(
        hosts,
        farm.tree,
        admission(policy, RULES, farm.tree),
        wake=lambda view: what_if.next_look_ms(view, RULES, farm.tree),
        memory=MEMORY,
    )
    world.run(works)
    records = [_record(story) for story in world.stories.values()]
    end_ms = max(story.ended_ms for story in world.stories.values())
    found = replace(
        found,
        leases=sorted((lease for lease, _ in records), key=lambda lease: (lease.created_ms, lease.id)),
        entries=[entry for _, entries in records for entry in entries],
        seen_ms=end_ms,
    )
    told = tell(found)
    again = what_if.replay(told, farm, "replay", "")
    assert again.courses == tuple(told.courses.values())
    assert {course.id: list(course.segments) for course in again.courses} == {
        id_: story.segments for id_, story in world.stories.items()
    }


def _record(story: Story):
    """Return a story as the store would have it."""
    minutes = [((start - T0) / MINUTE, (end - T0) / MINUTE) for start, end in story.segments]
    lost = [(end - start) % (CHECKPOINT / MINUTE) for start, end in minutes[:-1]]
    work = story.work
    lease, entries = lived(
        work.id,
        (work.arrives_ms - T0) / MINUTE,
        *minutes,
        over=(story.ended_ms - T0) / MINUTE,
        limit=work.ask.duration_ms / MINUTE,
        lost=lost,
    )
    tenant = work.tenant
    ask = replace(work.ask, duration_ms=lease.ask.duration_ms)
    return replace(lease, tenant=tenant, ask=ask), [replace(entry, tenant=tenant) for entry in entries]


# The farm


def test_hosts_like_the_most_common_ones():
    hosts = [make_host("small", 2), make_host("b0", 8, cpus=64), make_host("b1", 8, cpus=64)]
    assert [len(host.gpus) for host in what_if.changed(hosts, add=2)] == [2, 8, 8, 8, 8]
    (one,) = what_if.changed(hosts, count=1, gpus=4)
    assert (one.cpus, one.memory_bytes, len({gpu.index for gpu in one.gpus})) == (32, 32 * GIB, 4)
    assert [host.id for host in what_if.changed(hosts, without=["b0"])] == ["small", "b1"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"without": ["h9"]}, "there is no host h9"),
        ({"without": ["h0"]}, "no host is left"),
        ({"count": 0}, "no host is left"),
        ({"count": -1}, "at most"),
        ({"add": 100_000}, "at most"),
        ({"add": 1, "gpus": 65}, "at most 64"),
        ({"add": 1, "gpus": 0}, "no host of 0 GPUs"),
    ],
)
def test_a_farm_that_cannot_be_is_refused(changes, says):
    with pytest.raises(InvalidInputError, match=says):
        what_if.changed([make_host("h0", 1)], **changes)


def test_cordoned_hosts_are_left_out_and_silent_ones_count():
    hosts = [
        make_host("h0"),
        replace(make_host("h1"), reachable=False),
        replace(make_host("h2"), cordoned=True),
    ]
    assert [(host.id, host.reachable) for host in what_if.present(hosts)] == [("h0", True), ("h1", True)]
    with pytest.raises(InvalidInputError, match="not cordoned"):
        what_if.present(hosts[2:])


def test_other_quotas_are_checked_against_the_hosts_and_a_tenants_own_limit_stays():
    found = past(lived("aa1", 0, (0, 9), over=9))
    found = replace(
        found, tenants=[Tenant("aa", "aa", 0, limit_milli_gpus=500)], quotas=[Quota("aa", weight=3)]
    )
    assert what_if.tree_of(found, found.hosts, 4000).get("aa").weight == 3
    tree = what_if.tree_of(
        found, found.hosts, 4000, [Quota("aa", weight=7), Quota("bb", guarantee=gpus(1, cpus=1, gib=1))]
    )
    assert (tree.get("aa").weight, tree.get("aa").limit.milli_gpus, tree.get("cc").limit.milli_gpus) == (
        7,
        500,
        4000,
    )
    with pytest.raises(InvalidInputError, match="more than the farm has"):
        what_if.tree_of(found, found.hosts, 4000, [Quota("bb", guarantee=gpus(2))])


def test_what_can_never_start_is_told():
    found = past(lived("aa1", 0, (0, 9), over=9), lived("bb1", 0, (0, 9), over=9, milli=2000))
    found = replace(found, tenants=[Tenant("aa", "aa", 0, limit_milli_gpus=500)])
    comparison = what_if.compare(found, tell(found), scenario(found), scenario(found))
    assert "Leases that can never start under the present hosts and quotas: 2." in comparison.notes
    assert len(comparison.outcomes) == 2


def test_what_is_different_is_said():
    base = scenario(past(lived("aa1", 0)))
    other = replace(
        base,
        hosts=what_if.changed(base.hosts, add=1),
        tree=QuotaTree(),
        rules=replace(RULES, min_run_ms=7000, preempt_notice_ms=3000),
        policy="first-come",
    )
    assert what_if.differences(base, other) == (
        "2 hosts, other quotas, policy first-come, borrowers run 7 s at least, notice of 3 s"
    )


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
