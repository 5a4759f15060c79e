"""The allocator: what it may never do, and small cases that a person can check by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloudfarm.errors import ConflictError, InvalidInputError
from cloudfarm.scheduler.packing import Allocator, Node, Placement, Request, place_gang
from cloudfarm.scheduler.packing import allocator as allocator_module

MODELS = ("A", "B")
nodes = st.builds(
    Node,
    cpu_milli=st.integers(0, 32).map(lambda cpus: cpus * 1000),
    memory_mib=st.integers(0, 32).map(lambda gib: gib * 1024),
    gpu_models=st.lists(st.sampled_from(MODELS), max_size=8).map(tuple),
)
gpus = st.one_of(
    st.just((0, 0)),
    st.tuples(st.just(1), st.sampled_from([1, 190, 320, 460, 470, 500, 810, 999])),
    st.tuples(st.integers(1, 8), st.just(1000)),
)
requests = st.builds(
    lambda cpu, memory, gpu, models: Request(cpu * 500, memory * 512, *gpu, frozenset(models)),
    st.integers(0, 20),
    st.integers(0, 20),
    gpus,
    st.sets(st.sampled_from((*MODELS, "C"))),
)


class PackingMachine(RuleBasedStateMachine):
    """Places and gives back at random, beside a plain record of who holds what."""

    @initialize(nodes=st.lists(nodes, min_size=1, max_size=6))
    def start(self, nodes):
        self.nodes, self.held, self.closed = nodes, [], set()
        self.allocator = Allocator(nodes)

    def free(self):
        cpu = [node.cpu_milli for node in self.nodes]
        memory = [node.memory_mib for node in self.nodes]
        gpu = [[1000] * len(node.gpu_models) for node in self.nodes]
        for placement in self.held:
            cpu[placement.node] -= placement.request.cpu_milli
            memory[placement.node] -= placement.request.memory_mib
            for each in placement.gpus:
                gpu[placement.node][each] -= placement.request.gpu_milli
        return cpu, memory, gpu

    def fitting(self, request):
        cpu, memory, gpu = self.free()
        for index, node in enumerate(self.nodes):
            good = [
                model
                for model, milli in zip(node.gpu_models, gpu[index], strict=True)
                if milli >= request.gpu_milli and (not request.models or model in request.models)
            ]
            enough = cpu[index] >= request.cpu_milli and memory[index] >= request.memory_mib
            if index not in self.closed and enough and len(good) >= request.num_gpu:
                yield index

    @rule(request=requests, learn=st.booleans())
    def place(self, request, learn):
        if learn:
            self.allocator.learn(request)
        placement = self.allocator.pick(request)
        fitting = set(self.fitting(request))
        assert (placement is not None) == bool(fitting), "placed whenever something fits, and only then"
        assert placement == self.allocator.pick(request), "picking changes nothing"
        kept = self.allocator._costs.copy()
        self.allocator._costs.clear()
        assert placement == self.allocator.pick(request), "what is kept is what would be computed anew"
        self.allocator._costs.update(kept)
        if placement is not None:
            assert placement.node in fitting
            self.allocator.take(placement)
            self.held.append(placement)
            models = {self.nodes[placement.node].gpu_models[each] for each in placement.gpus}
            assert not request.models or models <= request.models

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data):
        placement = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.allocator.give_back(placement)

    @rule(data=st.data())
    def open_or_close(self, data):
        node = data.draw(st.integers(0, len(self.nodes) - 1))
        self.closed ^= {node}
        self.allocator.set_open(node, node not in self.closed)

    @rule(request=requests, count=st.integers(1, 4), distinct=st.booleans())
    def place_gang(self, request, count, distinct):
        placed = place_gang(self.allocator, request, count, distinct_gpus=distinct)
        if placed is None:
            return
        used = [(each.node, gpu) for each in placed for gpu in each.gpus]
        assert len(placed) == count
        assert not distinct or len(set(used)) == len(used)
        self.held += placed

    @invariant()
    def what_is_free_is_what_nobody_holds(self):
        if not hasattr(self, "nodes"):
            return
        cpu, memory, gpu = self.free()
        assert self.allocator.free_beside.tolist() == [cpu, memory]
        for row, free in zip(self.allocator.free_gpu.tolist(), gpu, strict=True):
            assert row == free + [0] * (len(row) - len(free))
        assert min(cpu) >= 0
        assert min(memory) >= 0
        assert all(0 <= milli <= 1000 for row in gpu for milli in row)


PackingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPacking = PackingMachine.TestCase


@settings(max_examples=25, deadline=None)
@given(st.lists(nodes, min_size=1, max_size=5), st.lists(requests, max_size=40), st.randoms())
def test_the_same_calls_give_the_same_placements_and_giving_back_restores(nodes, asked, chance):
    def run():
        allocator, placed = Allocator(nodes), []
        for request in asked:
            allocator.learn(request)
            placement = allocator.pick(request)
            if placement is not None:
                allocator.take(placement)
                placed.append(placement)
        return allocator, placed

    (first, placed), (_, again) = run(), run()
    assert placed == again
    fresh = Allocator(nodes, first.demand)
    chance.shuffle(placed)
    for placement in placed:
        first.give_back(placement)
    first._look_ahead()  # both have looked at the demand at the same time
    fresh._look_ahead()
    assert (first.free_gpu == fresh.free_gpu).all()
    assert [first.pick(request) for request in asked] == [fresh.pick(request) for request in asked]


def farm(*shapes, **needs):
    """Nodes of (cpus, gpus) with plenty of memory."""
    return Allocator([Node(cpus * 1000, 1 << 20, ("A",) * gpus) for cpus, gpus in shapes], **needs)


def put(allocator, request):
    allocator.learn(request)
    placement = allocator.pick(request)
    allocator.take(placement)
    return placement.node, placement.gpus


def share(milli, cpus=1):
    return Request(cpus * 1000, 1, 1, milli)


def test_golden_shares_fill_gpus_in_the_pairs_that_leave_nothing():
    allocator = farm((64, 4))
    assert put(allocator, share(600)) == (0, (0,))
    assert put(allocator, share(400)) == (0, (0,))
    assert put(allocator, share(400)) == (0, (1,))
    assert put(allocator, share(600)) == (0, (1,))
    assert put(allocator, Request(1000, 1, 2, 1000)) == (0, (2, 3))
    assert allocator.free_gpu.tolist() == [[0, 0, 0, 0]]


def test_golden_a_small_share_goes_where_nothing_else_would_fit():
    # After 810 (190 left) and 470 (530 left), 160 fits beside both: the 530 are worth another 470, the 190 nothing.
    allocator = farm((64, 2))
    for milli, gpu in ((810, 0), (470, 1), (160, 0), (470, 1)):
        assert put(allocator, share(milli)) == (0, (gpu,))


def test_golden_work_without_gpus_goes_where_cpus_are_left_over():
    # 8 CPUs for each GPU are asked for: the first node has no more than that, the second has four times as many.
    allocator = farm((16, 2), (64, 2))
    for _ in range(4):
        allocator.learn(Request(8000, 1, 1, 1000))
    assert put(allocator, Request(8000, 1)) == (1, ())


def test_golden_a_request_with_many_cpus_goes_where_they_are():
    allocator = farm((16, 2), (64, 2))
    for cpus in (4, 4, 4, 4, 16):
        allocator.learn(Request(cpus * 1000, 1, 1, 1000))
    assert put(allocator, Request(16000, 1, 1, 1000))[0] == 1
    assert put(allocator, Request(4000, 1, 1, 1000))[0] == 0


def test_golden_a_whole_node_is_kept_for_those_who_need_one():
    allocator = farm((64, 4), (64, 2))
    for _ in range(8):
        allocator.learn(Request(1000, 1, 4, 1000))
    assert put(allocator, share(500)) == (1, (0,))
    assert put(allocator, Request(1000, 1, 4, 1000)) == (0, (0, 1, 2, 3))


def test_golden_before_anything_is_known_the_first_node_is_taken():
    allocator = farm((4, 1), (4, 1))
    assert allocator.pick(share(500)) == Placement(0, (0,), share(500))


def test_of_pieces_worth_the_same_the_tightest_is_taken():
    allocator = farm((64, 2))
    allocator.take(Placement(0, (0,), share(810)))
    allocator.take(Placement(0, (1,), share(850)))
    assert allocator.pick(share(100)).gpus == (1,)


def test_only_the_wanted_model_is_used_on_a_mixed_node():
    allocator = Allocator([Node(64000, 1 << 20, ("A", "B", "A", "B"))])
    assert put(allocator, Request(1, 1, 2, 1000, frozenset("B"))) == (0, (1, 3))
    assert allocator.pick(Request(1, 1, 1, 10, frozenset("B"))) is None
    assert put(allocator, Request(1, 1, 1, 10, frozenset("AB"))) == (0, (0,))


def test_it_may_be_asked_among_some_nodes_only():
    allocator = farm((4, 1), (4, 1))
    assert allocator.pick(share(500), np.array([False, True])).node == 1
    assert allocator.pick(share(500), np.array([False, False])) is None


def test_a_farm_without_nodes_places_nothing():
    assert Allocator([]).pick(share(500)) is None


def test_more_than_is_free_cannot_be_taken_nor_more_than_is_held_given_back():
    allocator = farm((4, 1))
    placement = Placement(0, (0,), share(600))
    with pytest.raises(ConflictError):
        allocator.give_back(placement)
    allocator.take(placement)
    with pytest.raises(ConflictError):
        allocator.take(placement)
    with pytest.raises(ConflictError):
        allocator.take(Placement(0, (), Request(4000, 0)))


def test_nothing_is_taken_twice_at_once_nor_given_back_for_another():
    allocator = farm((4, 2))
    for gpus in ((0, 0), (0,)):
        with pytest.raises(ConflictError):
            allocator.take(Placement(0, gpus, Request(1000, 1, 2, 1000)))
    with pytest.raises(ConflictError):
        allocator.take(Placement(0, (), Request(0, 2 << 20)))
    allocator.take(Placement(0, (0,), share(600)))
    with pytest.raises(ConflictError):
        allocator.give_back(Placement(0, (1,), share(600)))
    with pytest.raises(ConflictError):
        allocator.give_back(Placement(0, (0,), Request(1000, 2, 1, 600)))


def test_a_node_that_is_closed_or_opened_again_is_noticed():
    allocator = farm((4, 1), (4, 1))
    for is_open, node in ((True, 0), (False, 1), (True, 0)):
        allocator.set_open(0, is_open)
        assert allocator.pick(share(500)).node == node


def test_a_reset_counts_for_gpus_cpus_and_memory():
    allocator = farm((4, 1), (4, 1))
    assert allocator.pick(share(500)).node == 0
    for gpus, cpus, memory in (([0, 9], [9, 9], [9, 9]), ([9, 9], [0, 9], [9, 9]), ([9, 9], [9, 9], [0, 9])):
        allocator.reset(
            *(np.array(each) * 100 for each in ([[gpu] for gpu in gpus], np.array(cpus) * 10, memory))
        )
        assert allocator.pick(share(500)).node == 1


def test_costs_of_so_many_kinds_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(allocator_module, "MAX_KINDS", 3)
    allocator = farm((64, 1))
    for milli in range(100, 110):
        allocator.pick(share(milli))
    assert len(allocator._costs) <= 3


def test_groups_of_free_gpus_are_kept_once_they_are_scarce():
    # One gang of four is asked for beside 300 halves. Among 20 nodes with four free GPUs a group is worth 8 milli, less
    # than a step; when a single one is left it is worth 60.
    allocator = farm(*[(64, 4)] * 20)
    one = Request(1000, 1, 1, 1000)
    for request in (Request(1000, 1, 4, 1000), *[share(500)] * 300):
        allocator.learn(request)
    allocator._look_ahead()
    assert allocator.pick(share(500)).node == 0
    for node in range(1, 20):
        allocator.take(Placement(node, (0,), one))
    assert allocator.pick(share(500)).node == 1


def test_a_gang_is_placed_whole_or_not_at_all():
    allocator = farm((64, 2))
    before = allocator.free_gpu.copy()
    assert place_gang(allocator, share(300), 3) is None
    assert (allocator.free_gpu == before).all()
    assert len(place_gang(allocator, share(300), 3, distinct_gpus=False)) == 3


@pytest.mark.parametrize("gpu", [(1, 0), (1, 1001), (2, 500), (0, 500), (-1, 0), (1, -5)])
def test_a_request_that_can_never_be_is_refused(gpu):
    with pytest.raises(InvalidInputError):
        Request(1000, 1, *gpu)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(nodes, min_size=1, max_size=5),
    st.lists(requests.filter(lambda request: request.num_gpu <= 1), min_size=1, max_size=4),
    st.lists(st.randoms(use_true_random=False), min_size=2, max_size=5),
)
def test_what_is_told_to_be_free_is_looked_at_anew_whatever_was_free_before(nodes, asked, chances):
    def told(allocator, chance):
        free = [
            [chance.choice([0, 300, 1000]) if gpu < len(node.gpu_models) else 0 for gpu in range(width)]
            for node in nodes
        ]
        beside = [[chance.randint(0, node.cpu_milli), chance.randint(0, node.memory_mib)] for node in nodes]
        allocator.reset(np.array(free), *np.array(beside).T)

    def taught():
        allocator = Allocator(nodes)
        for request in asked:
            allocator.learn(request)
        return allocator

    width = max(1, *(len(node.gpu_models) for node in nodes))
    kept = taught()
    for chance in chances:
        fresh = taught()
        same = chance.getstate()
        told(kept, chance)
        chance.setstate(same)
        told(fresh, chance)
        for request in asked:
            assert kept.pick(request) == fresh.pick(request)
