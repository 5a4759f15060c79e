"""Leases by hand: request, show, extend, release, and everything that can be wrong with a request."""

import math
from dataclasses import replace

import pytest

from cloudfarm.domain.lease import ExpectedStart, Slice
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

HOUR_MS = 3_600_000


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        yield opened


async def test_request_and_show(door: FrontDoor):
    lease = await door.lease(gpus="2x0.25", cpus=1, memory="2GiB", hours=1.5, name="dev", gpu_model="SIM")
    assert (lease["shape"], lease["milli_gpus"], lease["cpus"]) == ("2x0.25", 500, 1)
    assert (lease["memory_bytes"], lease["hours"], lease["name"]) == (2 * 2**30, 1.5, "dev")
    assert (lease["status"], lease["target"], lease["kind"]) == ("WAITING", "RUN", "manual")
    assert (lease["tenant"], lease["owner"]) == ("alpha", "member-of-alpha")
    assert len(lease["id"]) == 9
    assert (await door.call("alpha.viewer", "GET", f"/v1/leases/{lease['id']}")).json() == lease
    assert (await door.call("operator", "GET", f"/v1/leases/{lease['id']}")).json() == lease
    assert door.nudge.count == 1


async def test_project_and_priority(door: FrontDoor):
    lease = await door.lease(project="wind", priority=-100)
    assert (lease["project"], lease["priority"]) == ("wind", -100)
    assert (await door.call("alpha.viewer", "GET", f"/v1/leases/{lease['id']}")).json() == lease
    plain = await door.lease()
    assert (plain["project"], plain["priority"]) == ("", 0)


async def test_a_reservation_for_a_time_to_come(door: FrontDoor):
    lease = await door.lease(not_before="2027-01-15T18:00+09:00")
    assert lease["not_before"] == "2027-01-15T09:00:00.000Z"
    assert (await door.lease())["not_before"] is None
    async with door.store.begin(write=False) as uow:
        stored = await uow.leases.get(lease["id"])
        (event,) = await uow.events.list(subject=lease["id"])
    assert stored.ask.not_before_ms == door.clock.now_ms() + HOUR_MS
    assert event.message == "0.5 GPU for 4 h, from 2027-01-15T09:00:00.000Z on"


async def test_when_it_has_to_be_gone_is_shown(door: FrontDoor):
    lease = await door.lease()
    assert lease["preempted"] is None
    await door.start_lease(lease["id"])
    async with door.store.begin() as uow:
        stored = await uow.leases.get(lease["id"])
        await uow.leases.update(replace(stored, preempted_ms=door.clock.now_ms() + 60_000))
        await uow.commit()
    shown = (await door.call("alpha.viewer", "GET", f"/v1/leases/{lease['id']}")).json()
    assert shown["preempted"] == "2027-01-15T08:01:00.000Z"


async def test_a_slice_says_what_gpu_memory_it_may_use(door: FrontDoor):
    lease = await door.lease()
    async with door.store.begin() as uow:
        stored = await uow.leases.get(lease["id"])
        piece = Slice(stored.id, 0, "h0", (1,), 500, 2, 2**31, gpu_memory_bytes=2**33)
        await uow.leases.update(replace(stored, slices=(piece,)))
        await uow.commit()
    (shown,) = (await door.call("alpha.viewer", "GET", f"/v1/leases/{lease['id']}")).json()["slices"]
    assert (shown["memory_bytes"], shown["gpu_memory_bytes"]) == (2**31, 2**33)


async def test_who_waits_is_told_when_it_will_probably_start(door: FrontDoor):
    lease = await door.lease()
    assert lease["expected_start"] is None
    nine_ms = 1_700_038_800_000  # 2023-11-15 09:00
    start = ExpectedStart("borrows", nine_ms - 10 * HOUR_MS, nine_ms + 29_999, nine_ms + HOUR_MS + 1)
    async with door.store.begin() as uow:
        stored = await uow.leases.get(lease["id"])
        await uow.leases.update(replace(stored, message="place 1 in the queue", expected_start=start))
        await uow.commit()
    shown = (await door.call("alpha.viewer", "GET", f"/v1/leases/{lease['id']}")).json()
    assert shown["expected_start"] == {
        "earliest": "2023-11-14T23:00:00.000Z",
        "expected": "2023-11-15T09:00:29.999Z",
        "latest": "2023-11-15T10:00:00.001Z",
    }
    assert shown["message"] == (
        "place 1 in the queue; expected to start about 2023-11-15 09:00 UTC (2023-11-14 23:00 to 10:01)"
    )


