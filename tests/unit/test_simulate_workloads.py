"""Workloads as files, the policies that are there to compare with, and leases that are given up."""

import json
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.quota import EVERYTHING, Quota, QuotaTree
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.simulate.policies import POLICIES, admission
from cloudfarm.simulate.tenants import Setup, equal_shares, run, shares, workload
from cloudfarm.simulate.workloads import read_workload, write_workload
from cloudfarm.simulate.world import Work, World
from cloudfarm.steward.view import Grant
from cloudfarm.testing.fake_farm import make_host
from tests.scheduling import MINUTE, gpus, running, started, tree, view, waiting

NO_QUOTAS = QuotaTree()
LINE = {
    "id": "l7",
    "tenant": "kaist",
    "shape": "2x0.5",
    "cpus": 4,
    "memory_bytes": 4 * GIB,
    "limit_ms": 7_200_000,
    "arrival_ms": 60_000,
    "run_ms": 3_600_000,
}


def work(id_, arrives, runs, *, limit=None, **more):
    ask = Ask(Shape(1, 1000), 1, GIB, (limit or runs) * MINUTE)
    return Work(id_, id_.rstrip("0123456789"), ask, arrives * MINUTE, runs * MINUTE, **more)


def written(tmp_path, *lines):
    file = tmp_path / "w.jsonl"
    file.write_bytes(
        b"".join(line if isinstance(line, bytes) else f"{json.dumps(line)}\n".encode() for line in lines)
    )
    return file


# Files


def test_a_line_with_only_what_is_needed(tmp_path):
    (found,) = read_workload(written(tmp_path, LINE))
    ask = Ask(Shape(2, 500), 4, 4 * GIB, 7_200_000)
    assert found == Work("l7", "kaist", ask, 60_000, 3_600_000)


def test_a_line_with_everything_and_empty_lines_between(tmp_path):
    more = {
        "project": "wind",
        "checkpoint_ms": 5,
        "saves_when_told": True,
        "gpu_model": "A100",
        "distinct_gpus": False,
        "priority": -3,
        "not_before_ms": 90_000,
        "gives_up_ms": 100_000,
    }
    (found,) = read_workload(written(tmp_path, b"\n", {**LINE, **more}, b"  \r\n"))
    ask = Ask(
        Shape(2, 500), 4, 4 * GIB, 7_200_000, "A100", distinct_gpus=False, priority=-3, not_before_ms=90_000
    )
    assert found == Work(
        "l7", "kaist", ask, 60_000, 3_600_000, "wind", 5, saves_when_told=True, gives_up_ms=100_000
    )


@st.composite
def works(draw):
    name = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)
    moment = st.integers(0, 2**40)
    arrives = draw(moment)
    milli = draw(st.one_of(st.integers(0, 999), st.integers(1, 64).map(lambda number: 1000 * number)))
    ask = Ask(
        Shape(draw(st.integers(1, 1024)), milli),
        draw(st.integers(0, 4096)),
        draw(st.integers(0, 2**50)),
        draw(st.integers(1, 10**10)),
        draw(st.one_of(st.none(), st.text(min_size=1, max_size=9))),
        distinct_gpus=draw(st.booleans()),
        priority=draw(st.integers(-100, 100)),
        not_before_ms=draw(st.one_of(st.none(), moment)),
    )
    return Work(
        draw(st.text(min_size=1, max_size=9)),
        draw(name),
        ask,
        arrives,
        draw(st.integers(0, 10**10)),
        draw(st.one_of(st.just(""), name)),
        draw(st.integers(1, 10**6)),
        saves_when_told=draw(st.booleans()),
        gives_up_ms=draw(st.one_of(st.none(), st.integers(arrives, 2**41))),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(works(), min_size=1, max_size=5, unique_by=lambda each: each.id))
def test_what_is_written_is_read(tmp_path, found):
    file = tmp_path / "w.jsonl"
    write_workload(file, found)
    assert read_workload(file) == sorted(found, key=lambda each: (each.arrives_ms, each.id))


def test_moments_count_from_the_beginning(tmp_path):
    file = tmp_path / "w.jsonl"
    ask = replace(work("aa1", 0, 9).ask, not_before_ms=30 * MINUTE)
    write_workload(file, [replace(work("aa1", 20, 9, gives_up_ms=40 * MINUTE), ask=ask)], 15 * MINUTE)
    (found,) = read_workload(file)
    assert (found.arrives_ms, found.ask.not_before_ms, found.gives_up_ms) == (
        5 * MINUTE,
        15 * MINUTE,
        25 * MINUTE,
    )
    assert found.runs_ms == 9 * MINUTE


