"""Where a piece of work may run, without Ray."""

from __future__ import annotations

import pytest

from cloudfarm.raylayer.hook.rules import (
    HEAD_PINNED,
    HEAD_RESOURCE,
    NODE_ID_LABEL,
    ConfinementError,
    ControlScope,
    LeaseScope,
    Work,
)

MINE, OTHER, UNKNOWN = "a" * 56, "b" * 56, "c" * 56
LABELS = {MINE: {"lease": "A"}, OTHER: {"lease": "B"}}


def lease() -> LeaseScope:
    return LeaseScope("A", LABELS.get)


def work(**changes: object) -> Work:
    plain = Work(
        module="train",
        name="step",
        resources={"CPU": 1.0},
        selector=None,
        fallback=None,
        affinity=None,
        affinity_is_soft=False,
        in_group=False,
    )
    return plain._replace(**changes)


@pytest.mark.parametrize("selector", [None, {}, {"lease": "B"}, {"lease": "!A"}])
def test_lease_is_forced_whatever_the_work_names(selector):
    assert lease().place(work(selector=selector)).selector == {"lease": "A"}


def test_what_a_replica_makes_stays_in_its_own_lease_of_all_those_of_its_service():
    placed = lease().place(work(selector={"revision": "r1"}))
    assert placed.selector == {"revision": "r1", "lease": "A"}


def test_other_wishes_of_a_selector_are_kept():
    placed = lease().place(work(selector={"zone": "in(x,y)"}))
    assert placed.selector == {"zone": "in(x,y)", "lease": "A"}


def test_every_fallback_is_confined_too():
    options = [{"label_selector": {"zone": "x"}}, {"label_selector": {"lease": "B"}}, {}]
    placed = lease().place(work(selector={"zone": "y"}, fallback=options))
    assert [option["label_selector"]["lease"] for option in placed.fallback or ()] == ["A", "A", "A"]
    assert options[1] == {"label_selector": {"lease": "B"}}, "the caller's own list is not changed"


def test_work_in_a_placement_group_is_confined_too():
    assert lease().place(work(in_group=True)).selector == {"lease": "A"}


def test_host_resource_is_confined_because_lease_nodes_share_a_host():
    assert lease().place(work(resources={"node:10.0.0.1": 0.01})).selector == {"lease": "A"}


@pytest.mark.parametrize("node", [MINE, UNKNOWN])
def test_pin_to_a_node_of_the_lease_or_an_unknown_one_is_left_alone(node):
    selector = {NODE_ID_LABEL: node}
    assert lease().place(work(selector=selector)).selector == selector
    assert lease().place(work(affinity=node)).selector is None


@pytest.mark.parametrize("node", [MINE, UNKNOWN])
def test_soft_pin_to_a_node_of_the_lease_or_an_unknown_one_cannot_lead_out_of_it(node):
    placed = lease().place(work(affinity=node, affinity_is_soft=True, selector={"zone": "x"}))
    assert placed.selector == {"zone": "x", "lease": "A"}
    assert not placed.drop_affinity


def test_hard_pin_to_a_node_outside_is_refused_and_says_why():
    with pytest.raises(ConfinementError, match=r"train\.step asks for node b+, which is not part of lease A"):
        lease().place(work(affinity=OTHER))
    with pytest.raises(ConfinementError):
        lease().place(work(selector={NODE_ID_LABEL: OTHER}))


def test_soft_pin_to_a_node_outside_is_dropped():
    placed = lease().place(work(affinity=OTHER, affinity_is_soft=True))
    assert placed.drop_affinity
    assert placed.selector == {"lease": "A"}


def test_node_id_with_an_operator_is_confined():
    selector = {NODE_ID_LABEL: f"!{MINE}"}
    assert lease().place(work(selector=selector)).selector == {**selector, "lease": "A"}


@pytest.mark.parametrize(("module", "name"), sorted(HEAD_PINNED))
def test_what_ray_pins_to_the_head_is_left_alone(module, name):
    pinned = work(module=module, name=name, resources={HEAD_RESOURCE: 0.001})
    assert lease().place(pinned).selector is None


def test_tenants_own_work_may_not_ask_for_the_head():
    with pytest.raises(ConfinementError, match="head node"):
        lease().place(work(resources={HEAD_RESOURCE: 0.001}))


def test_bundles_are_confined_with_and_without_selectors():
    scope = lease()
    assert scope.place_bundles(2, [], node_wanted=False) == [{"lease": "A"}] * 2
    assert scope.place_bundles(1, [{"lease": "B", "zone": "x"}], node_wanted=True) == [
        {"lease": "A", "zone": "x"}
    ]


def test_control_work_that_names_no_place_stays_on_the_control_plane():
    scope = ControlScope()
    assert scope.place(work()).selector == {"farm": "control"}
    assert scope.place(work(selector={"zone": "x"})).selector == {"zone": "x", "farm": "control"}


@pytest.mark.parametrize(
    "named",
    [
        {"selector": {"lease": "A"}},
        {"selector": {"revision": "r1"}},
        {"selector": {"farm": "edge"}},
        {"selector": {NODE_ID_LABEL: MINE}},
        {"affinity": MINE},
        {"resources": {HEAD_RESOURCE: 0.001}},
        {"resources": {"node:10.0.0.1": 0.01}},
        {"in_group": True},
    ],
)
def test_control_work_that_names_a_place_is_left_alone(named):
    before = work(**named)
    assert ControlScope().place(before).selector == before.selector


def test_control_bundles():
    scope = ControlScope()
    assert scope.place_bundles(2, [], node_wanted=False) == [{"farm": "control"}] * 2
    mixed = scope.place_bundles(2, [{"lease": "A"}, {}], node_wanted=False)
    assert mixed == [{"lease": "A"}, {"farm": "control"}]
    assert scope.place_bundles(1, [], node_wanted=True) == []
