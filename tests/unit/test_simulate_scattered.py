"""Interpolation between points in space, on cases that a person can check by hand."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.errors import InvalidInputError
from cloudfarm.simulate.pollux.scattered import around, interpolate

SQUARE = np.array([[0, 0], [4, 0], [0, 4], [4, 4]])
GRID = np.array(list(product((4, 6, 8), (12, 16, 24), (115, 163, 230))))


def test_at_a_point_it_is_that_point():
    for index, point in enumerate(GRID):
        assert around(GRID, tuple(point)) == {index: 1}


def test_on_an_edge_only_its_ends_count():
    found = around(GRID, (4, 12, 127))
    assert {tuple(GRID[index]): weight for index, weight in found.items()} == {
        (4, 12, 115): Fraction(3, 4),
        (4, 12, 163): Fraction(1, 4),
    }


def test_the_nearest_triangle_is_taken_not_a_wide_one():
    # (2, 1) lies in wide triangles with (2, 40) as well; the points nearest to it make the triangulation.
    points = np.array([[0, 0], [4, 0], [2, 3], [2, 40]])
    found = around(points, (2, 1))
    assert found == {0: Fraction(1, 3), 1: Fraction(1, 3), 2: Fraction(1, 3)}


def test_of_two_triangulations_of_a_square_one_is_taken_and_always_the_same():
    found = around(SQUARE, (2, 1))
    assert found == around(SQUARE, (2, 1))
    assert len(found) == 3
    assert np.allclose(sum(float(weight) * SQUARE[index] for index, weight in found.items()), (2, 1))


@pytest.mark.parametrize("place", [(5, 0), (-1, -1), (2, 5)])
def test_outside_of_all_points_nothing_is_made_up(place):
    with pytest.raises(InvalidInputError, match="nothing was measured around"):
        around(SQUARE, place)


def test_points_in_one_plane_say_nothing_beside_it():
    flat = np.array([[1, 2, 0], [1, 3, 0], [2, 2, 0]])
    with pytest.raises(InvalidInputError):
        around(flat, (1, 2, 1))
    assert around(flat, (1, 2, 0)) == {0: 1}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 30)] * 3), min_size=4, max_size=25, unique=True),
    st.tuples(*[st.integers(0, 30)] * 3),
)
def test_a_place_is_the_weighted_mean_of_the_corners_of_an_empty_sphere(points, place):
    table = np.array(points)
    try:
        found = around(table, place)
    except InvalidInputError:
        return
    assert sum(found.values()) == 1
    assert min(found.values()) > 0
    for axis in range(3):
        assert sum(weight * points[index][axis] for index, weight in found.items()) == place[axis]
    # What makes it Delaunay's: any other combination of four points lies further away on the whole.
    spread = sum(weight * _squared(points[index], place) for index, weight in found.items())
    for centre in found:
        swapped = table[[index for index in range(len(points)) if index != centre]]
        try:
            other = around(swapped, place)
        except InvalidInputError:
            continue
        assert sum(weight * _squared(swapped[index], place) for index, weight in other.items()) >= spread


def test_linear_values_are_met_exactly():
    values = np.column_stack([GRID @ [2.0, -1.0, 0.5], GRID @ [0.0, 1.0, 0.0]])
    for place in ((5, 13, 120), (7, 20, 200), (4, 23, 163), (6, 14, 116)):
        expected = [2 * place[0] - place[1] + place[2] / 2, place[1]]
        assert interpolate(GRID, values, place) == pytest.approx(expected, abs=1e-9)


def _squared(point, place) -> int:
    return sum((int(a) - b) ** 2 for a, b in zip(point, place, strict=True))