def test_the_generators_leases_are_written_and_read_as_they_are(tmp_path):
    setup = Setup(hosts=2, gpus=4, hours=2, seed=7)
    made = workload(setup, shares(2))
    write_workload(tmp_path / "w.jsonl", made)
    assert read_workload(tmp_path / "w.jsonl") == made


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"{]\n", "it is not JSON"),
        (b'{"id": "\xff"}\n', "it is not JSON"),
        (b"[" * 100_000 + b"\n", "it is not JSON"),
        (b"7\n", "it is not a JSON object"),
        ({**LINE, "gpus": 3}, "there is no member 'gpus'; there are id, tenant, "),
        (
            {"id": "l8", "tenant": "kaist", "shape": "1"},
            "it has no cpus, memory_bytes, limit_ms, arrival_ms, run_ms",
        ),
        ({**LINE, "id": ""}, "id is a text of 1 to 200 letters"),
        ({**LINE, "id": 7}, "id is a text of 1 to 200 letters, not 7"),
        ({**LINE, "id": "l1"}, "there is a lease l1 before it"),
        ({**LINE, "tenant": "No Slug"}, "tenant 'No Slug'"),
        ({**LINE, "project": "x" * 99}, "project 'x"),
        ({**LINE, "shape": "1.5"}, "1.5 GPUs in one slice"),
        ({**LINE, "shape": 1}, "shape is a text"),
        ({**LINE, "cpus": 1.5}, "cpus is a whole number from 0 to 4096, not 1.5"),
        ({**LINE, "cpus": True}, "cpus is a whole number"),
        ({**LINE, "memory_bytes": 2**51}, "memory_bytes is a whole number"),
        ({**LINE, "limit_ms": 0}, "limit_ms is a whole number from 1"),
        ({**LINE, "arrival_ms": -1}, "arrival_ms is a whole number from 0"),
        ({**LINE, "run_ms": None}, "run_ms is a whole number from 0"),
        ({**LINE, "run_ms": float("nan")}, "run_ms is a whole number from 0"),
        ({**LINE, "checkpoint_ms": 0}, "checkpoint_ms is a whole number from 1"),
        ({**LINE, "saves_when_told": 1}, "saves_when_told is true or false, not 1"),
        ({**LINE, "priority": 101}, "priority is a whole number from -100 to 100"),
        ({**LINE, "gives_up_ms": 59_999}, "it is given up (gives_up_ms) before it arrives"),
    ],
    ids=lambda value: "" if isinstance(value, dict | bytes) else value[:30],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, bad, says):
    with pytest.raises(InvalidInputError) as refused:
        read_workload(written(tmp_path, {**LINE, "id": "l1"}, b"\n", bad))
    assert refused.value.detail.startswith("w.jsonl, line 3: ")
    assert says in refused.value.detail


def test_a_file_that_is_empty_or_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no leases"):
        read_workload(written(tmp_path, b"\n"))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_workload(tmp_path / "none")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_workload(tmp_path / "none" / "w.jsonl", [])


# The farm of a file


def test_a_file_is_run_on_a_farm_that_is_shared_out_evenly():
    found = [work("bb1", 0, 30), work("aa1", 3, 30), work("aa2", 12, 30)]
    report = run(Setup(hosts=3, gpus=1, workload="w.jsonl"), found)
    assert equal_shares(3, found) == {"aa": 2, "bb": 1}
    assert (report.leases, report.setup.hours, report.setup.workload) == (3, 1 / 3, "w.jsonl")
    assert {tenant: waits.leases for tenant, waits in report.measures.tenants.items()} == {"aa": 2, "bb": 1}
    assert report.measures.tenants["aa"].wait_mean_s == 0


def test_under_another_policy_something_else_comes_out():
    found = [work("aa1", 0, 60), work("aa2", 0, 60), work("bb1", 5, 10)]
    rules = Rules(min_run_ms=0, preempt_notice_ms=MINUTE)
    waits = {
        policy: run(Setup(hosts=2, gpus=1, rules=rules, policy=policy), found)
        .measures.tenants["bb"]
        .wait_mean_s
        for policy in POLICIES
    }
    assert waits == {"fair": 60, "fair-no-preempt": 55 * 60, "first-come": 55 * 60}


