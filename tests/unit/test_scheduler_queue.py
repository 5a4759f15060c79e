"""The queue, case by case: small farms that a person can check by hand. Hosts have plenty of CPUs and memory."""

from dataclasses import replace

from cloudfarm.domain.quota import Quota
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.future import Future
from cloudfarm.scheduler.rules import next_look_ms
from cloudfarm.scheduler.space import Space
from tests.scheduling import (
    HOUR,
    MINUTE,
    NOW,
    RULES,
    decide_and_book,
    gpus,
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


# Whose turn it is


def test_who_is_within_the_guarantee_comes_before_who_borrows():
    farm = view("1", waiting("a1", asked_ms=1), waiting("b1", asked_ms=2))
    assert started(decide(farm)) == ["a1"]
    assert started(decide(farm, quota("b", 1))) == ["b1"]


def test_among_those_within_their_guarantees_the_oldest_goes_first():
    # a has had nothing yet and b has one of its two, but b1 came first.
    farm = view("2", running("b0", "h0:0"), waiting("b1", asked_ms=1), waiting("a1", asked_ms=2))
    assert started(decide(farm, quota("a", 1), quota("b", 2))) == ["b1"]


def test_what_is_left_over_goes_to_who_has_least_of_it_for_its_weight():
    # a holds 2 of what nobody is promised, with weight 3; b holds 1, with weight 1: 2/3 < 1.
    farm = view(
        "4",
        running("a0", "h0:01"),
        running("b0", "h0:2"),
        waiting("b1", asked_ms=1),
        waiting("a1", asked_ms=2),
    )
    assert started(decide(farm)) == ["b1"]
    assert started(decide(farm, quota("a", weight=3), quota("b"))) == ["a1"]


def test_only_what_is_beyond_the_guarantee_counts_resource_by_resource():
    # a is promised much memory and holds 2 GPUs that it is not promised; b holds 1.
    farm = view(
        "4",
        running("a0", "h0:01"),
        running("b0", "h0:2"),
        waiting("a1", asked_ms=1),
        waiting("b1", asked_ms=2),
    )
    much = Quota("a", guarantee=gpus(0, gib=400))
    assert started(decide(farm, much)) == ["b1"]
    assert started(decide(farm, quota("a", 2))) == ["a1"]  # a is beyond it by nothing, b by 1


def test_past_use_counts_among_borrowers_only():
    leases = waiting("a1", asked_ms=1), waiting("b1", asked_ms=2)
    farm = view("1", *leases, past={"a": 0.5})
    assert started(decide(farm)) == ["b1"]
    assert started(decide(farm, quota("a", 1))) == ["a1"]


def test_siblings_share_within_their_programme_first():
    # p holds 2 and q nothing, so q's turn it is, although d alone holds as little as c.
    farm = view("3", running("a0", "h0:01"), waiting("c1", asked_ms=1), waiting("d1", asked_ms=2))
    quotas = quota("p"), quota("q"), quota("a", below="p"), quota("c", below="p"), quota("d", below="q")
    assert started(decide(farm, *quotas)) == ["d1"]


def test_priority_counts_within_a_project():
    farm = view("1", waiting("a1", asked_ms=1), waiting("a2", asked_ms=2, priority=1))
    assert started(decide(farm)) == ["a2"]


def test_siblings_take_turns_at_what_is_free():
    farm = view("4", *(waiting(f"{who}{n}", asked_ms=n) for who in "ab" for n in range(4)))
    assert sorted(started(decide(farm))) == ["a0", "a1", "b0", "b1"]


# Bounds


def test_a_limit_holds_back_nobody_else():
    farm = view("4", running("a0", "h0:0"), waiting("a1", asked_ms=1), waiting("b1", asked_ms=2))
    decisions = decide(farm, quota("a", limit=1))
    assert started(decisions) == ["b1"]
    assert messages(decisions)["a1"] == "place 1 in the queue: a holds 1 GPU of at most 1 GPU"


def test_a_limit_names_the_resource_that_binds():
    farm = view("4", running("a0", "h0:0", cpus=6), waiting("a1"))
    limit = Quota("a", limit=gpus(4, cpus=6))
    assert "a holds 6 of at most 6 CPUs" in messages(decide(farm, limit))["a1"]
    limit = Quota("a", limit=gpus(4, gib=1))
    assert "a holds 1 of at most 1 GiB" in messages(decide(farm, limit))["a1"]


def test_what_is_on_its_way_out_still_touches_a_limit():
    farm = view("2", running("a0", "h0:0", preempted_ms=NOW + MINUTE), waiting("a1"))
    assert started(decide(farm, quota("a", limit=1))) == []
    assert started(decide(farm, quota("a", limit=2))) == ["a1"]


def test_cpus_and_memory_are_looked_at_like_gpus():
    farm = view("2", waiting("a1", cpus=65), waiting("a2", cpus=64))
    assert started(decide(farm)) == ["a2"]
    small = replace(farm, hosts=(replace(farm.hosts[0], memory_bytes=1),))
    assert started(decide(small)) == []


def test_the_limit_of_a_programme_holds_for_all_its_tenants_together():
    farm = view("4", running("a0", "h0:0"), waiting("b1"))
    assert started(decide(farm, quota("p", limit=1), quota("a", below="p"), quota("b", below="p"))) == []


def test_short_work_may_fill_the_farm_and_long_work_may_not():
    # 4 GPUs for an hour are 4 GPU-hours; 4 GPUs for two hours are 8.
    bound = quota("a", committed_h=4)
    assert len(started(decide(view("4", *(waiting(f"a{n}", minutes=60) for n in range(4))), bound))) == 4
    decisions = decide(view("4", *(waiting(f"a{n}", minutes=120) for n in range(4))), bound)
    assert len(started(decisions)) == 2
    assert "may have 4 GPU-hours of borrowed time running" in messages(decisions)["a3"]


def test_what_is_promised_is_not_bound_by_committed_time():
    leases = [waiting(f"a{n}", minutes=6000) for n in range(3)]
    assert len(started(decide(view("4", *leases), quota("a", 2, committed_h=1)))) == 2


# Booking and backfill


def test_a_short_lease_passes_and_a_long_one_does_not():
    # One GPU is free; big needs two and gets them when a0 ends in an hour.
    farm = view(
        "2",
        running("a0", "h0:0", minutes=60),
        waiting("big1", "2", asked_ms=1),
        waiting("long1", "1", minutes=61, asked_ms=2),
        waiting("short1", "1", minutes=60, asked_ms=3),
    )
    decisions = decide(farm)
    assert started(decisions) == ["short1"]
    assert booked(farm) == {"big1": 60, "long1": 120}
    assert messages(decisions)["big1"].endswith("starts by 2023-11-14 23:14 UTC at the latest")
    assert (
        "what is free is kept for others; another tenant's lease is ahead, since it is its quota's turn; "
        "for up to 60 minutes it would start now" in messages(decisions)["long1"]
    )


def test_a_gang_starts_whole_or_not_at_all():
    farm = view("22", running("a0", "h0:0"), waiting("b1", "2x2"))
    decisions = decide(farm)
    assert started(decisions) == []
    assert "; 2 would start now" in messages(decisions)["b1"]
    [grant] = decide(view("22", waiting("b1", "2x2")))
    assert [(piece.host, piece.gpu_indices) for piece in grant.slices] == [("h0", (0, 1)), ("h1", (0, 1))]


def test_those_for_whom_nothing_is_booked_start_beside_what_is():
    leases = [waiting(f"a{n}", "2", asked_ms=n) for n in range(3)]
    farm = view("2", running("x0", "h0:0"), *leases, waiting("b1", "1", minutes=30, asked_ms=9))
    decisions = decide(farm, rules=replace(RULES, bookings=1))
    assert started(decisions) == ["b1"]
    assert messages(decisions)["a2"].endswith(
        "1 leases for which room is kept come first, lease a0 before all"
    )


def test_a_lease_that_no_open_host_could_hold_delays_nobody():
    farm = view(
        "2", running("x0", "h0:0"), waiting("a1", "4", asked_ms=1), waiting("b1", minutes=600, asked_ms=2)
    )
    decisions = decide(farm)
    assert started(decisions) == ["b1"]
    assert "is more than the hosts have that are there and open" in messages(decisions)["a1"]


def test_what_is_booked_counts_against_a_limit_for_what_comes_later():
    # a may hold 2. a1 starts with 2 in half an hour; a2 for an hour would delay it by the limit, a3 would not.
    leases = [
        waiting("a1", "2", asked_ms=1),
        waiting("a2", asked_ms=2),
        waiting("a3", minutes=30, asked_ms=3),
    ]
    farm = view("12", running("x0", "h1:01", minutes=30), *leases)
    decisions = decide(farm, quota("a", limit=2))
    assert started(decisions) == ["a3"]
    assert "the rest of its limit is kept for what came first" in messages(decisions)["a2"]


def test_an_ending_lease_is_as_good_as_gone():
    farm = view("1", running("x0", "h0:0", minutes=600, status=LeaseStatus.ENDING), waiting("a1"))
    assert booked(farm)["a1"] < 1


def test_many_different_ends_are_counted_late_but_never_early():
    hosts = "8" * 20
    leases = [running(f"x{n}", f"h{n // 8}:{n % 8}", minutes=1000 + n) for n in range(160)]
    farm = view(hosts, *leases, waiting("a1", "8"))
    exact_ms = NOW + 1007 * MINUTE  # h0's last
    space = Space.of(farm.hosts)
    booking = Future.of(space, NOW, leases).find("a1", farm.leases[-1].ask)
    assert booking.slices[0].host == "h0"
    assert exact_ms <= booking.from_ms <= exact_ms + 1007 * MINUTE / 16


# Reservations


def test_room_is_kept_for_a_reservation_and_it_starts_no_sooner():
    farm = view(
        "1",
        waiting("a1", not_before_ms=NOW + HOUR, asked_ms=9),
        waiting("b1", minutes=61, asked_ms=1),
        waiting("b2", minutes=60, asked_ms=2),
    )
    decisions = decide(farm, quota("a", 1))
    assert started(decisions) == ["b2"]
    assert booked(farm, quota("a", 1))["a1"] == 60
    assert "it is reserved for 2023-11-14 23:14 UTC" in messages(decisions)["a1"]
    assert "for up to 60 minutes it would start now" in messages(decisions)["b1"]


def test_what_is_booked_is_not_short_now_if_others_leave_before():
    # In half an hour 62 of the 64 CPUs come back, and b1 gets 62; so there are always 2 for b2.
    farm = view(
        "3",
        running("a0", "h0:0", minutes=30, cpus=62),
        waiting("b1", cpus=62, asked_ms=1),
        waiting("b2", cpus=2, asked_ms=2),
        waiting("b3", cpus=1, asked_ms=3),
    )
    assert started(decide(farm)) == ["b2"]
    assert booked(farm) == {"b1": 30, "b3": 60}


def test_a_reservation_beyond_the_guarantee_waits_its_turn():
    farm = view(
        "1", waiting("a1", not_before_ms=NOW + HOUR, asked_ms=9), waiting("b1", minutes=61, asked_ms=1)
    )
    assert started(decide(farm, quota("b", 1))) == ["b1"]
    due = view("1", waiting("a1", not_before_ms=NOW - 1, asked_ms=1), waiting("b1", asked_ms=2))
    assert started(decide(due, quota("b", 1))) == ["b1"]


def test_a_reservation_is_kept_to_its_limit_like_any_lease():
    farm = view("2", running("a0", "h0:0"), waiting("a1", not_before_ms=NOW - 1))
    assert started(decide(farm, quota("a", 1, limit=1))) == []


def test_room_for_a_reservation_is_made_in_time():
    early = view("1", running("b0", "h0:0", minutes=90), waiting("a1", not_before_ms=NOW + MINUTE + 1))
    assert preempted(decide(early, quota("a", 1))) == set()
    assert next_look_ms(early, RULES, tree(quota("a", 1))) == NOW + 1
    in_time = view("1", running("b0", "h0:0", minutes=90), waiting("a1", not_before_ms=NOW + MINUTE))
    assert preempted(decide(in_time, quota("a", 1))) == {"b0"}


ONE_SPARE = replace(RULES, spare_gpus=1)


def test_borrowers_leave_free_what_somebody_is_promised_who_asks_for_nothing():
    farm = view("2", waiting("a1", asked_ms=NOW - 2), waiting("a2"))
    decisions = decide(farm, quota("b", 1), rules=ONE_SPARE)
    assert started(decisions) == ["a1"]
    assert "1 GPU is kept free for tenants who are promised it" in messages(decisions)["a2"]
    assert started(decide(farm, rules=ONE_SPARE)) == ["a1", "a2"]  # nobody is promised anything
    assert started(decide(farm, quota("b", 0.5), rules=ONE_SPARE)) == ["a1", "a2"]
    assert started(decide(farm, quota("b", 1))) == ["a1", "a2"]


def test_no_more_is_spared_than_one_tenant_could_ask_for():
    farm = view("6", *(waiting(f"a{n}") for n in range(6)), running("b0", "h0:0"))
    three = replace(RULES, spare_gpus=3)
    assert len(started(decide(farm, quota("b", 2), quota("c", 1), rules=three))) == 4
    assert len(started(decide(farm, quota("b", 3), quota("c", 1), rules=three))) == 3
    below = quota("p", 1), quota("c", 1, below="p"), quota("d", below="p")
    assert len(started(decide(replace(farm, leases=farm.leases[:-1]), *below, rules=three))) == 5
    sibling = replace(farm, leases=(*farm.leases[:-1], running("d0", "h0:0")))
    assert len(started(decide(sibling, *below, rules=three))) == 5  # what p is promised is d's by now


def test_what_is_spared_is_for_whoever_is_promised_it():
    farm = view("2", running("a0", "h0:0"), waiting("a1", asked_ms=1), waiting("b1", asked_ms=2))
    assert started(decide(farm, quota("b", 1), quota("c", 1), rules=ONE_SPARE)) == ["b1"]


def test_what_is_spared_is_lent_no_more_than_promised_after_a_borrower_of_the_same_tenant():
    # b1 is more than b is promised, so it borrows, and c's GPU is kept from it. b2 is within what b is promised.
    farm = view("2", running("a0", "h0:0"), waiting("b1", "2", asked_ms=1), waiting("b2", asked_ms=2))
    decisions = decide(farm, quota("b", 1), quota("c", 1), rules=ONE_SPARE)
    assert started(decisions) == ["b2"]


def test_nothing_is_spared_for_who_asks_already():
    # b's own lease is too large to start; it waits, and what is free is lent.
    farm = view(
        "2", running("a0", "h0:0", minutes=90), waiting("b1", "2", asked_ms=1), waiting("a1", minutes=60)
    )
    assert started(decide(farm, quota("b", 1), rules=ONE_SPARE)) == ["a1"]


def test_who_has_waited_for_a_day_is_kept_from_nothing():
    day_ms = ONE_SPARE.spare_patience_ms
    farm = view("1", waiting("a1", asked_ms=NOW - day_ms + 1))
    assert started(decide(farm, quota("b", 1), rules=ONE_SPARE)) == []
    assert next_look_ms(farm, ONE_SPARE, tree(quota("b", 1))) == NOW + 1
    assert started(decide(replace(farm, now_ms=NOW + 1), quota("b", 1), rules=ONE_SPARE)) == ["a1"]


def test_the_next_room_is_spared_if_none_is_free():
    farm = view("2", running("a0", "h0:0", minutes=30), running("a1", "h0:1", minutes=60), waiting("a2"))
    assert booked(farm, quota("b", 1), rules=ONE_SPARE) == {"spare": 30, "a2": 60}
