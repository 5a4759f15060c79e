"""Linear interpolation between measured points in space, over their Delaunay triangulation, without building it.

The triangulation's simplex around a place is the one whose corners have the least weighted sum of squared distances
among all ways to write the place as a convex combination of points (it is a face of the lower hull of the points
lifted onto a paraboloid; Edelsbrunner and Seidel, *Voronoi diagrams and arrangements*, 1986). That is a linear
programme with as many rows as dimensions plus one. It is solved by the simplex method in fractions, since the points
of a grid are as degenerate as can be: the place is taken to lie an infinitesimal step aside, a smaller one in each
further dimension, so that no step is without progress. Where many points lie on one sphere the triangulation is not
unique; then the first optimum found counts, always the same. On a face that all triangulations share, the result does
not depend on that.
"""

from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from cloudfarm.errors import InvalidInputError
from cloudfarm.simulate.pollux.files import Floats

Integers = NDArray[np.int64]
Fractions = list[Fraction]


def interpolate(points: Integers, values: Floats, place: tuple[int, ...]) -> Floats:
    """Return the values at a place between points.

    Args:
        points: one row for each point, any unit.
        values: one row for each point.
        place: where, in the unit of the points.

    Raises:
        InvalidInputError: the place is outside the hull of the points.
    """
    weights = around(points, place)
    result: Floats = sum((float(weight) * values[index] for index, weight in weights.items()), np.zeros(()))
    return result


def around(points: Integers, place: tuple[int, ...]) -> dict[int, Fraction]:
    """Return the points at the corners around a place, by index, with their weights, which sum to 1.

    Raises:
        InvalidInputError: the place is outside the hull of the points.
    """
    # As Python's integers: no product overflows.
    offsets = (points - np.array(place, dtype=np.int64)).astype(object)
    count, rows = len(points), len(place) + 1
    columns = np.vstack([np.ones((1, count), dtype=object), offsets.T])
    distances = (offsets**2).sum(axis=1)

    # Column count + row is artificial: it stands for what no combination of points covers in that row yet.
    basis = [count + row for row in range(rows)]
    inverse = [[Fraction(int(row == other)) for other in range(rows)] for row in range(rows)]
    while True:
        # Two objectives, the first before the second: to cover everything, then to be near.
        uncovered = _priced([Fraction(int(index >= count)) for index in basis], inverse)
        reduced = -_times(uncovered, columns)
        if not (reduced < 0).any():
            near = _priced([Fraction(distances[index] if index < count else 0) for index in basis], inverse)
            scale = lcm(*(each.denominator for each in near))
            allowed = reduced == 0
            reduced = np.where(allowed, scale * distances - _times(near, columns), 0)
        entering = int(reduced.argmin())
        if reduced[entering] >= 0:
            break
        _pivot(basis, inverse, entering, list(columns[:, entering]))

    # The place itself is the unit vector of the first row, so a level is the first entry of a row of the inverse.
    levels = {index: row[0] for index, row in zip(basis, inverse, strict=True) if row[0] > 0}
    if max(levels) >= count:
        raise InvalidInputError(f"nothing was measured around {list(place)}")
    return levels


def _pivot(basis: list[int], inverse: list[Fractions], entering: int, column: list[int]) -> None:
    """Let a column into the basis for the one that is used up first."""
    direction = [sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for row in inverse]
    leaving = min(
        (row for row, change in enumerate(direction) if change > 0),
        key=lambda row: [each / direction[row] for each in inverse[row]],
    )
    inverse[leaving] = [each / direction[leaving] for each in inverse[leaving]]
    for row, change in enumerate(direction):
        if row != leaving and change:
            inverse[row] = [a - change * b for a, b in zip(inverse[row], inverse[leaving], strict=True)]
    basis[leaving] = entering


def _priced(costs: Fractions, inverse: list[Fractions]) -> Fractions:
    """Return what one unit of each row costs in the present basis."""
    return [
        sum((cost * row[index] for cost, row in zip(costs, inverse, strict=True)), Fraction(0))
        for index in range(len(inverse))
    ]


def _times(prices: Fractions, columns: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return the price of every column, in units of the prices' common denominator: whole numbers."""
    scale = lcm(*(each.denominator for each in prices))
    whole = np.array([int(each * scale) for each in prices], dtype=object)
    result: NDArray[np.object_] = whole @ columns
    return result
