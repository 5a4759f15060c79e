"""What if: a past replayed under its own farm is that past; under others it is what can be counted by hand."""

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.quota import Quota, QuotaTree
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import InvalidInputError
from cloudfarm.simulate import what_if
from cloudfarm.simulate.world import Story, Work, World
from cloudfarm.testing.fake_farm import make_host
from tests.lived import CHECKPOINT, MEMORY, RULES, T0, at, lived, minutes_of, past, scenario, tell
from tests.scheduling import MINUTE, gpus

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
        farm.admission(),
        wake=lambda view: what_if.next_look_ms(view, RULES, farm.tree),
        memory=MEMORY,
        asks=deque(maxlen=what_if.ASKS),
    )
    world.run(sorted(works, key=lambda work: (work.arrives_ms, work.id)))
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
