"""Moves: which few make room for what is stuck, on farms small enough to check by hand, and what always holds."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.scheduler.packing import Allocator, Node, Placement, Request
from cloudfarm.scheduler.packing.moves import Movable, Pool, Stuck, make_room


def share(milli, cpus=1):
    return Request(cpus * 1000, 1, 1, milli)


def whole(gpus, cpus=1):
    return Request(cpus * 1000, 1, gpus, 1000)


def held(allocator, *placed, losses=None):
    """Take placements, (node, GPUs, request) each, and return them as movables a, b, c, ... of the same loss."""
    pool = Pool(*allocator.free_gpu.shape)
    for number, (node, gpus, request) in enumerate(placed):
        placement = Placement(node, gpus, request)
        allocator.take(placement)
        loss = 1.0 if losses is None else losses[number]
        pool.add(Movable("abcdefgh"[number], (placement,), loss))
    return pool


def farm(*shapes):
    """Nodes of (CPUs, GPUs) with plenty of memory."""
    return Allocator([Node(cpus * 1000, 1 << 20, ("A",) * gpus) for cpus, gpus in shapes])


def moved(plan):
    """Return who goes to which node and GPUs."""
    return {each.id: [(to.node, to.gpus) for to in where] for each, where in plan.moved}


def test_golden_two_halves_become_a_whole():
    allocator = farm((8, 1), (8, 1))
    pool = held(allocator, (0, (0,), share(500)), (1, (0,), share(500)), losses=[2, 1])
    plan = make_room(allocator, Stuck(whole(1)), pool, most=1)
    assert moved(plan) == {"b": [(0, (0,))]}
    assert plan.placed == (Placement(1, (0,), whole(1)),)
    assert allocator.free_gpu.tolist() == [[0], [0]]


def test_golden_work_without_gpus_is_moved_off_the_gpus():
    # The whole GPU lacks its 8 CPUs until the 4 CPUs of a go to the node without GPUs.
    allocator = farm((8, 1), (4, 0))
    pool = held(allocator, (0, (), Request(4000, 1)))
    plan = make_room(allocator, Stuck(whole(1, cpus=8)), pool, most=1)
    assert moved(plan) == {"a": [(1, ())]}


def test_golden_a_lease_moves_to_another_gpu_of_its_own_node():
    # All CPUs are taken: a goes from one GPU to the other on the CPU that it has there already.
    allocator = farm((2, 2))
    pool = held(allocator, (0, (0,), share(300)), (0, (1,), share(300)))
    plan = make_room(allocator, Stuck(whole(1, cpus=0)), pool, most=1)
    assert moved(plan) == {"a": [(0, (1,))]}
    assert allocator.free_beside[0].tolist() == [0]


def test_golden_a_gang_on_several_nodes_gets_its_room_in_several_moves():
    allocator = farm((8, 1), (8, 1), (8, 1), (8, 1))
    pool = held(allocator, *((node, (0,), share(400)) for node in range(4)))
    stuck = Stuck(whole(1), count=2)
    assert make_room(allocator, stuck, pool, most=1) is None
    plan = make_room(allocator, stuck, pool, most=2)
    assert len(plan.moved) == 2
    assert len({each.node for each in plan.placed}) == 2
    assert sorted(allocator.free_gpu.ravel().tolist()) == [0, 0, 200, 200]


def test_slices_stay_off_one_anothers_gpus_where_that_is_asked_for():
    # Once a is on the last GPU the first holds two slices of 400, and no other GPU holds one.
    for distinct in (True, False):
        allocator = farm((8, 1), (8, 1), (8, 1))
        pool = held(allocator, (0, (0,), share(300)))
        for node, milli in ((1, 800), (2, 700)):
            allocator.take(Placement(node, (0,), share(milli)))
        plan = make_room(allocator, Stuck(share(400), 2, distinct), pool, most=1)
        assert (plan is None) == distinct


def test_a_gpu_with_room_for_two_slices_counts_once_where_they_stay_apart():
    # Two of 450 with 4 CPUs: one beside nothing, one where a is, which goes to the node of few CPUs.
    allocator = farm((8, 1), (8, 1), (2, 1))
    pool = held(allocator, (1, (0,), share(600)))
    assert moved(make_room(allocator, Stuck(share(450, cpus=4), 2), pool, most=1)) == {"a": [(2, (0,))]}


def test_who_has_nowhere_to_go_stays():
    allocator = farm((8, 1), (8, 1))
    pool = held(allocator, (0, (0,), share(600)), (1, (0,), share(500)))
    before = allocator.free_gpu.copy()
    assert make_room(allocator, Stuck(whole(1)), pool, most=2) is None
    assert (allocator.free_gpu == before).all()


def test_the_next_set_is_tried_when_the_cheapest_has_nowhere_to_go():
    # a is cheapest, but 700 fit nowhere else; b goes to the 300 beside it.
    allocator = farm((8, 1), (8, 1))
    pool = held(allocator, (0, (0,), share(700)), (1, (0,), share(300)), losses=[1, 5])
    allocator.take(Placement(1, (0,), share(100)))
    assert moved(make_room(allocator, Stuck(share(900)), pool, most=1)) == {"b": [(0, (0,))]}


def test_when_the_cheapest_pair_has_room_for_one_only_the_next_is_tried():
    # a and b could each go to the last node, not both; c and d, which cost more, go where a and b are.
    allocator = farm((8, 2), (2, 2), (8, 1))
    pairs = [(0, (0,), share(300)), (0, (1,), share(300)), (1, (0,), share(200)), (1, (1,), share(200))]
    pool = held(allocator, *pairs, losses=[1, 1, 2, 2])
    allocator.take(Placement(2, (0,), share(550)))
    assert moved(make_room(allocator, Stuck(whole(2)), pool, most=2)).keys() == {"c", "d"}


def test_room_on_another_model_is_for_those_who_move():
    allocator = Allocator([Node(8000, 1 << 20, (model,)) for model in "AB"])
    pool = held(allocator, (0, (0,), share(300)))
    wanted = Request(1000, 1, 1, 1000, frozenset("A"))
    assert moved(make_room(allocator, Stuck(wanted), pool, most=1)) == {"a": [(1, (0,))]}


def test_only_the_wanted_model_is_cleared():
    allocator = Allocator([Node(8000, 1 << 20, (model,)) for model in "ABB"])
    pool = held(allocator, *((node, (0,), share(300)) for node in range(3)))
    wanted = Request(1000, 1, 1, 1000, frozenset("A"))
    assert moved(make_room(allocator, Stuck(wanted), pool, most=1)).keys() == {"a"}


def test_a_closed_node_is_neither_cleared_nor_filled():
    for closed in (0, 1):
        allocator = farm((8, 1), (8, 1))
        pool = held(allocator, (0, (0,), share(500)), (1, (0,), share(500)))
        allocator.set_open(closed, False)
        assert make_room(allocator, Stuck(whole(1)), pool, most=2) is None


def test_what_was_removed_from_the_pool_is_not_moved():
    allocator = farm((8, 1), (8, 1))
    pool = held(allocator, (0, (0,), share(500)), (1, (0,), share(500)), losses=[1, 2])
    pool.remove(pool.on[0]["a"][0])
    assert moved(make_room(allocator, Stuck(whole(1)), pool, most=1)).keys() == {"b"}
    pool.remove(pool.on[1]["b"][0])
    assert not pool.takes.any()


shapes = st.sampled_from([share(milli) for milli in (160, 320, 470, 810)] + [whole(1), whole(2)])
requests = st.one_of(shapes, st.builds(lambda cpus: Request(cpus * 1000, 1), st.integers(1, 6)))


@st.composite
def crowded(draw):
    """A small farm in which some things lie anywhere, and some of them may be moved."""
    nodes = [
        Node(draw(st.integers(1, 12)) * 1000, 1 << 20, ("A",) * draw(st.integers(0, 3)))
        for _ in range(draw(st.integers(2, 5)))
    ]
    allocator = Allocator(nodes)
    pool, everything = Pool(*allocator.free_gpu.shape), {}
    for number in range(draw(st.integers(1, 14))):
        request = draw(requests)
        allocator.learn(request)
        among = np.array([draw(st.booleans()) for _ in nodes])
        placement = allocator.pick(request, among)
        if placement is not None:
            allocator.take(placement)
            movable = Movable(str(number), (placement,), draw(st.integers(1, 5)))
            everything[movable.id] = movable
            if draw(st.booleans()):
                pool.add(movable)
    return allocator, nodes, pool, everything


def in_pool(pool):
    return {id_: movable for on in pool.on.values() for id_, (movable, _) in on.items()}


def goes_together(nodes, placements):
    """Judge without the allocator whether placements go together."""
    cpus = [node.cpu_milli for node in nodes]
    gpus = [[1000] * len(node.gpu_models) for node in nodes]
    for each in placements:
        cpus[each.node] -= each.request.cpu_milli
        for gpu in each.gpus:
            gpus[each.node][gpu] -= each.request.gpu_milli
    return min(cpus) >= 0 and all(milli >= 0 for of_node in gpus for milli in of_node)


@settings(max_examples=300, deadline=None)
@given(crowded(), requests, st.integers(1, 2), st.integers(0, 3), st.booleans())
def test_all_or_nothing_within_bounds_and_nothing_shared_out_twice(crowd, request, count, most, distinct):
    allocator, nodes, pool, everything = crowd
    free, beside = allocator.free_gpu.copy(), allocator.free_beside.copy()
    stuck = Stuck(request, count, distinct)
    known = in_pool(pool)
    plan = make_room(allocator, stuck, pool, most)
    assert in_pool(pool) == known
    if plan is None:
        assert (allocator.free_gpu == free).all()
        assert (allocator.free_beside == beside).all()
        return
    gone = {each.id for each, _ in plan.moved}
    assert len(gone) == len(plan.moved) <= most
    assert gone <= known.keys()
    assert [each.request for each in plan.placed] == [request] * count
    used = [(each.node, gpu) for each in plan.placed for gpu in each.gpus]
    assert not distinct or len(set(used)) == len(used)
    for each, where in plan.moved:
        assert [to.request for to in where] == [from_.request for from_ in each.placements]
    stays = [
        placement for id_, each in everything.items() if id_ not in gone for placement in each.placements
    ]
    after = [*stays, *plan.placed, *(to for _, where in plan.moved for to in where)]
    assert goes_together(nodes, after)
    taken = sum(each.request.total_milli for each in after)
    assert allocator.free_gpu.sum() == 1000 * sum(len(node.gpu_models) for node in nodes) - taken


@settings(max_examples=300, deadline=None)
@given(crowded(), requests)
def test_one_move_is_found_wherever_one_is_enough(crowd, request):
    allocator, nodes, pool, everything = crowd
    if allocator.pick(request) is not None:
        return

    def fits(asked, among, without=None):
        others = [place for each in everything.values() if each is not without for place in each.placements]
        return any(
            goes_together(nodes, [*others, Placement(node, gpus, asked)])
            for node in among
            for gpus in combinations(range(len(nodes[node].gpu_models)), asked.num_gpu)
        )

    enough = [
        each
        for each in in_pool(pool).values()
        for node in [each.placements[0].node]
        if fits(request, [node], without=each)
        and fits(each.placements[0].request, [other for other in range(len(nodes)) if other != node])
    ]
    plan = make_room(allocator, Stuck(request), pool, most=1)
    assert plan is not None or not enough


@pytest.mark.parametrize("most", [0, 1])
def test_without_anything_to_move_nothing_is_found(most):
    allocator = farm((8, 1))
    allocator.take(Placement(0, (0,), share(1)))
    assert make_room(allocator, Stuck(whole(1)), Pool(*allocator.free_gpu.shape), most) is None
