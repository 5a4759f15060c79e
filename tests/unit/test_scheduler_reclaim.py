"""Who makes room for whom, case by case: small farms that a person can check by hand."""

from dataclasses import replace

import pytest

from cloudfarm.domain.status import LeaseStatus, Target
from cloudfarm.scheduler.rules import next_look_ms
from cloudfarm.steward.view import Preempt
from tests.scheduling import (
    MINUTE,
    NOW,
    RULES,
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


def decide(view_, *quotas, rules=RULES):
    return decide_and_book(view_, rules, tree(*quotas))[0]


def booked(view_, *quotas, rules=RULES):
    """Return in how many minutes whom is booked."""
    _, bookings = decide_and_book(view_, rules, tree(*quotas))
    return {each.lease_id: (each.from_ms - NOW) / MINUTE for each in bookings}


def test_only_borrowers_give_way_and_only_as_many_as_needed():
    # b is promised 2 and asks for 1; a is promised 1 and holds 3; c is promised 1 and holds it.
    farm = view(
        "4", *(running(f"a{n}", f"h0:{n}") for n in range(3)), running("c0", "h0:3", ran=11), waiting("b1")
    )
    decisions = decide(farm, quota("a", 1), quota("b", 2), quota("c", 1))
    assert len(preempted(decisions)) == 1
    assert preempted(decisions) <= {"a0", "a1", "a2"}
    [preempt] = [each for each in decisions if isinstance(each, Preempt)]
    assert preempt.deadline_ms == NOW + MINUTE
    assert preempt.message == (
        "what it borrows is taken back for another tenant's lease, which is within its guarantee"
    )
    assert messages(decisions)["b1"].endswith("room is made for it, and it starts by 2023-11-14 22:15 UTC")


def test_nobody_gives_way_to_a_borrower():
    farm = view("1", running("a0", "h0:0"), waiting("b1"))
    assert preempted(decide(farm, quota("c", 1))) == set()


def test_a_borrower_runs_for_a_minimum_time_first():
    farm = view("1", running("a0", "h0:0", ran=9.9), waiting("b1"))
    assert preempted(decide(farm, quota("b", 1))) == set()
    assert next_look_ms(farm, RULES, tree(quota("b", 1))) == NOW + 6000
    farm = view("1", running("a0", "h0:0", ran=10), waiting("b1"))
    assert preempted(decide(farm, quota("b", 1))) == {"a0"}


@pytest.mark.parametrize(
    "change", [{"preempted_ms": NOW + 1}, {"status": LeaseStatus.STARTING}, {"target": Target.END}]
)
def test_who_is_on_the_way_in_or_out_is_left_alone(change):
    farm = view("1", running("a0", "h0:0", **change), waiting("b1"))
    assert preempted(decide(farm, quota("b", 1))) == set()


def test_least_work_is_lost():
    # a0 saved a minute ago, a1 runs for 20 minutes unsaved, a2 for 30.
    farm = view(
        "3",
        *(running(f"a{n}", f"h0:{n}", ran=ran) for n, ran in enumerate((40, 20, 30))),
        waiting("b1"),
        saved_ms={"a0": NOW - MINUTE},
    )
    assert preempted(decide(farm, quota("b", 3))) == {"a0"}
    assert preempted(decide(replace(farm, saved_ms={}), quota("b", 3))) == {"a1"}


def test_a_host_is_cleared_where_that_loses_least():
    # Two GPUs of one host: 20+20 minutes on h0, 11+60 on h1, although 11 is the least of all.
    farm = view(
        "22",
        *(running(f"a{n}", f"h{n // 2}:{n % 2}", ran=ran) for n, ran in enumerate((20, 20, 11, 60))),
        waiting("b1", "2"),
    )
    assert preempted(decide(farm, quota("b", 2))) == {"a0", "a1"}


def test_the_cheapest_set_is_not_the_one_with_the_cheapest_lease_of_each():
    # By what each loses: 10, 20, 35, and then h1 is clear for 55. But 10 and 40 clear h0 for 50.
    farm = view(
        "22",
        *(running(f"a{n}", f"h{n // 2}:{n % 2}", ran=ran) for n, ran in enumerate((10, 40, 20, 35))),
        waiting("b1", "2"),
    )
    assert preempted(decide(farm, quota("b", 2))) == {"a0", "a1"}


def test_who_turns_out_not_to_be_needed_is_let_off():
    # b wants half a GPU, of which a fifth is free. a0, the cheaper, gives a fifth; with a1 it is not needed.
    farm = view(
        "1",
        running("a0", "h0:0", milli=200, ran=11),
        running("a1", "h0:0", milli=600, ran=12),
        waiting("b1", "0.5"),
    )
    assert preempted(decide(farm, quota("b", 1))) == {"a1"}


def test_the_cheapest_on_the_wrong_host_do_not_use_up_what_is_borrowed():
    # a borrows 1 of 3. Its cheapest lease is on the wrong model; the dear one is on the right.
    hosts = [
        replace(host, gpus=tuple(replace(gpu, model=model) for gpu in host.gpus))
        for host, model in zip(view("21").hosts, "XY", strict=True)
    ]
    leases = [running("a0", "h0:0", ran=11), running("a1", "h0:1", ran=12), running("a2", "h1:0", ran=50)]
    farm = view(hosts, *leases, waiting("b1", gpu_model="Y"))
    assert preempted(decide(farm, quota("a", 2), quota("b", 1))) == {"a2"}


def test_what_is_on_its_way_out_is_not_borrowed_any_more():
    # a holds 4, is promised 2, and 2 are on their way out for b; c is promised 1, and a has no more to give.
    farm = view(
        "4",
        *(running(f"a{n}", f"h0:{n}", **({"preempted_ms": NOW + 30_000} if n < 2 else {})) for n in range(4)),
        waiting("b1", "2", asked_ms=1),
        waiting("c1", asked_ms=2),
    )
    decisions = decide(farm, quota("a", 2), quota("b", 2), quota("c", 1))
    assert preempted(decisions) == set()


def test_many_waiting_leases_of_one_tenant_take_back_its_guarantee_once():
    farm = view(
        "4",
        *(running(f"a{n}", f"h0:{n}") for n in range(4)),
        *(waiting(f"b{n}", asked_ms=n) for n in range(9)),
    )
    assert len(preempted(decide(farm, quota("b", 2)))) == 2


def test_who_is_within_its_own_guarantee_is_spared_though_its_programme_borrows():
    # p is promised 2 and holds 3: a its 1, b 2 of 1. q's d takes it from b.
    farm = view(
        "3", running("a0", "h0:0", ran=11), running("b0", "h0:1"), running("b1", "h0:2"), waiting("d1")
    )
    quotas = (
        quota("p", 2),
        quota("a", 1, below="p"),
        quota("b", 1, below="p"),
        quota("q", 1),
        quota("d", below="q"),
    )
    assert preempted(decide(farm, *quotas)) <= {"b0", "b1"}
    assert len(preempted(decide(farm, *quotas))) == 1


def test_what_only_the_programme_is_promised_is_not_taken_from_a_sibling():
    # p is promised 3, a and b 1 each. a holds its 1 and wants 1 more; b holds 2. What p has left over is b's by now.
    farm = view("3", running("a0", "h0:0"), running("b0", "h0:1"), running("b1", "h0:2"), waiting("a1"))
    quotas = quota("p", 4), quota("a", 1, below="p"), quota("b", 1, below="p")
    assert preempted(decide(farm, *quotas)) == set()
    outside = view("3", running("a0", "h0:0"), running("d0", "h0:1"), running("d1", "h0:2"), waiting("a1"))
    assert len(preempted(decide(outside, *quotas))) == 1


def test_a_project_takes_back_from_its_sibling_though_the_tenant_is_at_its_limit():
    farm = view(
        "4", *(running(f"a{n}", f"h0:{n}", project="y") for n in range(2)), waiting("a9", project="x")
    )
    quotas = quota("a", 2, limit=2), quota("a/x", 1), quota("a/y", 1)
    decisions = decide(farm, *quotas)
    assert len(preempted(decisions)) == 1
    assert "room is made for it" in messages(decisions)["a9"]


def test_what_was_taken_back_is_not_taken_back_again():
    # b1 has got back what a9 had; a9 waits, and a is promised what it still holds.
    farm = view("2", running("a0", "h0:0"), running("b1", "h0:1"), waiting("a9"))
    assert preempted(decide(farm, quota("a", 1), quota("b", 1))) == set()


def test_nobody_goes_for_room_that_is_booked_for_later():
    # a0 would be gone in 20 minutes anyway. In half an hour the GPU is c's; so b, who needs an hour, gains nothing.
    farm = view(
        "1", running("a0", "h0:0", minutes=20), waiting("b1"), waiting("c1", not_before_ms=NOW + 30 * MINUTE)
    )
    assert preempted(decide(farm, quota("b", 1), quota("c", 1))) == set()
    short = replace(farm, leases=(farm.leases[0], waiting("b1", minutes=29), farm.leases[2]))
    assert preempted(decide(short, quota("b", 1), quota("c", 1))) == {"a0"}


def test_room_that_was_made_for_one_lease_goes_to_no_other():
    # a0 has gone for b1; an older c1 that is promised as much comes second all the same.
    [made] = decide(view("1", waiting("b1")))
    b1 = replace(waiting("b1", asked_ms=2), room=made.slices)
    farm = view("1", waiting("c1", asked_ms=1), b1)
    assert started(decide(farm, quota("b", 0.5), quota("c", 0.5))) == ["b1"]
    silent = replace(farm, hosts=(replace(farm.hosts[0], reachable=False), *view("01").hosts[1:]))
    assert started(decide(silent, quota("b", 0.5), quota("c", 0.5))) == ["c1"]  # its room is gone


def test_one_pass_looks_for_room_for_so_many_and_the_next_goes_on():
    one = replace(RULES, reclaims=1)
    quotas = quota("b", 1), quota("c", 1)
    waits = waiting("b1", asked_ms=1), waiting("c1", asked_ms=2)
    farm = view("2", running("a0", "h0:0"), running("a1", "h0:1"), *waits)
    assert len(preempted(decide(farm, *quotas))) == 2
    [first] = preempted(decide(farm, *quotas, rules=one))
    leases = (replace(each, preempted_ms=NOW + MINUTE) if each.id == first else each for each in farm.leases)
    assert len(preempted(decide(replace(farm, leases=tuple(leases)), *quotas, rules=one))) == 1


def test_nobody_is_told_to_go_if_the_rules_say_so():
    farm = view("1", running("a0", "h0:0"), waiting("b1"))
    assert preempted(decide(farm, quota("b", 1), rules=replace(RULES, preempts=False))) == set()
