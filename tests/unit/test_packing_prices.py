"""Prices of sizes and the worth of pieces, on demands small enough to solve by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.scheduler.packing import blocks as blocks_module
from cloudfarm.scheduler.packing import demand as demand_module
from cloudfarm.scheduler.packing.blocks import BLOCK, price_blocks, worth_of_blocks
from cloudfarm.scheduler.packing.demand import HALF_LIFE, Demand
from cloudfarm.scheduler.packing.prices import MAX_SIZES, best_filling, worth_of_pieces
from cloudfarm.scheduler.packing.shapes import Request
from cloudfarm.scheduler.packing.worth import stranded

demands = st.dictionaries(
    st.integers(1, 999), st.floats(0.001, 1e6), max_size=12
)  # sizes and how often each is asked for


def at(demand, *pieces):
    worth = best_filling(demand)
    return [round(float(worth[piece]), 6) for piece in pieces]


def test_without_shares_only_whole_gpus_are_worth_something():
    assert at({}, 0, 1, 999, 1000) == [0, 0, 0, 1000]


def test_a_size_beside_which_nothing_fits_costs_the_whole_gpu():
    assert at({810: 5}, 190, 809, 810, 999, 1000) == [0, 0, 1000, 1000, 1000]


def test_halves_cost_half_a_gpu_however_small_they_are():
    assert at({470: 1}, 469, 470, 530, 939, 940) == [0, 500, 500, 500, 1000]


def test_a_size_that_always_finds_a_gap_is_free():
    # Two of 600 for each 400: every second GPU with a 600 has a gap for a 400 that nobody wants.
    assert at({600: 2, 400: 1}, 400, 600, 800) == [0, 1000, 1000]


def test_a_size_that_must_share_with_its_like_has_its_part_of_a_gpu():
    # Four of 400 for each 600: one 400 lies beside the 600, the others in pairs.
    assert at({600: 1, 400: 4}, 400, 600, 800) == [500, 500, 1000]


def test_more_sizes_than_are_priced_are_no_trouble():
    worth = best_filling(dict.fromkeys(range(300, 300 + 2 * MAX_SIZES), 1.0))
    assert worth[1000] == 1000


def test_of_many_sizes_those_most_asked_for_are_priced():
    # All others are more than half a GPU, and none fits beside 400.
    many = dict.fromkeys(range(601, 601 + 2 * MAX_SIZES), 1.0)
    assert at({400: 1000, **many}, 400, 800) == [500, 1000]


@given(demands)
def test_worth_grows_with_the_piece_and_no_way_of_cutting_a_gpu_is_worth_more_than_it(demand):
    worth = worth_of_pieces(demand)
    assert worth[0] == 0
    assert worth[1000] == 1000
    assert (np.diff(worth) >= -1e-6).all()
    for first, second in itertools.combinations_with_replacement(sorted(demand), 2):
        if first + second <= 1000:
            assert worth[first] + worth[second] <= worth[first + second] + 1e-6


@given(demands.filter(bool))
def test_the_prices_are_those_of_the_best_cutting(demand):
    # Weak duality: at these prices what is asked for is worth no more GPUs than any cutting needs.
    worth = best_filling(demand)
    by_itself = sum(number / (1000 // size) for size, number in demand.items())
    at_least = sum(number * size / 1000 for size, number in demand.items())
    value = sum(number * float(worth[size]) / 1000 for size, number in demand.items())
    assert at_least * (1 - 1e-6) <= value <= by_itself * (1 + 1e-6)


def test_a_need_is_the_mean_of_one_gpu_and_what_varies_beyond_it():
    demand = Demand()
    for cpu, gpus in ((8000, 1), (16000, 1), (48000, 4)):
        demand.learn(Request(cpu, 1000 * gpus, gpus, 1000))
    outlook = demand.outlook()
    assert outlook.mean[:, 0] == pytest.approx([12000, 1000])
    assert outlook.variance[:, 0] == pytest.approx([(4000**2 + 4000**2 + 0) / 6, 0], abs=1e-3)


def test_requests_without_gpus_say_nothing_of_what_is_needed_beside_a_gpu():
    demand = Demand()
    demand.learn(Request(64000, 9999))
    assert demand.outlook().mean.tolist() == [[0], [0]]


def test_a_part_of_the_worth_is_what_the_next_request_could_take():
    # Of four requests one fits into 500 milli, which are also the best half of a GPU.
    worth = worth_of_pieces({500: 1, 1000: 3})
    assert worth[500] == pytest.approx(0.9 * 500 + 0.1 * 500 / 4)
    assert worth[1000] == 1000


def test_gangs_are_known_by_the_gpus_they_want():
    demand = Demand()
    for gpus in (2, 1, 1, 4, 1, 1):
        demand.learn(Request(1, 1, gpus, 1000))
    four, two = Request(1, 1, 4, 1000), Request(1, 1, 2, 1000)
    assert demand.outlook().gangs == ((four, 0.4), (two, 0.2))


def blocks_of(*nodes, gangs):
    """Price the groups on idle nodes of (model, GPUs, CPUs)."""
    demand = Demand()
    for gang in gangs:
        demand.learn(gang)
    free = np.array([[1000] * gpus + [0] * (4 - gpus) for _, gpus, _ in nodes])
    kinds = [frozenset("A"), frozenset("B")]
    kind = np.array(["AB".index(model) for model, _, _ in nodes])
    beside = np.array([[cpus for *_, cpus in nodes], [1] * len(nodes)])
    blocks = price_blocks(demand.outlook(), kinds, kind, beside, free)
    return worth_of_blocks(blocks, kind, beside, (free == 1000).sum(axis=1)).tolist()


def test_a_group_of_free_gpus_is_as_dear_as_it_is_scarce():
    four = Request(8, 1, 4, 1000)
    # Eight free GPUs in two groups of four, all wanted by gangs of four: two gangs for two groups.
    assert blocks_of(("A", 4, 8), ("A", 4, 8), gangs=[four]) == [BLOCK, BLOCK]
    # Half of the GPUs wanted: one gang for two groups.
    assert blocks_of(("A", 4, 8), ("A", 4, 8), gangs=[four, *[Request(1, 1, 1, 1000)] * 4]) == [BLOCK / 2] * 2
    # The gang would lack CPUs on the second node, and its model on the third.
    gang = Request(8, 1, 4, 1000, frozenset("A"))
    assert blocks_of(("A", 4, 8), ("A", 4, 7), ("B", 4, 8), gangs=[gang]) == [BLOCK, 0, 0]
    assert blocks_of(("A", 3, 8), gangs=[four]) == [0]
    assert blocks_of(("A", 4, 8), gangs=[]) == [0]


def test_only_the_scarcest_groups_have_a_price(monkeypatch):
    # 8 of 10 GPUs are wanted in fours: 1.6 fours for two groups, and 0.8 twos for four.
    monkeypatch.setattr(blocks_module, "MAX_PRICED", 1)
    four, two = Request(8, 1, 4, 1000), Request(1, 1, 2, 1000)
    assert blocks_of(("A", 4, 8), ("A", 4, 8), gangs=[four, four, two]) == pytest.approx([0.8 * BLOCK] * 2)


def left_over(*, cpus, memory, gpus=1.0):
    """Return what is stranded beside some GPUs, where one request wants 4 CPUs, another 12, and both 1000 MiB."""
    demand = Demand()
    for cpu in (4000, 12000):
        demand.learn(Request(cpu, 1000, 1, 1000))
    beside = np.array([[cpus * 1000], [memory]])
    return float(stranded(demand.outlook(), np.array([gpus * 1000]), beside)[0])


def test_what_is_stranded_by_hand():
    # Sqrt(0.25 * 4 CPUs squared) / 2 is one CPU, an eighth of a GPU's, where there is just enough on average.
    assert left_over(cpus=8, memory=1000) == pytest.approx(125)
    assert left_over(cpus=1000, memory=1000) == pytest.approx(0, abs=0.2)
    assert left_over(cpus=1000, memory=500) == pytest.approx(500, abs=0.2)
    assert left_over(cpus=0, memory=0, gpus=-1e-12) == 0


def test_it_is_news_when_as_much_was_learned_as_was_known():
    demand, looks = Demand(), []
    for number in range(1, 101):
        demand.learn(Request(1, 1, 1, 500))
        if demand.is_news:
            looks.append(number)
            demand.outlook()
    assert looks == [1, 2, 4, 8, 16, 32, 64]


def test_the_old_fades():
    demand = Demand()
    for _ in range(HALF_LIFE):
        demand.learn(Request(1, 1, 1, 500))
    demand.outlook()
    assert demand.seen == pytest.approx(HALF_LIFE / 2)
    assert demand.sizes == {500: pytest.approx(HALF_LIFE / 2)}


def test_what_has_faded_has_faded_alike():
    gang = Request(8000, 1, 2, 1000)
    demand = Demand()
    for _ in range(HALF_LIFE):
        demand.learn(gang)
    for _ in range(2):
        outlook = demand.outlook()
        assert outlook.mean[0, 0] == pytest.approx(4000)
        assert outlook.gangs == ((gang, pytest.approx(1.0)),)


def test_gangs_of_many_kinds_are_neither_all_expected_nor_all_remembered(monkeypatch):
    monkeypatch.setattr(demand_module, "MAX_GANGS", 1)
    demand = Demand()
    for cpus in range(10):
        for _ in range(1 + (cpus == 7)):
            demand.learn(Request(cpus, 1, 2, 1000))
    assert [gang.cpu_milli for gang, _ in demand.outlook().gangs] == [7]
    assert len(demand.gangs) == 8