async def test_list_has_the_newest(door: FrontDoor):
    leases = []
    for _ in range(3):
        door.clock.advance(1)
        leases.append((await door.lease())["id"])
    await door.lease("beta.member")
    found = await door.call("alpha.viewer", "GET", "/v1/leases", params={"limit": 2})
    assert [each["id"] for each in found.json()] == leases[1:]
    assert len((await door.call("operator", "GET", "/v1/leases")).json()) == 4
    found = await door.call("operator", "GET", "/v1/leases", params={"tenant": "beta"})
    assert [each["tenant"] for each in found.json()] == ["beta"]


BAD = [
    ({"gpus": "0.3x2x2"}, "invalid_shape"),
    ({"gpus": "1.3"}, "invalid_shape"),
    ({"gpus": "-1"}, "invalid_shape"),
    ({"gpus": "1000000000x0.5"}, "invalid_shape"),
    ({"gpus": 1_000_000_000}, "invalid_shape"),
    ({"gpus": "0.0001"}, "invalid_shape"),
    ({"gpus": 1e-9}, "invalid_shape"),
    ({"gpus": 1e300}, "invalid_shape"),
    ({"gpus": "0x1"}, "invalid_shape"),
    ({"gpus": ""}, "invalid_shape"),
    ({"gpus": "nan"}, "invalid_shape"),
    ({"gpus": "1\u0000"}, "invalid_shape"),
    ({"gpus": "½"}, "invalid_shape"),
    ({"gpus": "1" * 200}, "invalid_shape"),
    ({"gpus": True}, "invalid_input"),
    ({"gpus": None}, "invalid_input"),
    ({"gpus": ["1"]}, "invalid_input"),
    ({"gpus": {}}, "invalid_input"),
    ({}, "invalid_input"),
    ({"gpus": "1", "cpus": 0}, "invalid_input"),
    ({"gpus": "1", "cpus": 1.5}, "invalid_input"),
    ({"gpus": "1", "cpus": True}, "invalid_input"),
    ({"gpus": "1", "cpus": "many"}, "invalid_input"),
    ({"gpus": "1", "cpus": 10**9}, "invalid_input"),
    ({"gpus": "1", "memory": "0"}, "invalid_input"),
    ({"gpus": "1", "memory": "1GB!"}, "invalid_input"),
    ({"gpus": "1", "memory": "-1GiB"}, "invalid_input"),
    ({"gpus": "1", "memory": "9999999T"}, "invalid_input"),
    ({"gpus": "1", "hours": 0}, "invalid_input"),
    ({"gpus": "1", "hours": -1}, "invalid_input"),
    ({"gpus": "1", "hours": "infinity"}, "invalid_input"),
    ({"gpus": "1", "hours": 1e9}, "invalid_input"),
    ({"gpus": "1", "gpu_model": "\u0000"}, "invalid_input"),
    ({"gpus": "1", "gpu_model": "H100; drop table"}, "invalid_input"),
    ({"gpus": "1", "name": "../etc"}, "invalid_input"),
    ({"gpus": "1", "name": ""}, "invalid_input"),
    ({"gpus": "1", "name": "x" * 64}, "invalid_input"),
    ({"gpus": "1", "distinct_gpus": "yes"}, "invalid_input"),
    ({"gpus": "1", "project": ""}, "invalid_input"),
    ({"gpus": "1", "project": "Wind Power"}, "invalid_input"),
    ({"gpus": "1", "project": "alpha/wind"}, "invalid_input"),
    ({"gpus": "1", "priority": 101}, "invalid_input"),
    ({"gpus": "1", "priority": -101}, "invalid_input"),
    ({"gpus": "1", "priority": 0.5}, "invalid_input"),
    ({"gpus": "1", "priority": True}, "invalid_input"),
    ({"gpus": "1", "priority": "high"}, "invalid_input"),
    ({"gpus": "1", "not_before": "2027-01-15T07:59:59.999Z"}, "invalid_input"),
    ({"gpus": "1", "not_before": "2028-01-15T08:00:00.001Z"}, "invalid_input"),
    ({"gpus": "1", "not_before": "2027-01-16T08:00"}, "invalid_input"),
    ({"gpus": "1", "not_before": "tomorrow"}, "invalid_input"),
    ({"gpus": "1", "not_before": ""}, "invalid_input"),
    ({"gpus": "1", "not_before": 1_800_003_600_000}, "invalid_input"),
    ({"gpus": "1", "tenant": "beta"}, "invalid_input"),
    ({"gpus": "3"}, "impossible_shape"),
    ({"gpus": "1", "cpus": 17}, "impossible_shape"),
    ({"gpus": "1", "memory": "65GiB"}, "impossible_shape"),
    ({"gpus": "1", "gpu_model": "H100"}, "impossible_shape"),
    ({"gpus": "5x0.5"}, "impossible_shape"),
    ({"gpus": "5x1"}, "limit_exceeded"),
]


