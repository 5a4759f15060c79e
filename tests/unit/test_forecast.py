"""When waiting leases are expected to start: cases to be checked by hand, and what always holds."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.domain.lease import LeaseKind
from cloudfarm.domain.quantities import GIB
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.calibration import DUE
from cloudfarm.scheduler.forecast import BORROWS, HELD_BACK, PROMISED, forecast, guesses
from cloudfarm.scheduler.foreseeing import foreseeing, is_news
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.space import Space
from cloudfarm.steward.view import FarmView, Grant, Preempt, Run, Wait
from cloudfarm.testing.fake_farm import make_host
from tests.scheduling import HOUR, MINUTE, NOW, RULES, quota, running, tree, view, waiting

HALVES = tuple(Run("any", LeaseKind.MANUAL, 30 * MINUTE, HOUR) for _ in range(400))
"""Leases have always run for half of their time."""
ONE = [make_host("h0", 1)]


def starts(leases, *quotas, hosts=ONE, runs=HALVES, rules=RULES):
    """Return by lease the minutes from now, before any correction: earliest, expected, latest."""
    found = guesses(replace(view(hosts, *leases), runs=runs), rules, tree(*quotas))
    return {
        id_: tuple(round(each / MINUTE, 6) for each in (guess.earliest, guess.expected, guess.latest))
        for id_, guess in found.items()
    }


def bases(leases, *quotas, hosts=ONE):
    found = guesses(replace(view(hosts, *leases), runs=HALVES), RULES, tree(*quotas))
    return {id_: guess.basis for id_, guess in found.items()}


def test_the_next_starts_when_what_runs_has_run_as_long_as_such_leases_do():
    # a runs for 10 of 60 minutes and ends after 30; b then runs for 30 of its 60.
    line = [running("a1", "h0:0", 50, ran=10), waiting("b1", asked_ms=1), waiting("b2", asked_ms=2)]
    assert starts(line) == {"b1": (20, 20, 20), "b2": (50, 50, 50)}


def test_nothing_known_any_part_of_the_limit_is_as_likely():
    # Ends at 10, 20, ... 80 minutes, in four futures each; the interval holds 80 % of them.
    assert starts([running("a1", "h0:0", 80, ran=0), waiting("b1")], runs=()) == {"b1": (11, 45, 79)}


def test_what_has_run_longer_than_any_other_is_taken_to_run_to_its_limit():
    line = [running("a1", "h0:0", 3, ran=57), waiting("b1")]
    assert starts(line) == {"b1": (3, 3, 3)}


def test_a_tenant_of_which_enough_is_known_is_judged_by_itself():
    own = tuple(Run("a", LeaseKind.MANUAL, 15 * MINUTE, HOUR) for _ in range(400))
    line = [running("a1", "h0:0", 60, ran=0), waiting("b1")]
    assert starts(line, runs=(*HALVES, *own)) == {"b1": (15, 15, 15)}
    line = [running("a1", "h0:0", 60, ran=0, tenant="c"), waiting("b1")]
    assert starts(line, runs=(*HALVES, *HALVES, *own))["b1"][1] == 30


def test_a_gang_waits_for_all_of_its_gpus_and_what_is_behind_it_for_the_gang():
    hosts = [make_host("h0", 1), make_host("h1", 1)]
    line = [
        running("a1", "h0:0", 50, ran=10),  # to 20
        running("a2", "h1:0", 60, ran=0),  # to 30
        waiting("b1", "2x1", asked_ms=1),  # 30 to 60
        waiting("b2", asked_ms=2),
    ]
    assert starts(line, hosts=hosts) == {"b1": (30, 30, 30), "b2": (60, 60, 60)}


def test_gpus_of_one_slice_are_on_one_host():
    hosts = [make_host("h0", 2), make_host("h1", 2)]
    line = [
        running("a1", "h0:0", 50, ran=10),  # to 20
        running("a2", "h0:1", 10, ran=50),  # to the limit, 10
        running("a3", "h1:0", 60, ran=0),  # to 30
        waiting("b1", "2"),
    ]
    assert starts(line, hosts=hosts) == {"b1": (20, 20, 20)}


def test_shares_of_a_gang_lie_on_different_gpus_unless_that_does_not_matter():
    line = [running("a1", "h0:0", 50, ran=10), waiting("b1", "2x0.5")]
    assert starts(line) == {}
    line = [running("a1", "h0:0", 50, ran=10), waiting("b1", "2x0.5", distinct_gpus=False)]
    assert starts(line) == {"b1": (20, 20, 20)}
    line = [running("a1", "h0:0", 50, ran=10), waiting("b1", "3x0.5", distinct_gpus=False)]
    assert starts(line) == {}


def test_a_share_starts_beside_what_runs_and_the_next_waits():
    line = [
        running("a1", "h0:0", 50, milli=500, ran=10),
        waiting("b1", "0.5", asked_ms=1),
        waiting("b2", "0.5", asked_ms=2),
    ]
    assert starts(line) == {"b1": (0, 0, 0), "b2": (20, 20, 20)}


def test_cpus_and_memory_are_looked_at_like_gpus():
    hosts = [make_host("h0", 2, cpus=8, memory_bytes=16 * GIB)]
    line = [running("a1", "h0:0", 50, ran=10, cpus=5), waiting("b1", cpus=4)]
    assert starts(line, hosts=hosts) == {"b1": (20, 20, 20)}
    line = [running("a1", "h0:0", 50, ran=10, cpus=4), waiting("b1", cpus=4)]
    assert starts(line, hosts=hosts) == {"b1": (0, 0, 0)}
    line = [running("a1", "h0:0", 50, ran=10, cpus=4), waiting("b1", cpus=4, asked_ms=1)]
    line.append(waiting("b2", "0", cpus=4, asked_ms=2))
    assert starts(line, hosts=hosts) == {"b1": (0, 0, 0), "b2": (20, 20, 20)}
    line = [running("a1", "h0:0", 50, ran=10, cpus=4), waiting("b1", "3x0", cpus=2)]
    assert starts(line, hosts=hosts) == {"b1": (20, 20, 20)}


def test_only_gpus_of_the_model_count_and_only_hosts_that_are_open():
    hosts = [
        make_host("h0", 1, model="X"),
        make_host("h1", 1, model="Y"),
        replace(make_host("h2", 1), cordoned=True),
    ]
    line = [running("a1", "h1:0", 50, ran=10), waiting("b1", gpu_model="Y", asked_ms=1)]
    assert starts(line, hosts=hosts) == {"b1": (20, 20, 20)}
    line = [running("a1", "h0:0", 50, ran=10), waiting("b1", asked_ms=1)]
    assert starts(line, hosts=[hosts[0], hosts[2]]) == {"b1": (20, 20, 20)}
    assert starts([waiting("b1", gpu_model="Z"), waiting("b2", "2x1")], hosts=hosts[:1]) == {}
    assert starts([waiting("b1")], hosts=[]) == {}


def test_who_is_promised_takes_the_place_of_a_borrower_after_the_minimum_time_and_the_notice():
    # The minimum time is 10 minutes, the notice one.
    young = running("b1", "h0:0", 240, ran=4)
    assert starts([young, waiting("a1")], quota("a", 1)) == {"a1": (7, 7, 7)}
    assert bases([young, waiting("a1")], quota("a", 1)) == {"a1": PROMISED}
    assert bases([young, waiting("c1")], quota("a", 1)) == {"c1": BORROWS}
    never = replace(RULES, preempts=False)
    assert starts([young, waiting("a1")], quota("a", 1), rules=never)["a1"][1] == 118


def test_once_room_is_made_it_is_there_by_the_deadline():
    gone = running("b1", "h0:0", 240, ran=30, preempted_ms=NOW + MINUTE)
    lease = replace(waiting("a1"), room=gone.slices)
    assert starts([gone, lease], quota("a", 1)) == {"a1": (1, 1, 1)}
    assert bases([gone, lease], quota("a", 1)) == {"a1": DUE}


def test_who_gets_room_made_waits_for_that_room_and_no_other():
    hosts = [make_host("h0", 1), make_host("h1", 1)]
    gone = running("b1", "h0:0", 240, ran=30, preempted_ms=NOW + 5 * MINUTE)
    other = running("b2", "h1:0", 2, ran=58)
    lease = replace(waiting("a1"), room=gone.slices)
    assert starts([gone, other, lease], quota("a", 1), hosts=hosts) == {"a1": (5, 5, 5)}


def test_a_limit_holds_back_until_enough_of_its_own_is_over():
    hosts = [make_host("h0", 4)]
    line = [
        running("a1", "h0:0", 50, ran=10),  # to 20
        running("a2", "h0:1", 60, ran=0),  # to 30
        waiting("a3", "2", asked_ms=1),  # 30 to 60
        waiting("b1", asked_ms=2),
    ]
    assert starts(line, quota("a", limit=2), hosts=hosts) == {"a3": (30, 30, 30), "b1": (0, 0, 0)}
    assert bases(line, quota("a", limit=2), hosts=hosts)["a3"] == HELD_BACK


def test_nothing_starts_before_its_own_time():
    line = [running("a1", "h0:0", 50, ran=10), waiting("b1", not_before_ms=NOW + 40 * MINUTE)]
    assert starts(line) == {"b1": (40, 40, 40)}


def test_what_is_short_fills_the_gap_before_a_gang_and_what_is_long_does_not():
    hosts = [make_host("h0", 2)]
    line = [
        running("a1", "h0:0", 20, ran=20),  # over now, by what is known; so in the last eighth of its limit
        running("a2", "h0:1", 240, ran=0),  # to 120
        waiting("b1", "2", asked_ms=1),  # 120 to 150
        waiting("b2", "1", 120, asked_ms=2),  # runs for 60, from 15 or so on
        waiting("b3", "1", 240, asked_ms=3),  # runs for 120: not over before
    ]
    found = starts(line, hosts=hosts)
    assert found["b1"][1] == 120
    assert found["b2"][1] < 20
    assert found["b3"][1] == 150


def test_a_lease_that_needs_most_of_a_host_is_a_case_of_its_own():
    hosts = [make_host("h0", 4)]
    line = [running("a1", "h0:012", 50, ran=10), waiting("b1", "2"), waiting("c1", "3")]
    assert bases(line, hosts=hosts) == {"b1": BORROWS, "c1": f"{BORROWS}, wide"}


def test_no_later_than_time_limits_leave_room_unless_it_can_be_passed():
    late = dict.fromkeys((BORROWS, f"{BORROWS}, wide"), (0.0, 2.0, 3.0))
    line = [running("a1", "h0:0123", 50, ran=10), waiting("b1", "2"), waiting("b2", "3")]
    seen = replace(view([make_host("h0", 4)], *line), runs=HALVES)
    found = forecast(seen, RULES, tree(), late)
    assert found["b1"].expected_ms == found["b1"].latest_ms == NOW + 50 * MINUTE
    assert found["b2"].latest_ms > NOW + 20 * 50 * MINUTE


def test_the_same_lease_has_the_same_luck_whoever_else_is_there():
    line = [running("a1", "h0:0", 80, ran=0), waiting("b1")]
    hosts = [make_host("h0", 1), replace(make_host("h1", 1), cordoned=True)]
    more = [*line, waiting("c1", "8", asked_ms=5)]
    assert starts(line, runs=(), hosts=hosts)["b1"] == starts(more, runs=(), hosts=hosts)["b1"]


@st.composite
def farms(draw: st.DrawFn) -> FarmView:
    """Hosts with leases where there was room, and a queue; shares and CPUs come in whole parts."""
    hosts = [make_host(f"h{number}", draw(st.integers(1, 4))) for number in range(draw(st.integers(1, 3)))]
    space = Space.of(hosts)
    free = space.empty()
    leases = []
    for number in range(draw(st.integers(0, 6))):
        ran = draw(st.integers(0, 90))
        lease = waiting(
            f"a{number}",
            draw(st.sampled_from(("0.25", "0.5", "1", "2", "2x1"))),
            ran + draw(st.integers(1, 90)),
        )
        slices = space.place(free, lease.id, lease.ask)
        if slices is not None:
            space.take(free, slices)
            started_ms = NOW - ran * MINUTE
            leases.append(
                replace(
                    lease,
                    status=LeaseStatus.ACTIVE,
                    slices=slices,
                    started_ms=started_ms,
                    ends_ms=started_ms + lease.ask.duration_ms,
                )
            )
    for number in range(draw(st.integers(1, 6))):
        late = draw(st.sampled_from((None, None, 30)))
        leases.append(
            waiting(
                f"{draw(st.sampled_from('bc'))}{number}",
                draw(st.sampled_from(("0.25", "0.5", "1", "2", "2x1", "4x0.25"))),
                draw(st.integers(1, 90)),
                asked_ms=NOW - draw(st.integers(1, 100)),
                not_before_ms=None if late is None else NOW + late * MINUTE,
            )
        )
    runs = tuple(
        Run(draw(st.sampled_from("ab")), LeaseKind.MANUAL, draw(st.integers(0, 60)) * MINUTE, HOUR)
        for _ in range(draw(st.sampled_from((0, 40))))
    )
    return replace(view(hosts, *leases), runs=runs)


CORRECTIONS = st.dictionaries(
    st.sampled_from((PROMISED, BORROWS, HELD_BACK, DUE)),
    st.tuples(*3 * [st.floats(-2, 2)]),
)


@settings(max_examples=150, deadline=None)
@given(farms(), CORRECTIONS, st.sampled_from(((), (quota("b", 1),), (quota("c", limit=1),))))
def test_what_always_holds(seen, corrections, quotas):
    found = forecast(seen, RULES, tree(*quotas), corrections)
    assert found == forecast(seen, RULES, tree(*quotas), corrections)
    space = Space.of(seen.hosts)
    by_id = {lease.id: lease for lease in seen.leases}
    for id_, start in found.items():
        assert by_id[id_].status is LeaseStatus.WAITING
        assert seen.now_ms <= start.earliest_ms <= start.expected_ms <= start.latest_ms
    for id_, guess in guesses(seen, RULES, tree(*quotas)).items():
        assert (by_id[id_].ask.not_before_ms or 0) - seen.now_ms <= guess.earliest
    queue = [lease for lease in seen.leases if lease.status is LeaseStatus.WAITING]
    if not quotas:  # no limit: whatever an empty farm holds starts at some time
        assert found.keys() == {lease.id for lease in queue if space.fits(space.empty(), lease.ask)}


@settings(max_examples=150, deadline=None)
@given(farms())
def test_who_is_alone_and_has_room_is_expected_now_and_no_other_is(seen):
    space = Space.of(seen.hosts)
    free = space.empty()
    for lease in seen.leases:
        space.take(free, lease.slices)
    held = [lease for lease in seen.leases if lease.slices]
    lease = next(lease for lease in seen.leases if not lease.slices)
    lease = replace(lease, ask=replace(lease.ask, not_before_ms=None))
    alone = replace(seen, leases=(*held, lease))
    guess = guesses(alone, RULES, tree()).get(lease.id)
    is_now = guess is not None and guess.earliest == guess.expected == guess.latest == guess.by_limits == 0
    assert not is_now or forecast(alone, RULES, tree(), {})[lease.id].expected_ms == seen.now_ms
    assert is_now == space.fits(free, lease.ask)


# What is told


def told(seen, *quotas):
    whole = tree(*quotas)
    admit = foreseeing(fair(RULES, lambda _: whole), RULES, lambda _: whole)
    return admit(replace(seen, runs=HALVES, corrections={})), admit(replace(seen, runs=HALVES))


def test_forecasts_are_of_the_farm_as_it_will_be_after_the_decisions():
    hosts = [make_host("h0", 1), make_host("h1", 1)]
    line = [running("b1", "h0:0", 240, ran=30), waiting("b2", asked_ms=1), waiting("a1", asked_ms=2)]
    line.append(waiting("a2", asked_ms=3))
    with_forecasts, without = told(view(hosts, *line), quota("a", 2))
    assert [
        replace(each, expected_start=None) if isinstance(each, Wait) else each for each in with_forecasts
    ] == [*without]
    kinds = {type(each) for each in without}
    assert {Grant, Preempt} <= kinds
    started = {each.lease_id for each in without if isinstance(each, Grant)}
    expected = {each.lease_id: each.expected_start for each in with_forecasts if isinstance(each, Wait)}
    assert expected.keys() == {"a1", "a2", "b2"} - started
    due = next(each.for_lease_id for each in without if isinstance(each, Preempt))
    assert (expected[due].basis, expected[due].expected_ms) == (DUE, NOW + MINUTE)


def test_what_was_told_is_told_again_only_if_it_is_news():
    line = [running("a1", "h0:0", 50, ran=10), waiting("b1")]
    decisions, _ = told(view(ONE, *line))
    (wait,) = (each for each in decisions if isinstance(each, Wait))
    known = replace(line[1], message=wait.message, expected_start=wait.expected_start)
    assert told(view(ONE, line[0], known)) == ((), ())
    other = replace(known, message="something else")
    assert told(view(ONE, line[0], other)) == ((wait,), (wait,))  # a new message leaves what is expected
    late = replace(known, expected_start=replace(wait.expected_start, latest_ms=NOW - 1))
    assert told(view(ONE, line[0], late)) == ((wait,), ())  # and what is expected leaves the message
    impossible = replace(waiting("b1", "2"), expected_start=wait.expected_start)
    (gone,), _ = told(view(ONE, line[0], impossible))
    assert (gone.lease_id, gone.expected_start) == ("b1", None)


@pytest.mark.parametrize(
    ("change", "news"),
    [
        ({}, False),
        ({"expected_ms": NOW + 61 * MINUTE}, False),
        ({"expected_ms": NOW + 68 * MINUTE}, True),
        ({"latest_ms": NOW + 75 * MINUTE}, False),
        ({"latest_ms": NOW + 99 * MINUTE}, True),
        ({"earliest_ms": NOW + 2 * MINUTE}, True),
        ({"basis": PROMISED}, True),
    ],
)
def test_news_is_a_change_of_more_than_a_minute_and_a_tenth_of_the_time_to_go(change, news):
    seen = replace(view(ONE, running("a1", "h0:0", 120, ran=0), waiting("b1")), runs=HALVES)
    start = forecast(seen, RULES, tree(), {})["b1"]
    start = replace(start, earliest_ms=NOW + 50 * MINUTE, latest_ms=NOW + 70 * MINUTE)
    assert start.expected_ms == NOW + HOUR
    assert is_news(start, replace(start, **change), NOW) is news
    assert is_news(start, start, NOW + 71 * MINUTE)
    assert is_news(None, start, NOW)
    assert not is_news(None, None, NOW)
