"""Many tenants in simulated time: the workload, the figures on cases counted by hand, and the command."""

import numpy as np
import pytest

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.quota import Quota, QuotaTree
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.simulate.measures import WINDOW_MS, Record, entitlement, measure, most_within
from cloudfarm.simulate.tenants import BURST, Setup, run, shares, workload
from cloudfarm.simulate.world import Work, World
from cloudfarm.testing.fake_farm import make_host
from tests.scheduling import MINUTE, gpus

SMALL = Setup(hosts=2, gpus=4, hours=2, seed=7)


def world(works, *quotas, hosts=1, **rules):
    """Run works on hosts of one GPU, each quota promised so many."""
    tree = QuotaTree.of([Quota(name, guarantee=gpus(number)) for name, number in quotas])
    rules = Rules(**{"min_run_ms": 0, "preempt_notice_ms": MINUTE, **rules})
    farm = [make_host(f"h{number}", 1) for number in range(hosts)]
    record = Record(farm, {name: number * 1000 for name, number in quotas})
    made = World(
        farm,
        tree,
        fair(rules, lambda _: tree),
        watch=record.look,
        wake=lambda view: next_look_ms(view, rules, tree),
    )
    made.run(works)
    record.stories = made.stories
    return record


def work(id_, arrives, runs, *, limit=None, **more):
    ask = Ask(Shape(1, 1000), 1, GIB, (limit or runs) * MINUTE)
    return Work(id_, id_.rstrip("0123456789"), ask, arrives * MINUTE, runs * MINUTE, **more)


def test_a_borrower_goes_after_the_notice_and_goes_on_where_it_was_saved():
    # a runs from 0; b comes at 25 and starts at 26, when a has saved 20 of 26 minutes; a goes on from 36 to 76.
    record = world([work("a1", 0, 60), work("b1", 25, 10)], ("a", 0), ("b", 1))
    a, b = record.stories["a1"], record.stories["b1"]
    assert b.segments == [(26 * MINUTE, 36 * MINUTE)]
    assert a.segments == [(0, 26 * MINUTE), (36 * MINUTE, 76 * MINUTE)]
    assert (a.lost_ms, a.preempted) == (6 * MINUTE, 1)
    assert (b.claimed_ms, b.deadline_ms) == (25 * MINUTE, 26 * MINUTE)


def test_who_saves_when_told_loses_the_notice_only():
    record = world([work("a1", 0, 60, saves_when_told=True), work("b1", 25, 10)], ("a", 0), ("b", 1))
    assert record.stories["a1"].lost_ms == MINUTE
    assert record.stories["a1"].ended_ms == 71 * MINUTE


def test_the_minimum_time_is_waited_for_to_the_millisecond():
    record = world([work("a1", 0, 60), work("b1", 1, 10)], ("a", 0), ("b", 1), min_run_ms=5 * MINUTE)
    assert record.stories["b1"].segments[0][0] == 6 * MINUTE


def test_a_lease_ends_at_its_limit_though_its_work_is_not_done():
    record = world([work("a1", 0, 60, limit=30)], ("a", 1))
    assert record.stories["a1"].ended_ms == 30 * MINUTE


def test_what_is_measured_of_two_leases_on_one_gpu():
    # Shared: a holds the one GPU for half an hour, b waits until then and holds it for the other half. Alone, with a
    # GPU each, neither waits. Both are promised half a GPU here, so from 0 to 30 b is short of all of it.
    works = [work("a1", 0, 30), work("b1", 0, 30)]
    shared = world(works, ("a", 0.5), ("b", 0.5))
    private = {name: world([each], (name, 1)) for name, each in zip("ab", works, strict=True)}
    figures = measure(shared, private, 60 * MINUTE)
    assert figures.tenants["b"].wait_mean_s == 1800
    assert figures.tenants["b"].worst_extra_s == 1800
    assert figures.wait_violations == figures.delay_violations == 1
    assert figures.utilisation == 1
    assert figures.idle_part == 0
    # Six windows in which b wants something, three in which a does: a has twice its half in three, b nothing in three.
    assert figures.windows == 9
    assert figures.share_error_worst == 1
    assert figures.shortfall_worst == 1
    assert figures.share_error_mean == pytest.approx((3 * 1 + 3 * 1 + 3 * 0) / 9)
    assert WINDOW_MS == 10 * MINUTE


