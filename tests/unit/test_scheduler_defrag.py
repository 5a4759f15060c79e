"""Moving in the queue: who is moved for whom, on farms small enough to check by hand, and what always holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.quota import QuotaTree
from cloudfarm.domain.status import LeaseStatus, Target
from cloudfarm.scheduler.defrag import Defrag
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.simulate.world import Work, World
from cloudfarm.steward.view import Decisions, FarmView, Grant, Preempt, Wait
from cloudfarm.testing.fake_farm import make_host
from tests.scheduling import (
    HOUR,
    MINUTE,
    NOW,
    assert_bookings_hold,
    assert_nothing_is_shared_out_twice,
    decide_and_book,
    messages,
    preempted,
    quota,
    running,
    started,
    tree,
    view,
    waiting,
)

RULES = Rules(min_run_ms=10 * MINUTE, preempt_notice_ms=MINUTE, moves=2)


def job(id_: str, where: str, minutes: float = 600, *, saved: float = 5, **more) -> Lease:
    """Return a running job of half a GPU, unless told otherwise."""
    lease = running(id_, where, minutes, **{"milli": 500, "ran": 30, **more})
    return replace(lease, kind=LeaseKind.JOB, segment=1)


def farm(hosts: str, *leases: Lease, saved: float = 5, **more) -> FarmView:
    """Return a farm of which every job saved its work some minutes ago."""
    more.setdefault("saved_ms", {lease.id: NOW - round(saved * MINUTE) for lease in leases})
    return view(hosts, *leases, **more)


def decide(view_: FarmView, *quotas, rules: Rules = RULES) -> Decisions:
    return decide_and_book(view_, rules, tree(*quotas))[0]


def moves(decisions: Decisions) -> dict[str, str]:
    """Return who moves, and the hosts and GPUs where each goes on."""
    return {
        each.lease_id: "+".join(f"{piece.host}:{''.join(map(str, piece.gpu_indices))}" for piece in each.room)
        for each in decisions
        if isinstance(each, Preempt) and each.room
    }


def test_two_halves_become_a_whole_and_everybody_is_told():
    stuck = farm("11", job("a0", "h0:0"), job("b0", "h1:0", ran=40), waiting("c1"))
    decisions = decide(stuck)
    assert moves(decisions) == {"a0": "h1:0"}  # both lost the same work; the younger
    [move] = [each for each in decisions if isinstance(each, Preempt)]
    assert (move.for_lease_id, move.deadline_ms) == ("c1", NOW + MINUTE)
    assert move.message == (
        "it is moved to make room for another tenant's lease, and its next place is kept for it"
    )
    [wait] = [each for each in decisions if isinstance(each, Wait)]
    assert [(piece.host, piece.gpu_indices) for piece in wait.room] == [("h0", (0,))]
    assert wait.message == (
        "what is free is in pieces; room is made for it, and it starts by 2023-11-14 22:15 UTC"
    )
    assert started(decisions) == []


def test_it_is_off_unless_the_rules_say_otherwise(monkeypatch):
    monkeypatch.setattr(Defrag, "find", lambda *_: pytest.fail("nobody is to be moved"))
    stuck = farm("11", job("a0", "h0:0"), job("b0", "h1:0"), waiting("c1"))
    assert Rules().moves == 0
    decisions = decide(stuck, rules=replace(RULES, moves=0))
    assert preempted(decisions) == set()
    assert "is not free" in messages(decisions)["c1"]


def test_least_work_is_lost():
    stuck = farm(
        "11",
        job("a0", "h0:0"),
        job("b0", "h1:0"),
        waiting("c1"),
        saved_ms={"a0": NOW - 9 * MINUTE, "b0": NOW},
    )
    assert moves(decide(stuck)).keys() == {"b0"}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": LeaseKind.MANUAL},
        {"kind": LeaseKind.SERVICE},
        {"segment": 2},
        {"target": Target.END},
        {"status": LeaseStatus.STARTING},
        {"preempted_ms": NOW + 2 * MINUTE},
        {"started_ms": NOW - 9 * MINUTE},
    ],
)
def test_who_may_not_be_moved(change):
    both = [replace(job(id_, where, ran=90), **change) for id_, where in (("a0", "h0:0"), ("b0", "h1:0"))]
    saved = {"a0": NOW - MINUTE, "b0": NOW - MINUTE}
    assert moves(decide(farm("11", *both, waiting("c1"), saved_ms=saved))) == {}


def test_who_is_gone_before_the_deadline_anyway_need_not_move():
    # a0 leaves half of h0 free by then, beside d0; so b0 goes there.
    leaves = job("a0", "h0:0", 0.5), running("d0", "h0:0", 600, milli=500)
    saved = {"a0": NOW, "b0": NOW - 5 * MINUTE}
    decisions = decide(farm("11", *leaves, job("b0", "h1:0"), waiting("c1"), saved_ms=saved))
    assert moves(decisions) == {"b0": "h0:0"}


def test_who_has_saved_nothing_is_not_moved():
    both = job("a0", "h0:0"), job("b0", "h1:0")
    assert moves(decide(farm("11", *both, waiting("c1"), saved_ms={}))) == {}
    before_it_started = {"a0": NOW - 31 * MINUTE, "b0": NOW - 31 * MINUTE}
    assert moves(decide(farm("11", *both, waiting("c1"), saved_ms=before_it_started))) == {}


def test_nobody_is_moved_for_what_starts_soon_anyway():
    # Each loses 6 minutes and a restart of half a GPU: 3.5 GPU-minutes. c1 wins its wait, beyond the notice.
    for left, is_worth_it in ((4.4, False), (4.6, True)):
        both = job("a0", "h0:0", left), job("b0", "h1:0", left)
        assert bool(moves(decide(farm("11", *both, waiting("c1"))))) == is_worth_it


def test_nobody_is_moved_from_a_closed_host_or_onto_one():
    leases = job("a0", "h0:0"), job("b0", "h1:0"), waiting("c1")
    for closed in range(2):
        stuck = farm("11", *leases)
        hosts = list(stuck.hosts)
        hosts[closed] = replace(hosts[closed], cordoned=True)
        assert moves(decide(replace(stuck, hosts=tuple(hosts)))) == {}


def test_nothing_is_cleared_on_a_closed_host():
    # a0 could go to h1, and c1 wants a model that only h0, closed, and h2, taken, have.
    hosts = [
        replace(make_host("h0", 1, model="X"), cordoned=True),
        make_host("h1", 1, model="Y"),
        make_host("h2", 1, model="X"),
    ]
    leases = job("a0", "h0:0", milli=1000), running("d0", "h2:0", 600), waiting("c1", gpu_model="X")
    assert moves(decide(farm(hosts, *leases))) == {}
    hosts[0] = replace(hosts[0], cordoned=False)
    assert moves(decide(farm(hosts, *leases))) == {"a0": "h1:0"}


def test_what_is_booked_for_others_is_not_given_away():
    # z1 has both GPUs of h0 from when d0 ends; c1 would still hold half of one then, were a0 moved for it.
    hosts = [make_host("h0", 2, model="X"), make_host("h1", 1, model="Y")]
    leases = (
        job("a0", "h0:0", 50),
        running("d0", "h0:1", 60),
        waiting("z1", "2", 60, gpu_model="X", asked_ms=1),
        waiting("c1", "0.5", 90, gpu_model="X", asked_ms=2),
    )
    decisions, bookings = decide_and_book(farm(hosts, *leases), RULES, tree())
    assert moves(decisions) == {}
    assert [(each.lease_id, (each.from_ms - NOW) / MINUTE) for each in bookings] == [("z1", 60), ("c1", 120)]


def test_who_is_told_to_move_is_not_told_again():
    # a0 makes room for c1 and leaves 400 beside it; c2 needs 800, and nobody else may move.
    rest = running("d0", "h1:0", 600, milli=500), running("d1", "h2:0", 600, milli=500)
    asked = waiting("c1", "0.6", asked_ms=1), waiting("c2", "0.8", asked_ms=2)
    decisions = decide(farm("111", job("a0", "h0:0"), *rest, *asked, saved_ms={"a0": NOW}))
    assert [each.for_lease_id for each in decisions if isinstance(each, Preempt)] == ["c1"]


def test_what_is_left_beside_the_room_that_is_made_is_used_at_once():
    # Beside a0 there is half a GPU now, and beside c1 there will be 400 milli: c2 has those all through its time.
    asked = waiting("c1", "0.6", 60, asked_ms=1), waiting("c2", "0.4", 60, asked_ms=2)
    leases = job("a0", "h0:0"), running("d0", "h1:0", 600, milli=500), *asked
    decisions, bookings = decide_and_book(farm("11", *leases), RULES, tree())
    assert moves(decisions) == {"a0": "h1:0"}
    assert {each.lease_id: (each.from_ms - NOW) / MINUTE for each in bookings} == {"a0": 1, "c1": 1}
    assert [(each.lease_id, each.slices[0].host) for each in decisions if isinstance(each, Grant)] == [
        ("c2", "h0")
    ]


def test_nobody_is_moved_now_for_a_reservation_of_later():
    both = job("a0", "h0:0"), job("b0", "h1:0")
    later = waiting("c1", not_before_ms=NOW + 30 * MINUTE)
    assert moves(decide(farm("11", *both, later), quota("c", 1))) == {}


def test_a_limit_is_not_moved_out_of_the_way():
    stuck = farm("11", job("a0", "h0:0"), job("b0", "h1:0"), running("c0", "h1:0", milli=500), waiting("c1"))
    assert moves(decide(stuck, quota("c", limit=1))) == {}


def test_so_many_are_on_the_move_at_once_and_no_more():
    leases = [job(f"a{n}", f"h{n}:0") for n in range(6)]
    asked = [waiting(f"c{n}", asked_ms=n) for n in range(3)]
    assert len(moves(decide(farm("111111", *leases, *asked)))) == 2
    assert len(moves(decide(farm("111111", *leases, *asked), rules=replace(RULES, moves=3)))) == 3
    assert len(moves(decide(farm("111111", *leases, *asked), rules=replace(RULES, moves=1)))) == 1


def test_who_was_restarted_within_the_hour_counts():
    for ran, expected in ((59, 1), (61, 2)):
        leases = [job(f"a{n}", f"h{n}:0") for n in range(4)]
        leases.append(replace(job("b0", "h4:0", milli=1000, ran=ran), segment=2))
        asked = [waiting(f"c{n}", asked_ms=n) for n in range(2)]
        assert len(moves(decide(farm("11111", *leases, *asked)))) == expected


def test_in_a_large_farm_one_in_a_hundred_is_moved_an_hour_and_few_at_once():
    leases = [job(f"a{n}", "h0:0") for n in range(300)]

    def left(*changed: Lease) -> int:
        return Defrag.of(farm("1", *changed, *leases[len(changed) :]), RULES).left

    moving = replace(leases[0], preempted_ms=NOW + MINUTE, room=leases[0].slices)
    restarted = replace(leases[0], segment=2)
    assert left() == 2
    assert left(moving) == 1
    assert left(restarted, restarted) == 1
    assert left(restarted, restarted, restarted) == 0
    assert left(moving, moving, moving) == 0


def told(view_: FarmView, decisions: Decisions) -> FarmView:
    """Return the farm as it is once the leases have been told."""
    leases = {lease.id: lease for lease in view_.leases}
    for each in decisions:
        if isinstance(each, Preempt):
            leases[each.lease_id] = replace(
                leases[each.lease_id], preempted_ms=each.deadline_ms, room=each.room
            )
        elif isinstance(each, Wait):
            leases[each.lease_id] = replace(leases[each.lease_id], message=each.message, room=each.room)
    return replace(view_, leases=tuple(leases.values()))


def stopped(view_: FarmView, *gone: str) -> FarmView:
    """Return the farm once leases have stopped and wait anew."""
    return replace(
        view_,
        leases=tuple(
            replace(
                lease,
                status=LeaseStatus.WAITING,
                slices=(),
                started_ms=None,
                ends_ms=None,
                preempted_ms=None,
                segment=2,
            )
            if lease.id in gone
            else lease
            for lease in view_.leases
        ),
    )


def test_the_next_place_is_kept_until_it_is_taken():
    first = farm("11", job("a0", "h0:0"), job("b0", "h1:0", ran=40), waiting("c1"))
    moving = told(first, decide(first))
    assert decide(moving) == ()
    late = waiting("d1", "0.5", minutes=600)
    with_late = replace(moving, leases=(*moving.leases, late))
    assert started(decide(with_late)) == []  # the half beside b0 is kept for a0
    at_once = stopped(with_late, "a0")
    decisions = decide(at_once)
    places = {each.lease_id: each.slices for each in decisions if isinstance(each, Grant)}
    assert {id_: [(piece.host, piece.gpu_indices) for piece in slices] for id_, slices in places.items()} == {
        "a0": [("h1", (0,))],
        "c1": [("h0", (0,))],
    }


def test_who_is_moving_still_holds_its_quota():
    # a may hold half a GPU. It moves; a second lease of its does not slip into the limit meanwhile.
    first = farm("111", job("a0", "h0:0"), job("b0", "h1:0", ran=40), running("d0", "h2:0"), waiting("c1"))
    limit = quota("a", limit=0.5)
    moving = told(first, decide(first, limit))
    assert [lease.id for lease in moving.leases if lease.preempted_ms] == ["a0"]
    more = replace(
        moving, leases=(*(lease for lease in moving.leases if lease.id != "d0"), waiting("a1", "0.5"))
    )
    decisions = decide(more, limit)
    assert started(decisions) == ["c1"] or started(decisions) == []
    assert "a holds 0.5 GPU of at most 0.5 GPU" in messages(decisions)["a1"]
    assert "a0" in started(decide(stopped(more, "a0"), limit))


def test_a_gang_moves_whole():
    gang = replace(job("a0", {"h0": [0], "h1": [0]}), kind=LeaseKind.JOB)
    stuck = farm("1122", gang, running("d0", "h2:01"), job("b0", "h3:0", 900), waiting("c1", "2x1", 600))
    decisions = decide(stuck, rules=replace(RULES, moves=1))
    for each in decisions:
        if isinstance(each, Preempt):
            assert len(each.room) == len(
                next(lease for lease in stuck.leases if lease.id == each.lease_id).slices
            )


# What always holds


@dataclass
class Watcher:
    """Judges every step of a world in which leases are moved."""

    hosts: Sequence[Host]
    tree: QuotaTree
    rules: Rules
    moved: dict[str, int] = field(default_factory=dict)
    """How often each was."""
    must_run_by: dict[str, int] = field(default_factory=dict)
    """Those that move, and those for which they do."""

    def admit(self, view_: FarmView) -> Decisions:
        decisions, bookings = decide_and_book(view_, self.rules, self.tree)
        assert decide_and_book(view_, self.rules, self.tree) == (decisions, bookings)
        leases = {lease.id: lease for lease in view_.leases}
        going = [each for each in decisions if isinstance(each, Preempt)]
        for each in going:
            lease = leases[each.lease_id]
            if each.room:
                assert lease.status is LeaseStatus.ACTIVE
                assert view_.saved_ms[lease.id] > lease.started_ms
                assert view_.now_ms - lease.started_ms >= self.rules.min_run_ms
                assert len(each.room) == len(lease.slices)
                self.moved[lease.id] = self.moved.get(lease.id, 0) + 1
                for id_ in (lease.id, each.for_lease_id):
                    self.must_run_by[id_] = each.deadline_ms
        on_the_move = [lease for lease in view_.leases if lease.preempted_ms is not None and lease.room]
        assert len(on_the_move) + sum(bool(each.room) for each in going) <= self.rules.moves
        starts = [each for each in decisions if isinstance(each, Grant)]
        deadlines = {each.lease_id: each.deadline_ms for each in going}
        after = tuple(
            replace(each, preempted_ms=deadlines.get(each.id, each.preempted_ms)) for each in view_.leases
        )
        assert_bookings_hold(replace(view_, leases=after), starts, bookings)
        return decisions

    def look(self, world: World) -> None:
        assert_nothing_is_shared_out_twice(world.hosts, world.leases.values())
        assert all(times == 1 for times in self.moved.values())
        for id_, by_ms in list(self.must_run_by.items()):
            lease = world.leases.get(id_)
            if lease is None or (lease.slices and lease.preempted_ms is None):
                del self.must_run_by[id_]
            else:
                assert world.now_ms <= by_ms, f"{id_} was to run by {by_ms}"


@st.composite
def works(draw: st.DrawFn, number: int) -> Work:
    minutes = draw(st.integers(20, 200))
    ask = Ask(
        Shape(draw(st.sampled_from((1, 1, 1, 2))), draw(st.sampled_from((250, 400, 500, 1000, 2000)))),
        draw(st.integers(0, 4)),
        GIB,
        minutes * MINUTE,
        distinct_gpus=draw(st.booleans()),
    )
    return Work(
        f"{draw(st.sampled_from('ab'))}{number}",
        "a",
        ask,
        draw(st.integers(0, 60)) * MINUTE,
        draw(st.integers(10, minutes)) * MINUTE,
        checkpoint_ms=draw(st.sampled_from((1, 5, 1000))) * MINUTE,
        saves_when_told=draw(st.booleans()),
    )


def simulate(data: st.DataObject, rules: Rules) -> Watcher:
    hosts = [
        make_host(f"h{n}", data.draw(st.integers(1, 3)), cpus=data.draw(st.sampled_from((8, 64))))
        for n in range(data.draw(st.integers(2, 4)))
    ]
    plan = [data.draw(works(number)) for number in range(data.draw(st.integers(4, 16)))]
    watcher = Watcher(hosts, tree(quota("a", limit=100)), rules)
    world = World(
        hosts,
        watcher.tree,
        watcher.admit,
        watch=watcher.look,
        wake=lambda view_: next_look_ms(view_, rules, watcher.tree),
    )
    world.run(plan)
    return watcher


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.integers(1, 3))
def test_who_moves_goes_on_in_time_and_nothing_is_shared_out_twice(data, most):
    rules = Rules(min_run_ms=5 * MINUTE, preempt_notice_ms=MINUTE, moves=most)
    watcher = simulate(data, rules)
    event(f"{len(watcher.moved)} moved")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_where_nothing_was_saved_the_switch_changes_nothing(data):
    hosts = [make_host(f"h{n}", 2) for n in range(3)]
    plan = [
        replace(data.draw(works(number)), checkpoint_ms=1000 * HOUR, saves_when_told=False)
        for number in range(12)
    ]
    logs = []
    for most in (0, 3):
        log: list[str] = []
        rules = Rules(min_run_ms=5 * MINUTE, preempt_notice_ms=MINUTE, moves=most)

        def admit(view_, rules=rules, log=log):
            decisions = decide_and_book(view_, rules, QuotaTree())[0]
            log.append(repr(decisions))
            return decisions

        World(hosts, QuotaTree(), admit).run(plan)
        logs.append(log)
    assert logs[0] == logs[1]
