"""What a free piece of a GPU is worth: prices of sizes, and the best filling of the piece at those prices.

Cutting GPUs into the sizes asked for, with as few GPUs as possible, is the cutting-stock problem. In the dual of its
linear program (Gilmore and Gomory, A Linear Programming Approach to the Cutting-Stock Problem, Operations Research
1961) every size has a price in GPUs such that no way of filling a GPU is worth more than the GPU. With prices, a free
piece is worth the dearest set of sizes that fits in: a knapsack. Sizes that waste a whole GPU cost a whole GPU (810
milli, where little else would fit beside), sizes that always find a gap are free.

The dual takes it for granted that the fitting requests come. While they have not come the piece lies idle, the longer
the fewer requests fit in. Therefore a small part of the worth is the piece's size times the share of requests that it
could take: the complement of FGD's fragmentation (Weng et al., Beware of Fragmentation, USENIX ATC 2023).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.quantities import MILLI

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_SIZES = 48
"""The sizes with the most demand that are priced; the others are left out. Bounds the time of a refresh."""
PATIENCE = 0.9
"""Part of a piece's worth that is its best filling; the rest is what the next request could take."""
_MAX_PIVOTS = 400
_EPSILON = 1e-9


def worth_of_pieces(demand: Mapping[int, float]) -> Floats:
    """Return for a free piece of 0..1000 milli of one GPU what it is worth in milli.

    Args:
        demand: how often each share of one GPU (1..999 milli), and whole GPUs (1000), are asked for, in any unit.
    """
    worth = PATIENCE * best_filling(demand) + (1 - PATIENCE) * _next_taking(demand)
    worth[MILLI] = MILLI
    return worth


def best_filling(demand: Mapping[int, float]) -> Floats:
    """Return what a piece's best filling is worth in milli, at the prices of the cutting-stock LP."""
    shares = [size for size in demand if size < MILLI]
    popular = sorted(shares, key=lambda size: (-demand[size] * size, size))[:MAX_SIZES]
    sizes = np.array(sorted(popular, reverse=True), dtype=np.int64)
    worth = np.zeros(MILLI + 1)
    if len(sizes):
        weights = np.array([demand[int(size)] for size in sizes])
        worth = _knapsack(sizes, _prices(sizes, weights / weights.sum())) * MILLI
    worth[MILLI] = MILLI
    return np.minimum(worth, MILLI)


def _next_taking(demand: Mapping[int, float]) -> Floats:
    """Return a piece's size times the share of requests that fit in."""
    counts = np.zeros(MILLI + 1)
    for size, number in demand.items():
        counts[size] = number
    taking: Floats = np.arange(MILLI + 1) * counts.cumsum() / max(counts.sum(), _EPSILON)
    return taking


def _prices(sizes: Ints, demand: Floats) -> Floats:
    """Return the price of each size in GPUs: the dual of the cutting-stock LP, by column generation."""
    copies = (MILLI // sizes).astype(np.float64)
    inverse = np.diag(1.0 / copies)  # of the basis; its first columns are GPUs filled with one size only
    amounts = demand / copies
    for _ in range(_MAX_PIVOTS):
        prices: Floats = inverse.sum(axis=0)
        pattern = _dearest_pattern(sizes, prices)
        if pattern @ prices <= 1 + _EPSILON:
            break
        column = inverse @ pattern
        ratios = np.full(len(sizes), np.inf)
        np.divide(amounts, column, out=ratios, where=column > _EPSILON)
        leaving = int(ratios.argmin())
        step = ratios[leaving]
        amounts -= step * column
        amounts[leaving] = step
        row = inverse[leaving] / column[leaving]
        inverse -= np.outer(column, row)
        inverse[leaving] = row
    final: Floats = inverse.sum(axis=0)
    return final


def _knapsack(sizes: Ints, prices: Floats) -> Floats:
    """Return the dearest filling of 0..1000 milli, any number of pieces of each size."""
    best = np.zeros(MILLI + 1)
    for size, price in zip(sizes.tolist(), prices.tolist(), strict=True):
        width = size
        gain = price
        while width <= MILLI and price > 0:  # 1, 2, 4, ... pieces at a time make every number of pieces
            np.maximum(best[width:], best[:-width] + gain, out=best[width:])
            width, gain = 2 * width, 2 * gain
    return best


def _dearest_pattern(sizes: Ints, prices: Floats) -> Floats:
    best = _knapsack(sizes, prices)
    pattern = np.zeros(len(sizes))
    room = MILLI
    while best[room] > _EPSILON:
        fitting = np.flatnonzero((sizes <= room) & (prices > 0))
        used = best[room - sizes[fitting]] + prices[fitting]
        piece = fitting[used.argmax()]
        pattern[piece] += 1
        room -= int(sizes[piece])
    return pattern