@pytest.mark.parametrize(
    ("wanted", "entitled"),
    [
        ([1, 1, 1], [1, 1, 1]),
        ([9, 9, 9], [2, 2, 4]),
        ([9, 0, 0], [8, 0, 0]),
        ([9, 9, 0], [4, 4, 0]),
        ([9, 0, 9], [8 / 3, 0, 16 / 3]),
        ([9, 1, 4.5], [2.5, 1, 4.5]),
    ],
)
def test_what_is_left_over_is_shared_by_weight(wanted, entitled):
    found = entitlement(np.array([wanted], dtype=float), np.array([2.0, 2, 4]))
    assert found[0] == pytest.approx(entitled)


@pytest.mark.parametrize(
    ("sizes", "most", "found"),
    [
        ([], 8000, 0),
        ([8000], 7999, 0),
        ([8000], 8000 - 1e-9, 8000),
        ([1000, 4000, 8000], 7000, 5000),
        ([250, 250, 500], 900, 750),
        ([3000, 3000, 4000], 6500, 6000),
    ],
)
def test_whole_leases_come_to_less_than_what_is_entitled(sizes, most, found):
    assert most_within(sizes, most) == found


def test_what_is_unavoidable_with_whole_leases():
    # Both are promised half a GPU and ask for a whole one. Nobody else wants the GPU: all of it is a's, then all of it
    # is b's; while both want it each is entitled to a half, and neither lease can run in a half.
    record = world([work("a1", 0, 30), work("b1", 20, 30)], ("a", 0.5), ("b", 0.5))
    private = {name: world([work(name + "1", 0, 30)], (name, 1)) for name in "ab"}
    figures = measure(record, private, 60 * MINUTE)
    assert figures.windows == 3 + 4
    assert figures.unavoidable_mean == pytest.approx((0 + 0 + 1 + 1 + 0 + 0 + 0) / 7)


@pytest.mark.parametrize("burst", [False, True])
def test_the_load_is_what_was_asked_for(burst):
    setup = Setup(load=1.3, burst=burst, hours=400, seed=1)
    parts = shares(setup.hosts)
    assert parts == {"t0": 1, "t1": 1, "t2": 2, "t3": 2, "t4": 2}
    works = workload(setup, parts)
    assert works == workload(setup, parts)
    offered = dict.fromkeys(parts, 0.0)
    for each in works:
        assert each.runs_ms <= each.ask.duration_ms
        offered[each.tenant] += each.ask.shape.total_milli_gpus * each.runs_ms / (400 * 60 * MINUTE * 8000)
    assert sum(offered.values()) == pytest.approx(1.3 * 8, rel=0.1)
    assert offered["t0"] == pytest.approx(BURST if burst else 1.3, rel=0.25)
    assert offered["t2"] / offered["t1"] == pytest.approx(2, rel=0.5)


def test_the_same_seed_gives_the_same_report():
    report = run(SMALL)
    assert report == run(SMALL)
    assert report.leases == sum(each.leases for each in report.measures.tenants.values())
    assert 0 < report.measures.utilisation < 1


def test_whoever_room_is_made_for_starts_at_the_deadline():
    # Five tenants on hosts of two GPUs: shares beside whole GPUs, so what is booked meets on one host.
    figures = run(Setup(hosts=5, gpus=2, load=1.6, hours=4, seed=2)).measures
    assert figures.reclaims > 10
    assert figures.after_deadline_p99_s == 0


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 5, 7, 8, 13])
def test_every_host_is_promised_to_somebody(hosts):
    counts = shares(hosts).values()
    assert sum(counts) == hosts
    assert min(counts) >= 1


def test_a_farm_that_cannot_be_is_refused():
    with pytest.raises(InvalidInputError, match="are positive"):
        run(Setup(hosts=0))
