"""What the owner of a waiting lease is told, and which trees of quotas are refused."""

from dataclasses import replace

import pytest

from cloudfarm.domain.quota import Quota, QuotaTree
from cloudfarm.domain.status import Target
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.rules import Rules
from cloudfarm.steward.view import Grant
from tests.scheduling import (
    MINUTE,
    NOW,
    RULES,
    decide_and_book,
    gpus,
    messages,
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


# What is told


def test_the_place_in_a_long_queue_is_told_roughly():
    told = messages(
        decide(view("1", running("x0", "h0:0"), *(waiting(f"a{n}", asked_ms=n) for n in range(150))))
    )
    assert told["a99"].startswith("place 100 in")
    assert told["a105"] == told["a108"]
    assert told["a105"].startswith("place 100 or so in")


@pytest.mark.parametrize(
    ("free", "wanted", "smaller"),
    [("h0:0123", "4", "3"), ("h0:0", "3x1", "2x1"), ("h0:012", "3x0.5", "1x0.5"), ("h0:012", "2", "1")],
)
def test_a_smaller_shape_that_would_start_now_is_told(free, wanted, smaller):
    # One host of four GPUs, of which some are taken.
    taken = {"4": "h0:0", "3x1": "h0:01", "3x0.5": "h0:012", "2": "h0:012"}[wanted]
    told = messages(decide(view("4", running("x0", taken), waiting("a1", wanted))))["a1"]
    assert f"; {smaller.removeprefix('1x')} would start now" in told


def test_nothing_is_said_twice():
    farm = view("1", running("x0", "h0:0"), waiting("a1"))
    told = messages(decide(farm))["a1"]
    again = view("1", farm.leases[0], replace(farm.leases[1], message=told))
    assert decide(again) == ()


def test_who_does_not_wait_is_not_considered():
    farm = view("1", replace(waiting("a1"), target=Target.END))
    assert decide(farm) == ()


def test_cordoned_and_silent_hosts_offer_nothing():
    farm = view("1", waiting("a1"))
    for change in ({"cordoned": True}, {"reachable": False}):
        closed = replace(farm, hosts=tuple(replace(host, **change) for host in farm.hosts))
        assert started(decide(closed)) == []


# Trees that are refused


@pytest.mark.parametrize(
    ("quotas", "why"),
    [
        ([quota("a", below="b"), quota("b", below="a")], "stands below itself"),
        ([quota("a", below="a")], "stands below itself"),
        ([quota("a", below="p")], "stands below p, which there is not"),
        ([quota("a"), quota("a")], "is given twice"),
        ([quota("p", 1), quota("a", 2, below="p")], "more than p is promised: 1 GPUs"),
        ([quota("a", 3), quota("b", 2)], "more than the farm has: 4 GPUs"),
        ([quota("a", weight=0)], "a weight is 1 or more, not 0"),
        ([quota("a", weight=-2)], "a weight is 1 or more, not -2"),
        ([quota("a", 2, limit=1)], "its guarantee is above its limit"),
        ([quota("a", committed_h=-1)], "0 or more"),
        ([Quota("a", limit=gpus(-1))], "guarantees and limits are 0 or more"),
        ([Quota("a/x", parent="b"), quota("b")], "a project stands below its tenant, a"),
        ([quota("a"), quota("a/x"), quota("b", below="a/x")], "nothing stands below a project"),
    ],
)
def test_a_tree_that_cannot_be_kept_is_refused(quotas, why):
    with pytest.raises(InvalidInputError, match=why):
        QuotaTree.of(quotas, capacity=gpus(4, cpus=10_000, gib=1_000_000))


def test_nothing_is_promised_to_any_number_of_tenants():
    with pytest.raises(InvalidInputError, match="the default quota can promise nothing"):
        QuotaTree.of([], default=quota("", 1))


def test_rules_have_sensible_defaults():
    assert Rules().preempt_notice_ms <= Rules().min_run_ms


def test_a_grant_is_of_the_whole_ask():
    [grant] = decide(view("2", waiting("a1", "2x0.5")))
    assert isinstance(grant, Grant)
    assert len(grant.slices) == 2
    assert len({piece.gpu_indices for piece in grant.slices}) == 2