def test_what_is_given_up_or_too_large_for_a_private_farm_is_left_out_of_the_comparison():
    two = Ask(Shape(2, 1000), 1, GIB, 9 * MINUTE)
    found = [
        work("aa1", 0, 30),
        work("aa2", 1, 30, gives_up_ms=5 * MINUTE),
        replace(work("bb1", 40, 9), ask=two),
        work("bb2", 2, 5),
    ]
    measures = run(Setup(hosts=2, gpus=1), found).measures
    assert {tenant: waits.leases for tenant, waits in measures.tenants.items()} == {"aa": 1, "bb": 1}


def test_a_farm_too_small_for_a_file_is_refused():
    with pytest.raises(InvalidInputError, match="each of 2 tenants"):
        run(Setup(hosts=1), [work("aa1", 0, 9), work("bb1", 0, 9)])
    with pytest.raises(InvalidInputError, match="lease aa1 can never be placed"):
        run(Setup(hosts=1, gpus=1), [replace(work("aa1", 0, 9), ask=Ask(Shape(1, 2000), 1, GIB, MINUTE))])


# First come


def admit(view_, quotas=NO_QUOTAS):
    return admission("first-come", Rules(), quotas)(view_)


def test_the_oldest_starts_first_whoever_is_promised_what():
    young, old = waiting("bb1", asked_ms=5), waiting("aa1", asked_ms=4, priority=-9)
    quotas = QuotaTree.of([Quota("bb", guarantee=gpus(1))])
    assert started(admit(view("1", young, old), quotas)) == ["aa1"]
    assert started(admit(view("2", young, old), quotas)) == ["aa1", "bb1"]


def test_nobody_passes_who_finds_no_room():
    large, small = waiting("aa1", "2", asked_ms=4), waiting("bb1", asked_ms=5)
    assert admit(view("2", running("cc1", "h0:0"), large, small)) == ()


def test_who_is_at_a_limit_or_can_never_start_is_passed():
    limited = QuotaTree.of([Quota("aa", limit=replace(EVERYTHING, milli_gpus=500))])
    never = waiting("cc1", "4", asked_ms=3)
    later = waiting("dd1", asked_ms=2, not_before_ms=2**60)
    assert started(
        admit(view("1", waiting("aa1", asked_ms=4), waiting("bb1", asked_ms=5), never, later), limited)
    ) == ["bb1"]


def test_what_starts_counts_against_a_limit_at_once():
    limited = QuotaTree.of([Quota("aa", limit=replace(EVERYTHING, milli_gpus=1000))])
    found = admit(view("2", waiting("aa1", asked_ms=4), waiting("aa2", asked_ms=5)), limited)
    assert started(found) == ["aa1"]
    assert all(isinstance(each, Grant) for each in found)


def test_a_policy_that_is_not_there_is_refused():
    with pytest.raises(InvalidInputError, match="there are fair, fair-no-preempt, first-come"):
        admission("fairest", Rules(), tree())


# The world


def lived(*found, **more):
    quotas = QuotaTree.of([])
    made = World(
        [make_host("h0", 1)],
        quotas,
        admission("fair", Rules(), quotas),
        wake=lambda view_: next_look_ms(view_, Rules(), quotas),
        **more,
    )
    made.run(found)
    return made


def test_who_gives_up_leaves_the_queue_and_who_has_started_stays():
    made = lived(
        work("aa1", 0, 30),
        work("bb1", 1, 30, gives_up_ms=29 * MINUTE),
        work("cc1", 2, 30, gives_up_ms=31 * MINUTE),
        work("dd1", 3, 30, gives_up_ms=3 * MINUTE),
    )
    assert {id_: story.segments for id_, story in made.stories.items()} == {
        "aa1": [(0, 30 * MINUTE)],
        "bb1": [],
        "cc1": [(30 * MINUTE, 60 * MINUTE)],
        "dd1": [],
    }
    assert made.leases == {}


def test_the_newest_asks_are_remembered_if_any_are():
    found = [work(f"aa{number}", number, 1, limit=number + 1) for number in range(4)]
    made = lived(*found, asks=deque([found[0].ask], maxlen=3))
    assert made.view().asks == tuple(each.ask for each in found[1:])
    assert lived(*found).view().asks == ()