@pytest.mark.parametrize(("body", "code"), BAD)
async def test_bad_requests_leave_nothing(door: FrontDoor, body, code):
    answer = await door.call("alpha.member", "POST", "/v1/leases", json=body)
    assert_problem(answer, 422, code)
    assert (await door.call("operator", "GET", "/v1/leases")).json() == []
    assert door.nudge.count == 0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
async def test_numbers_that_are_none(door: FrontDoor, number):
    async with door.client("alpha.member", **{"Content-Type": "application/json"}) as client:
        for body in (f'{{"gpus": {number}}}', f'{{"gpus": "1", "hours": {number}}}'):
            assert (await client.post("/v1/leases", content=body)).status_code == 422


async def test_half_a_character_is_refused_and_can_be_answered(door: FrontDoor):
    async with door.client("alpha.member", **{"Content-Type": "application/json"}) as client:
        answer = await client.post("/v1/leases", content=rb'{"gpus": "\ud800"}')
    assert answer.status_code == 422


async def test_what_two_gpus_may_share(door: FrontDoor):
    """Five halves never fit on four GPUs of their own, but do when slices may share one."""
    lease = await door.lease(gpus="5x0.5", distinct_gpus=False)
    assert not lease["distinct_gpus"]


async def test_the_refusal_says_what_there_is(door: FrontDoor):
    answer = await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "1", "gpu_model": "H100"})
    assert "h0: 2 GPUs (SIM), 16 CPUs, 64 GiB" in assert_problem(answer, 422, "impossible_shape")["detail"]


async def test_a_tenants_own_limit_counts(door: FrontDoor):
    await door.call("operator", "PATCH", "/v1/tenants/alpha", json={"limit_gpus": "0.5"})
    body = assert_problem(
        await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "0.75"}), 422, "limit_exceeded"
    )
    assert (body["limit_milli_gpus"], body["asked_milli_gpus"]) == (500, 750)
    await door.lease(gpus="0.5")


async def test_a_farm_without_hosts_asks_for_patience(tmp_path):
    async with open_front_door(tmp_path, hosts=()) as door:
        answer = await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "1"})
        assert_problem(answer, 503, "unavailable")


async def test_a_farm_that_is_being_stopped_takes_nothing_new(door: FrontDoor):
    async with door.store.begin() as uow:
        await uow.set_stopping(stopping=True)
        await uow.commit()
    for path, body in (("/v1/leases", {"gpus": "1"}), ("/api/jobs/", {"entrypoint": "true"})):
        answer = await door.call("alpha.member", "POST", path, json=body)
        assert "being stopped" in assert_problem(answer, 503, "unavailable")["detail"]


async def test_too_many_waiting(tmp_path):
    async with open_front_door(tmp_path, max_waiting=1) as door:
        lease = await door.lease()
        assert_problem(
            await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "1"}), 429, "too_many"
        )
        await door.start_lease(lease["id"])
        await door.lease()


