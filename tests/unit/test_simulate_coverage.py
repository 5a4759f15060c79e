"""How forecasts are judged: the figures of cases counted by hand, and what a simulation notes."""

from dataclasses import replace

import pytest

from cloudfarm.simulate.coverage import Sample, coverage, report, samples
from cloudfarm.simulate.tenants import Setup

MINUTE = 60_000
TOLD = Sample("borrows", True, 0, 10 * MINUTE, 15 * MINUTE, 20 * MINUTE, 40 * MINUTE, None)


def started(*minutes, **changes):
    return [replace(TOLD, started_ms=each * MINUTE, **changes) for each in minutes]


def test_what_is_within_the_bounds_counts_and_so_do_the_bounds():
    found = coverage(started(9, 10, 15, 20, 26))
    assert (found.samples, found.covered, found.too_early, found.too_late) == (5, 0.6, 0.2, 0.2)
    assert (found.wait_mean_s, found.width_p50_s) == (16 * 60, 600)
    assert found.width_of_wait_p50 == pytest.approx(10 / 15)
    assert (found.error_mean_s, found.error_p50_s) == (5.4 * 60, 300)
    assert (found.limits_error_mean_s, found.limits_error_p50_s) == (24 * 60, 25 * 60)
    assert (found.booked, found.booked_kept) == (0, 0)
    assert coverage([]) is None


def test_waits_are_counted_from_the_moment_of_telling():
    (late,) = started(20, at_ms=10 * MINUTE)
    found = coverage([late])
    assert (found.wait_mean_s, found.width_of_wait_p50) == (600, 1)


def test_what_the_queue_told_is_judged_where_it_told_something():
    found = coverage([*started(15), *started(10, 30, booked_ms=20 * MINUTE)])
    assert (found.booked, found.booked_kept) == (2, 0.5)
    assert (found.booked_error_mean_s, found.booked_error_p50_s) == (600, 600)
    assert found.booked_expected_error_mean_s == 600


def test_the_report_is_by_moment_and_by_kind():
    found = report([*started(15), *started(15, 15, is_first=False), *started(15, basis="due")])
    assert {name: each.samples for name, each in found.items()} == {
        "first": 2,
        "later": 2,
        "first, borrows": 1,
        "first, due": 1,
    }


def test_a_simulation_notes_what_every_waiting_lease_was_told_and_when_it_started():
    setup = Setup(hosts=2, gpus=4, load=1.3, hours=2, seed=7)
    found = samples(setup)
    assert found == samples(setup)
    first = [each for each in found if each.is_first]
    later = [each for each in found if not each.is_first]
    assert len(first) > 5
    assert later
    for each in found:
        assert each.at_ms <= each.started_ms
        assert each.earliest_ms <= each.expected_ms <= each.latest_ms
        assert each.by_limits_ms is not None
    assert any(each.booked_ms is not None for each in found)
    # A forecast that says nothing would not do: the expected start is closer than time limits are.
    figures = coverage(first)
    assert figures.error_mean_s < figures.limits_error_mean_s
