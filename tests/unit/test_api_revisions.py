"""What runs of a service through the API: replacements, canaries, rollbacks, scaling, sharing, cold starts."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from cloudfarm.domain.status import RevisionStatus, ServiceStatus, transition
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

PREDICT = "/v1/services/wind/predict"


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path, max_cold_requests=2, cold_start_timeout_s=5) as opened:
        for _ in range(3):
            await opened.model("wind")
        yield opened


async def send(door: FrontDoor, method: str, path: str, who: str = "alpha.member", **body):
    return await door.call(who, method, f"/v1/services{path}", json=body)


async def deploy(door: FrontDoor, number: int, **fields) -> dict:
    answer = await send(door, "POST", "", model=f"wind:{number}", name="wind", **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def revisions(door: FrontDoor):
    async with door.store.begin(write=False) as uow:
        service = await uow.services.find("alpha", "wind")
        return service, await uow.revisions.list(service_id=service.id)


async def take_over(door: FrontDoor) -> None:
    """Do what the steward does when the newest revision runs."""
    service, found = await revisions(door)
    async with door.store.begin() as uow:
        newest, now_ms = found[-1], door.clock.now_ms()
        before = next(each for each in found if each.id == service.current_id)
        await uow.revisions.update(before.leave(now_ms, "gone"))
        await uow.revisions.update(replace(newest, promoted_ms=now_ms))
        await uow.services.update(replace(service, current_id=newest.id))
        await uow.commit()
    await door.move_revision(before.id, RevisionStatus.ENDED)


async def answers(door: FrontDoor, count: int) -> Counter[str]:
    async with door.client("alpha.key") as client:
        return Counter([(await client.post(PREDICT, json={})).json()["app"] for _ in range(count)])


async def test_requests_go_to_the_current_revision_until_another_takes_over(door: FrontDoor):
    await deploy(door, 1)
    await door.start_service("wind")
    body = await deploy(door, 2, replace=True)
    assert [each["percent"] for each in body["revisions"]] == [100, 0]
    await door.start_service("wind")
    door.clock.advance(1_000)
    assert await answers(door, 3) == {"alpha.wind.1": 3}
    await take_over(door)
    door.clock.advance(899)
    assert await answers(door, 1) == {"alpha.wind.1": 1}  # a route is remembered for less than a second
    door.clock.advance(1)
    assert await answers(door, 3) == {"alpha.wind.2": 3}


async def test_a_canary_gets_its_exact_percent_of_any_hundred(door: FrontDoor):
    await deploy(door, 1)
    await door.start_service("wind")
    await deploy(door, 2, replace=True, canary=7)
    assert await answers(door, 20) == {"alpha.wind.1": 20}
    await door.start_service("wind")
    door.clock.advance(1_000)
    body = (await send(door, "GET", "/wind")).json()
    assert [each["percent"] for each in body["revisions"]] == [93, 7]
    for _ in range(2):
        assert await answers(door, 100) == {"alpha.wind.1": 93, "alpha.wind.2": 7}


async def test_a_canary_is_promoted(door: FrontDoor):
    await deploy(door, 1)
    assert_problem(await send(door, "POST", "/wind/promote"), 409, "conflict")
    await deploy(door, 2, replace=True, canary=10)
    nudges = door.nudge.count
    body = (await send(door, "POST", "/wind/promote")).json()
    assert door.nudge.count == nudges + 1
    assert body["model"] == "wind:1"  # until it runs
    _, (_, canary) = await revisions(door)
    assert (canary.canary_percent, canary.target) == (0, "RUN")


async def test_a_canary_is_withdrawn(door: FrontDoor):
    await deploy(door, 1)
    await door.start_service("wind")
    await deploy(door, 2, replace=True, canary=50)
    await door.start_service("wind")
    body = (await send(door, "POST", "/wind/rollback")).json()
    assert body["message"] == "revision 2 was withdrawn"
    assert [each["percent"] for each in body["revisions"]] == [100, 0]
    door.clock.advance(1_000)
    assert await answers(door, 10) == {"alpha.wind.1": 10}
    _, (_, canary) = await revisions(door)
    assert (canary.target, canary.left_ms) == ("END", door.clock.now_ms() - 1_000)


async def test_rolling_back_deploys_what_ran_before_and_again_what_ran_after(door: FrontDoor):
    await deploy(door, 1)
    assert_problem(await send(door, "POST", "/wind/rollback"), 409, "conflict")
    await deploy(door, 2, replace=True)
    door.clock.advance(1)
    await take_over(door)
    await deploy(door, 3, replace=True)
    await send(door, "POST", "/wind/rollback")  # never took over
    for model in ("wind:1", "wind:2", "wind:1"):
        body = (await send(door, "POST", "/wind/rollback")).json()
        assert body["revisions"][-1]["model"] == model
        door.clock.advance(1)
        await take_over(door)


async def test_of_two_replacements_the_newer_counts(door: FrontDoor):
    await deploy(door, 1)
    await deploy(door, 2, replace=True)
    await deploy(door, 3, replace=True)
    _, found = await revisions(door)
    assert [(each.number, each.target) for each in found] == [(1, "RUN"), (2, "END"), (3, "RUN")]
    assert found[1].message == "gave way to revision 3"


async def test_numbers_go_on_when_a_name_is_used_again(door: FrontDoor):
    await deploy(door, 1)
    service, (revision,) = await revisions(door)
    async with door.store.begin() as uow:
        await uow.apply(transition(revision, RevisionStatus.ENDED, now_ms=1))
        await uow.apply(transition(service, ServiceStatus.DELETED, now_ms=1))
        await uow.commit()
    await deploy(door, 1)
    _, (revision,) = await revisions(door)
    assert revision.app_name == "alpha.wind.2"


async def test_a_replacement_keeps_what_is_not_given(door: FrontDoor):
    await deploy(door, 1, gpus=0.25, min_replicas=2, max_replicas=3, memory="1GiB", project="night")
    body = await deploy(door, 2, replace=True, target_load=4)
    assert (body["min_replicas"], body["max_replicas"], body["target_load"]) == (2, 3, 4)
    assert (body["milli_gpus"], body["project"], body["revisions"][1]["replicas"]) == (250, "night", 2)


async def test_a_replacement_is_as_large_as_what_it_replaces(door: FrontDoor):
    await deploy(door, 1, max_replicas=4)
    _, (revision,) = await revisions(door)
    await door.move_revision(revision.id, RevisionStatus.PENDING, replicas=3)
    body = await deploy(door, 2, replace=True)
    assert body["revisions"][1]["replicas"] == 3


async def test_scaling_is_changed(door: FrontDoor):
    await deploy(door, 1)
    nudges = door.nudge.count
    body = (await send(door, "PATCH", "/wind", min_replicas=0, max_replicas=3, idle_minutes=1.5)).json()
    assert (body["min_replicas"], body["max_replicas"], body["idle_minutes"]) == (0, 3, 1.5)
    assert door.nudge.count == nudges + 1
    assert (await send(door, "PATCH", "/wind", replicas=2)).json()["max_replicas"] == 2
    for wrong in ({"max_replicas": 1}, {"min_replicas": 65}, {"target_load": 1001}, {"idle_minutes": 1e9}):
        assert_problem(await send(door, "PATCH", "/wind", **wrong), 422, "invalid_input")
    assert_problem(await send(door, "PATCH", "/wind", gpus=1), 422, "invalid_input")
    assert_problem(await send(door, "PATCH", "/wind", "alpha.viewer", replicas=1), 403, "forbidden")


async def test_an_operator_opens_a_service_to_all_tenants(door: FrontDoor):
    await deploy(door, 1)
    await door.start_service("wind")
    assert_problem(await send(door, "PATCH", "/wind", "alpha.admin", shared=True), 403, "forbidden")
    assert_problem(await send(door, "PATCH", "/wind?tenant=beta", "operator", shared=True), 404, "not_found")
    assert_problem(await door.call("beta.key", "POST", PREDICT, json={}), 404, "not_found")
    opened = await send(door, "PATCH", "/wind?tenant=alpha", "operator", shared=True)
    assert opened.json()["shared"] is True
    assert (await door.call("beta.key", "POST", PREDICT, json={})).json()["app"] == "alpha.wind.1"
    await door.model("wind", "beta")
    await door.call("beta.member", "POST", "/v1/services", json={"model": "wind"})
    await door.start_service("wind", "beta")
    door.clock.advance(1_000)
    assert (await door.call("beta.key", "POST", PREDICT, json={})).json()["app"] == "beta.wind.1"
    assert_problem(await send(door, "GET", "/wind?tenant=alpha", "beta.member"), 404, "not_found")


async def sleep(door: FrontDoor) -> str:
    """Deploy a service and let it fall asleep."""
    await deploy(door, 1, min_replicas=0)
    _, (revision,) = await revisions(door)
    await door.move_revision(revision.id, RevisionStatus.IDLE)
    return revision.id


def waiting(door: FrontDoor) -> int:
    report = door.app.state.loads.report()
    return sum(load.waiting for load in report.loads.values())


async def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


async def test_a_request_to_a_sleeping_service_wakes_it_and_waits(door: FrontDoor):
    revision_id = await sleep(door)
    door.nudge.reports.clear()
    request = asyncio.create_task(door.call("alpha.key", "POST", PREDICT, json={"x": 1}))
    await until(lambda: waiting(door) == 1)
    (load,) = door.nudge.reports[0].loads.values()  # at once, not with the next second
    assert (load.waiting, load.peak) == (1, 1)
    await door.move_revision(revision_id, RevisionStatus.STARTING)
    door.clock.advance(1_000)
    await door.move_revision(revision_id, RevisionStatus.RUNNING)
    door.clock.advance(1_000)
    assert (await request).json()["app"] == "alpha.wind.1"
    assert waiting(door) == 0


async def test_who_waits_too_long_is_told_what_for(door: FrontDoor):
    revision_id = await sleep(door)
    lease = await door.lease()
    async with door.store.begin() as uow:
        await uow.leases.update(replace(await uow.leases.get(lease["id"]), revision_id=revision_id))
        await uow.commit()
    await door.say(lease["id"], "second in the queue")
    await door.move_revision(revision_id, RevisionStatus.PENDING)
    request = asyncio.create_task(door.call("alpha.key", "POST", PREDICT, json={}))
    await until(lambda: waiting(door) == 1)
    door.clock.advance(5_000)
    answer = await request
    detail = assert_problem(answer, 503, "unavailable")["detail"]
    assert "second in the queue" in detail
    assert "did not start within 5 s" in detail
    assert answer.headers["Retry-After"] == "5"
    assert waiting(door) == 0


async def test_only_so_many_wait(door: FrontDoor):
    await sleep(door)
    requests = [asyncio.create_task(door.call("alpha.key", "POST", PREDICT, json={})) for _ in range(2)]
    await until(lambda: waiting(door) == 2)
    answer = await door.call("alpha.key", "POST", PREDICT, json={})
    assert assert_problem(answer, 503, "unavailable")["max_cold_requests"] == 2
    assert answer.headers["Retry-After"] == "5"
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    assert waiting(door) == 0


async def test_who_waits_for_a_service_that_then_fails_is_told(door: FrontDoor):
    revision_id = await sleep(door)
    request = asyncio.create_task(door.call("alpha.key", "POST", PREDICT, json={}))
    await until(lambda: waiting(door) == 1)
    await door.move_revision(revision_id, RevisionStatus.FAILED)
    door.clock.advance(1_000)
    assert "FAILED" in assert_problem(await request, 503, "unavailable")["detail"]


async def test_a_service_that_never_sleeps_is_not_waited_for(door: FrontDoor):
    await deploy(door, 1)
    assert (
        "PENDING"
        in assert_problem(await door.call("alpha.key", "POST", PREDICT, json={}), 503, "unavailable")[
            "detail"
        ]
    )
