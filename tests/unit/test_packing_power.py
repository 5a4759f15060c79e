"""The power-aware term: watts that can be added up by hand, and what they change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.scheduler.packing import Allocator, Node, Placement, Request
from cloudfarm.scheduler.packing.power import OTHER, Power

A100 = Node(64_000, 1 << 20, ("NVIDIA A100-SXM4-80GB",) * 4)
T4 = Node(16_000, 1 << 20, ("Tesla T4",) * 2)


def watts(*nodes, free_cpu, whole):
    return Power.of(nodes).total(np.array(free_cpu), np.array(whole))


def test_a_node_on_which_nothing_lies_is_off():
    assert watts(A100, T4, free_cpu=[64_000, 16_000], whole=[4, 2]) == 0


def test_a_node_that_is_awake_takes_what_is_idle_and_its_busy_gpus_all():
    # 64 CPUs at half a watt, 4 GPUs idle at 50; each that works takes 350 more.
    assert watts(A100, T4, free_cpu=[63_000, 16_000], whole=[4, 2]) == 32 + 200
    assert watts(A100, T4, free_cpu=[64_000, 16_000], whole=[1, 2]) == 32 + 200 + 3 * 350
    assert watts(A100, T4, free_cpu=[0, 0], whole=[0, 0]) == 32 + 4 * 400 + 8 + 2 * 70


def test_a_model_without_published_watts_is_an_average_one():
    node = Node(0, 0, ("SIM",))
    assert Power.of([node]).idle.tolist() == [OTHER[0]]
    assert Power.of([node]).working.tolist() == [OTHER[1] - OTHER[0]]
    assert Power.of([Node(1000, 0)]).working.tolist() == [0]


@pytest.mark.parametrize(("woken", "expected"), [(0, [232, 0]), (1, [232 + 350, 60]), (2, [232 + 700, 120])])
def test_what_a_placement_adds(woken, expected):
    power = Power.of([A100, T4])
    added = power.added(np.array([0, 1]), np.array([64_000, 15_000]), np.array([4, 2]), np.full(2, woken))
    assert added.tolist() == expected


def farm(weight):
    return Allocator([Node(8000, 1 << 20, ("P100",)) for _ in range(3)], power_weight=weight)


def test_golden_a_node_that_is_awake_is_preferred_within_the_weight():
    # On the last node a CPU is taken. Waking the first takes 29 W more.
    request = Request(1000, 1, 1, 1000)
    for weight, node in ((0.0, 0), (0.1, 0), (1.0, 2)):
        allocator = farm(weight)
        allocator.take(Placement(2, (), Request(1000, 1)))
        assert allocator.pick(request).node == node


def test_golden_a_gpu_that_works_is_shared_before_another_is_woken():
    # By worth alone 300 would not spoil the 530 that are worth another 470.
    small, large = Request(1000, 1, 1, 300), Request(1000, 1, 1, 470)
    allocator = farm(10.0)
    for _ in range(8):
        allocator.learn(large)
    allocator.take(Placement(1, (0,), large))
    assert allocator.pick(small) == Placement(1, (0,), small)


requests = st.sampled_from(
    [Request(1000, 1, 1, milli) for milli in (160, 320, 470, 810)]
    + [Request(1000, 1), Request(2000, 1, 2, 1000)]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, max_size=25), st.sampled_from([0.1, 1.0, 50.0]))
def test_the_watts_of_the_farm_are_those_that_its_placements_added(asked, weight):
    nodes = [A100, T4, Node(4000, 1 << 20), A100]
    allocator, power = Allocator(nodes, power_weight=weight), Power.of(nodes)
    total = 0.0
    for request in asked:
        allocator.learn(request)
        placement = allocator.pick(request)
        if placement is None:
            continue
        node = np.array([placement.node])
        whole = (allocator.free_gpu == 1000).sum(axis=1)
        cpu = allocator.free_beside[0]
        woken = [gpu for gpu in placement.gpus if allocator.free_gpu[placement.node, gpu] == 1000]
        total += float(power.added(node, cpu[node], whole[node], np.array([len(woken)]))[0])
        allocator.take(placement)
        assert power.total(
            allocator.free_beside[0], (allocator.free_gpu == 1000).sum(axis=1)
        ) == pytest.approx(total)


@settings(max_examples=30, deadline=None)
@given(st.lists(requests, max_size=25), st.sampled_from([0.1, 1.0, 50.0]))
def test_with_any_weight_whatever_fits_is_placed(asked, weight):
    weighted, plain = (Allocator([A100, T4], power_weight=each) for each in (weight, 0.0))
    for request in asked:
        placement = weighted.pick(request)
        plain.reset(weighted.free_gpu, *weighted.free_beside)
        assert (placement is None) == (plain.pick(request) is None)
        if placement is not None:
            weighted.take(placement)
