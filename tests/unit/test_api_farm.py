"""The farm's state, events and statements."""

from dataclasses import replace

import pytest

from cloudfarm.domain.lease import Slice
from cloudfarm.errors import UnavailableError
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem
from cloudfarm.troubles import Troubles
from cloudfarm.usecases.farm import TROUBLES_MS

HOUR_MS = 3_600_000


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        yield opened


async def test_health_needs_no_token_and_tells_nothing(door: FrontDoor):
    answer = await door.call(None, "GET", "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_farm_for_operators_and_for_tenants(door: FrontDoor):
    await door.lease()
    await door.lease("beta.member")
    async with door.store.begin() as uow:
        await uow.heartbeat(door.clock.now_ms())
        await uow.commit()
    door.clock.advance(1500)
    everything = (await door.call("operator", "GET", "/v1/farm")).json()
    mine = (await door.call("alpha.viewer", "GET", "/v1/farm")).json()
    assert (everything["hosts"], everything["milli_gpus"], everything["free_milli_gpus"]) == (2, 4000, 4000)
    assert (everything["waiting_leases"], everything["steward_silent_ms"]) == (2, 1500)
    assert [host["id"] for host in everything["host_list"]] == ["h0", "h1"]
    assert {lease["tenant"] for lease in everything["leases"]} == {"alpha", "beta"}
    assert {lease["tenant"] for lease in mine["leases"]} == {"alpha"}
    assert "host_list" not in mine
    assert mine["waiting_leases"] == 2


async def test_operators_see_what_went_wrong_within_a_day(door: FrontDoor):
    troubles = Troubles(door.store, door.clock)
    await troubles.tell("counting", UnavailableError("the disk is full"))
    door.clock.advance(TROUBLES_MS - 1)
    await troubles.tell("reading", UnavailableError("the disk is full"))
    for passed_ms, left in ((0, ["reading", "counting"]), (1, ["reading"]), (TROUBLES_MS, [])):
        door.clock.advance(passed_ms)
        seen = (await door.call("operator", "GET", "/v1/farm")).json()["troubles"]
        assert [each["message"] for each in seen] == [f"{what}: the disk is full" for what in left]
    assert "troubles" not in (await door.call("alpha.admin", "GET", "/v1/farm")).json()
    assert (await door.call("alpha.admin", "GET", "/v1/events")).json() == []


async def test_a_cordoned_host_gets_no_new_slice(door: FrontDoor):
    for cordoned, kind in ((True, "host.cordoned"), (False, "host.uncordoned")):
        answer = await door.call("operator", "PATCH", "/v1/hosts/h1", json={"cordoned": cordoned})
        assert answer.status_code == 204
        hosts = (await door.call("operator", "GET", "/v1/farm")).json()["host_list"]
        assert [host["cordoned"] for host in hosts] == [False, cordoned]
        assert (await door.call("operator", "GET", "/v1/events")).json()[0]["kind"] == kind
    assert_problem(
        await door.call("operator", "PATCH", "/v1/hosts/x", json={"cordoned": True}), 404, "not_found"
    )
    assert_problem(await door.call("operator", "PATCH", "/v1/hosts/h1", json={}), 422, "invalid_input")
    assert_problem(
        await door.call("alpha.admin", "PATCH", "/v1/hosts/h1", json={"cordoned": True}), 403, "forbidden"
    )


async def test_a_host_is_forgotten_unless_a_lease_lies_on_it(door: FrontDoor):
    lease = await door.lease()
    await door.start_lease(lease["id"])
    async with door.store.begin() as uow:
        held = await uow.leases.get(lease["id"])
        await uow.leases.update(replace(held, slices=(Slice(held.id, 0, "h0", (0,), 500, 1, 1),)))
        await uow.commit()
    assert_problem(await door.call("operator", "DELETE", "/v1/hosts/h0"), 409, "conflict")
    assert (await door.call("operator", "DELETE", "/v1/hosts/h1")).status_code == 204
    assert_problem(await door.call("operator", "DELETE", "/v1/hosts/h1"), 404, "not_found")
    assert_problem(await door.call("alpha.admin", "DELETE", "/v1/hosts/h0"), 403, "forbidden")
    hosts = (await door.call("operator", "GET", "/v1/farm")).json()["host_list"]
    assert [host["id"] for host in hosts] == ["h0"]


async def test_farm_that_no_steward_has_seen(door: FrontDoor):
    farm = (await door.call("operator", "GET", "/v1/farm")).json()
    assert (farm["steward_seen"], farm["steward_silent_ms"]) == (None, None)


async def test_events(door: FrontDoor):
    lease = await door.lease()
    other = await door.lease()
    await door.lease("beta.member")
    events = (await door.call("alpha.viewer", "GET", "/v1/events")).json()
    assert [event["subject"] for event in events] == [other["id"], lease["id"]]
    assert (events[0]["kind"], events[0]["actor"]) == ("lease.requested", "user:member-of-alpha")
    found = await door.call("alpha.viewer", "GET", "/v1/events", params={"subject": lease["id"]})
    assert [event["subject"] for event in found.json()] == [lease["id"]]
    assert len((await door.call("operator", "GET", "/v1/events")).json()) == 3
    assert (await door.call("operator", "GET", "/v1/events", params={"subject": "\u0000"})).json() == []
    for limit in (0, -1, 1001, "x"):
        answer = await door.call("alpha.viewer", "GET", "/v1/events", params={"limit": limit})
        assert_problem(answer, 422, "invalid_input")


async def test_statement_sums_exactly_over_days(door: FrontDoor):
    lease = await door.lease(gpus="0.3", hours=100)
    await door.start_lease(lease["id"])
    door.clock.advance(70 * HOUR_MS + 123)
    await door.end_lease(lease["id"])
    running = await door.lease(gpus="0.5")
    await door.start_lease(running["id"])
    door.clock.advance(10_000)
    statement = (await door.call("alpha.viewer", "GET", "/v1/usage")).json()
    cost = 300 * (70 * HOUR_MS + 123) // 1000
    assert statement["unit"] == "milli_gpu_seconds"
    assert statement["total"] == cost
    assert statement["by_tenant"] == {"alpha": cost}
    assert statement["by_lease"] == {lease["id"]: cost}
    assert sum(statement["by_day"].values()) == cost
    assert len(statement["by_day"]) in (3, 4)
    assert statement["running"] == [
        {
            "tenant": "alpha",
            "lease": running["id"],
            "milli_gpus": 500,
            "since": statement["running"][0]["since"],
            "milli_gpu_seconds": 5000,
        },
    ]
    parts = 0
    for day in statement["by_day"]:
        one = (await door.call("alpha.viewer", "GET", "/v1/usage", params={"from": day, "to": day})).json()
        assert one["total"] == statement["by_day"][day]
        parts += one["total"]
    assert parts == cost


async def test_statement_of_one_lease_and_of_all_tenants(door: FrontDoor):
    for who in ("alpha.member", "beta.member"):
        lease = await door.lease(who)
        await door.start_lease(lease["id"])
        door.clock.advance(HOUR_MS)
        await door.end_lease(lease["id"])
    every = (await door.call("operator", "GET", "/v1/usage")).json()
    assert set(every["by_tenant"]) == {"alpha", "beta"}
    one = (await door.call("operator", "GET", "/v1/usage", params={"lease": lease["id"]})).json()
    assert one["total"] == 500 * 3600
    foreign = (await door.call("alpha.viewer", "GET", "/v1/usage", params={"lease": lease["id"]})).json()
    nothing = (await door.call("alpha.viewer", "GET", "/v1/usage", params={"lease": "lnothing1"})).json()
    assert foreign == nothing


@pytest.mark.parametrize(
    "params",
    [
        {"from": "yesterday"},
        {"from": "2026-02-31"},
        {"from": "2026-2-3"},
        {"from": "20260203"},
        {"from": "2026-02-03T00:00"},
        {"to": "\u0662026-02-03"},
        {"from": "2026-02-03", "to": "2026-02-02"},
        {"from": ""},
    ],
)
async def test_days_that_are_none(door: FrontDoor, params):
    assert_problem(await door.call("alpha.viewer", "GET", "/v1/usage", params=params), 422, "invalid_input")
