"""Reservations: the time that a person writes is read exactly or refused, and the lease starts at that time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.clock import iso
from cloudfarm.domain.moments import MAX_DAYS_AHEAD, parse_not_before
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.errors import InvalidInputError
from cloudfarm.testing.farm import MemoryFarm

NOW = 1_800_000_000_000
"""2027-01-15T08:00Z."""
YEAR_MS = MAX_DAYS_AHEAD * 86_400_000

zones = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.integers(NOW, NOW + YEAR_MS), zones)
def test_every_time_to_come_is_read_exactly_in_every_zone(at_ms, zone):
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    assert parse_not_before(moment.astimezone(zone).isoformat(), now_ms=NOW) == at_ms
    assert parse_not_before(iso(at_ms), now_ms=NOW) == at_ms


@pytest.mark.parametrize(
    "text", ["2027-01-15T18:00+09:00", "2027-01-15 18:00:00.000+09:00", " 2027-01-15T09:00Z "]
)
def test_ways_to_write_a_time(text):
    assert parse_not_before(text, now_ms=NOW) == NOW + 3_600_000


@given(st.text() | st.from_regex(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d(Z|[+-]\d\d:\d\d)\Z"))
def test_nothing_that_is_written_crashes_the_parser(text):
    try:
        at_ms = parse_not_before(text, now_ms=NOW)
    except InvalidInputError:
        return  # whatever else it raised would fail here
    assert NOW <= at_ms <= NOW + YEAR_MS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2h",
        "4",
        "2027-01-16",
        "2027-01-16T09:00",
        "2027-02-30T09:00Z",
        "2027-01-16T25:00Z",
        "2027-01-16T09:00+24:00",
        "2027-W02-6T09:00Z",
        "\u0662027-01-16T09:00Z",
        "x" * 200,
    ],
)
def test_what_is_no_time_is_told_how_to_write_one(text):
    with pytest.raises(InvalidInputError, match="write it as 2026-11-22T09:00") as caught:
        parse_not_before(text, now_ms=NOW)
    assert len(caught.value.detail) < 150


@pytest.mark.parametrize(
    ("at_ms", "why"), [(NOW - 1, "has passed"), (NOW + YEAR_MS + 1, "more than 365 days ahead")]
)
def test_what_has_passed_or_is_too_far_ahead(at_ms, why):
    with pytest.raises(InvalidInputError, match=why):
        parse_not_before(iso(at_ms), now_ms=NOW)


async def test_the_steward_starts_it_at_its_time_and_keeps_the_room_until_then():
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("lecture", "4x1")
    async with farm.store.begin() as uow:
        lease = await uow.leases.get("lecture")
        ask = replace(lease.ask, not_before_ms=farm.clock.now_ms() + 3_600_000)
        await uow.leases.update(replace(lease, ask=ask))
        await uow.commit()
    await farm.request("long", "1", tenant="b", hours=1.1)
    await farm.request("short", "1", tenant="b", hours=0.9)
    await farm.settle()
    waits = await farm.lease("lecture")
    assert (waits.status, "it is reserved for" in waits.message) == (LeaseStatus.WAITING, True)
    assert (await farm.lease("long")).status is LeaseStatus.WAITING
    assert (await farm.lease("short")).status is LeaseStatus.ACTIVE
    farm.clock.advance(3_540_000)
    await farm.settle()
    assert (await farm.lease("lecture")).status is LeaseStatus.WAITING
    farm.clock.advance(60_000)
    await farm.settle()
    started = await farm.lease("lecture")
    assert (started.status, started.started_ms) == (LeaseStatus.ACTIVE, farm.clock.now_ms())