async def test_a_name_is_used_once_at_a_time(door: FrontDoor):
    lease = await door.lease(name="dev")
    await door.lease("beta.member", name="dev")
    answer = await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "1", "name": "dev"})
    assert_problem(answer, 409, "already_exists")
    await door.start_lease(lease["id"])
    await door.end_lease(lease["id"])
    await door.lease(name="dev")


async def test_extend(door: FrontDoor):
    lease = await door.lease(hours=1)
    url = f"/v1/leases/{lease['id']}/extend"
    assert (await door.call("alpha.member", "POST", url, json={"hours": 2})).json()["hours"] == 3
    await door.start_lease(lease["id"])
    before = (await door.call("alpha.member", "GET", f"/v1/leases/{lease['id']}")).json()
    after = (await door.call("alpha.member", "POST", url, json={"hours": "0.5"})).json()
    assert after["hours"] == 3.5
    assert after["ends"] > before["ends"]
    async with door.store.begin(write=False) as uow:
        stored = await uow.leases.get(lease["id"])
    assert stored.ends_ms == door.clock.now_ms() + math.floor(3.5 * HOUR_MS)
    for hours in (0, -1, "nan", 10**6, True, None):
        answer = await door.call("alpha.member", "POST", url, json={"hours": hours})
        assert_problem(answer, 422, "invalid_input")


async def test_extend_not_beyond_a_year_in_all(door: FrontDoor):
    lease = await door.lease(hours=24 * 366)
    answer = await door.call("alpha.member", "POST", f"/v1/leases/{lease['id']}/extend", json={"hours": 1})
    assert_problem(answer, 422, "invalid_input")


async def test_extend_not_after_notice_since_a_drain_cannot_be_taken_back(door: FrontDoor):
    lease = await door.lease()
    await door.start_lease(lease["id"])
    async with door.store.begin() as uow:
        stored = await uow.leases.get(lease["id"])
        await uow.leases.update(replace(stored, noticed_ms=door.clock.now_ms()))
        await uow.commit()
    answer = await door.call("alpha.member", "POST", f"/v1/leases/{lease['id']}/extend", json={"hours": 1})
    assert_problem(answer, 409, "conflict")


async def test_release(door: FrontDoor):
    lease = await door.lease()
    url = f"/v1/leases/{lease['id']}"
    released = (await door.call("alpha.member", "DELETE", url)).json()
    assert (released["status"], released["target"]) == (
        "WAITING",
        "END",
    )  # only the steward changes the status
    assert (await door.call("alpha.member", "DELETE", url)).status_code == 200
    assert_problem(
        await door.call("alpha.member", "POST", f"{url}/extend", json={"hours": 1}), 409, "conflict"
    )


async def test_release_of_what_has_ended(door: FrontDoor):
    lease = await door.lease()
    await door.start_lease(lease["id"])
    await door.end_lease(lease["id"])
    assert_problem(await door.call("alpha.member", "DELETE", f"/v1/leases/{lease['id']}"), 409, "conflict")


async def test_an_operator_may_release_but_not_extend(door: FrontDoor):
    lease = await door.lease()
    url = f"/v1/leases/{lease['id']}"
    assert_problem(await door.call("operator", "POST", f"{url}/extend", json={"hours": 1}), 403, "forbidden")
    assert (await door.call("operator", "DELETE", url)).json()["target"] == "END"
    async with door.store.begin(write=False) as uow:
        event = (await uow.events.list(tenant="alpha"))[0]
    assert (event.kind, event.actor) == ("lease.released", "operator:operator-of-farm")


@pytest.mark.parametrize("name", ["%00", "..", "a%2Fb", "%F0%9F%92%A9", "x" * 500, "';--", "%ff"])
async def test_ids_that_are_no_ids_are_missing(door: FrontDoor, name):
    for method, path in (("GET", ""), ("DELETE", "")):
        answer = await door.call("alpha.member", method, f"/v1/leases/{name}{path}")
        assert answer.status_code in (404, 405)
