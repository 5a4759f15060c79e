"""Models, services, and calls to them by token and by key."""

from dataclasses import replace

import pytest

from cloudfarm.domain.lease import LeaseKind
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

SERVICE = {"model": "wind", "gpus": 0.25, "replicas": 2, "memory": "1GiB"}


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        await opened.model("wind")
        await opened.model("wind")
        yield opened


async def deploy(door: FrontDoor, **fields):
    return await door.call("alpha.member", "POST", "/v1/services", json={**SERVICE, **fields})


async def test_models(door: FrontDoor):
    listed = (await door.call("alpha.viewer", "GET", "/v1/model-versions")).json()
    assert [each["ref"] for each in listed] == ["wind:1", "wind:2"]
    assert (await door.call("alpha.viewer", "GET", "/v1/model-versions/wind")).json()["number"] == 2
    assert (await door.call("alpha.viewer", "GET", "/v1/model-versions/wind:1")).json()["number"] == 1
    for ref in ("wind:3", "wind:0", "wind:x", "sun", "wind:1:1", "wind:99999999999"):
        assert_problem(await door.call("alpha.viewer", "GET", f"/v1/model-versions/{ref}"), 404, "not_found")


async def test_deploy(door: FrontDoor):
    made = await deploy(door)
    assert made.status_code == 201, made.text
    body = made.json()
    assert (body["name"], body["model"], body["milli_gpus"], body["replicas"]) == ("wind", "wind:2", 250, 2)
    assert (body["status"], body["leases"], body["predict"]) == ("PENDING", [], "/v1/services/wind/predict")
    (revision,) = body["revisions"]
    assert (revision["number"], revision["model"], revision["replicas"], revision["percent"]) == (
        1,
        "wind:2",
        2,
        0,
    )
    assert door.nudge.count == 1
    assert (await door.call("alpha.viewer", "GET", "/v1/services/wind")).json() == body
    assert (await door.call("operator", "GET", "/v1/services")).json() == [body]
    async with door.store.begin(write=False) as uow:
        service = await uow.services.find("alpha", "wind")
        (stored,) = await uow.revisions.list(service_id=service.id)
    assert (stored.import_path, stored.app_name) == ("services.forecasts:app", "alpha.wind.1")


async def test_a_service_counts_against_its_project(door: FrontDoor):
    assert (await deploy(door)).json()["project"] == ""
    body = (await deploy(door, name="night", project="wind-1")).json()
    assert body["project"] == "wind-1"
    assert (await door.call("alpha.viewer", "GET", "/v1/services/night")).json() == body


async def test_a_projects_limit_bounds_its_services(door: FrontDoor):
    quotas = [{"id": "alpha"}, {"id": "alpha/small", "parent": "alpha", "limit": {"gpus": 0.25}}]
    answer = await door.call("operator", "PUT", "/v1/quotas", json=quotas)
    assert answer.status_code == 200, answer.text
    refused = assert_problem(await deploy(door, project="small"), 422, "limit_exceeded")
    assert refused["quota"] == "alpha/small"
    assert (await deploy(door, project="large")).status_code == 201


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "sun"}, 404, "not_found"),
        ({"model": "wind:9"}, 404, "not_found"),
        ({"model": "\u0000"}, 404, "not_found"),
        ({"name": "A_B"}, 422, "invalid_input"),
        ({"gpus": "2x0.25"}, 422, "invalid_shape"),
        ({"gpus": 1.5}, 422, "invalid_shape"),
        ({"gpus": True}, 422, "invalid_input"),
        ({"replicas": 0}, 422, "invalid_input"),
        ({"replicas": 65}, 422, "invalid_input"),
        ({"replicas": 2.0}, 422, "invalid_input"),
        ({"replicas": True}, 422, "invalid_input"),
        ({"gpus": 1, "replicas": 5}, 422, "limit_exceeded"),
        ({"cpus": 64}, 422, "impossible_shape"),
        ({"project": "Wind Power"}, 422, "invalid_input"),
        ({"project": ""}, 422, "invalid_input"),
        ({"min_replicas": 1}, 422, "invalid_input"),
        ({"replicas": None, "min_replicas": 3, "max_replicas": 2}, 422, "invalid_input"),
        ({"replicas": None, "max_replicas": 0}, 422, "invalid_input"),
        ({"replicas": None, "min_replicas": -1}, 422, "invalid_input"),
        ({"replicas": None, "max_replicas": 20}, 422, "limit_exceeded"),
        ({"target_load": 0}, 422, "invalid_input"),
        ({"idle_minutes": 0}, 422, "invalid_input"),
        ({"idle_minutes": True}, 422, "invalid_input"),
        ({"canary": 10}, 422, "invalid_input"),
        ({"canary": 100}, 422, "invalid_input"),
        ({"import_path": "os:system"}, 422, "invalid_input"),
    ],
)
async def test_bad_deployments_leave_nothing(door: FrontDoor, fields, status, code):
    assert_problem(await deploy(door, **fields), status, code)
    assert (await door.call("alpha.viewer", "GET", "/v1/services")).json() == []


async def test_a_model_of_an_unknown_kind(door: FrontDoor):
    async with door.store.begin() as uow:
        for name, manifest in (("odd", {"kind": "os:system"}), ("blank", {}), ("wrong", {"kind": ["x"]})):
            await uow.models.register(
                tenant="alpha",
                name=name,
                uri="/x",
                job_id=None,
                manifest=manifest,
                now_ms=door.clock.now_ms(),
            )
        await uow.commit()
    for name in ("odd", "blank", "wrong"):
        assert_problem(await deploy(door, model=name), 422, "invalid_input")


async def test_a_name_is_taken_until_replaced(door: FrontDoor):
    await deploy(door, model="wind:1")
    assert_problem(await deploy(door), 409, "already_exists")
    replaced = (await deploy(door, replace=True)).json()
    assert (replaced["model"], replaced["revisions"][1]["model"]) == ("wind:1", "wind:2")
    assert len((await door.call("alpha.viewer", "GET", "/v1/services")).json()) == 1
    assert_problem(await deploy(door, replace=True, gpus=0.5), 409, "conflict")
    moved = assert_problem(await deploy(door, replace=True, project="night"), 409, "conflict")
    assert "is in no project, not in project night" in moved["detail"]


async def test_delete(door: FrontDoor):
    await deploy(door)
    for _ in range(2):
        answer = await door.call("alpha.member", "DELETE", "/v1/services/wind")
        assert (answer.status_code, answer.json()["target"]) == (202, "END")
    assert_problem(await deploy(door, replace=True), 409, "conflict")
    assert (await door.call("alpha.viewer", "GET", "/v1/services/wind")).json()[
        "message"
    ] == "is being deleted"


async def test_predict_by_token_and_by_key(door: FrontDoor):
    await deploy(door)
    for who in ("alpha.member", "alpha.key"):
        answer = await door.call(who, "POST", "/v1/services/wind/predict", json={"x": 1})
        assert "PENDING" in assert_problem(answer, 503, "unavailable")["detail"]
    await door.start_service("wind")
    for who in ("alpha.member", "alpha.key"):
        answer = await door.call(who, "POST", "/v1/services/wind/predict", json={"x": [1, None, "é"]})
        assert answer.json() == {"app": "alpha.wind.1", "echo": {"x": [1, None, "é"]}}
    for who in ("beta.member", "beta.key"):
        answer = await door.call(who, "POST", "/v1/services/wind/predict", json={})
        assert_problem(answer, 404, "not_found")


async def test_a_key_may_name_its_services(door: FrontDoor):
    await deploy(door)
    await deploy(door, name="other")
    await door.start_service("wind")
    await door.start_service("other")
    body = {"user": "robot", "services": ["other"]}
    secret = (await door.call("alpha.admin", "POST", "/v1/keys", json=body)).json()["secret"]
    async with door.client(None, Authorization=f"Bearer {secret}") as client:
        assert (await client.post("/v1/services/other/predict", json={})).status_code == 200
        refused = await client.post("/v1/services/wind/predict", json={})
        missing = await client.post("/v1/services/none/predict", json={})
    assert_problem(refused, 404, "not_found")
    assert refused.text.replace("wind", "none") == missing.text


@pytest.mark.parametrize(
    "body", ["[]", "1", '"x"', "null", '{"x": NaN}', '{"x": Infinity}', r'{"x": "\u0000"}', "{", ""]
)
async def test_payloads_that_are_none(door: FrontDoor, body):
    await deploy(door)
    await door.start_service("wind")
    async with door.client("alpha.key", **{"Content-Type": "application/json"}) as client:
        answer = await client.post("/v1/services/wind/predict", content=body)
    assert_problem(answer, 422, "invalid_input")
    assert door.inference.calls == []


async def test_what_the_service_says_is_passed_on(door: FrontDoor):
    await deploy(door)
    await door.start_service("wind")
    door.inference.refusal = "observations: too few"
    answer = await door.call("alpha.key", "POST", "/v1/services/wind/predict", json={})
    assert assert_problem(answer, 422, "invalid_input")["detail"] == "observations: too few"
    door.inference.refusal, door.inference.down = "", True
    assert_problem(
        await door.call("alpha.key", "POST", "/v1/services/wind/predict", json={}), 503, "unavailable"
    )


async def test_a_deleted_service_answers_no_more(door: FrontDoor):
    await deploy(door)
    await door.start_service("wind")
    await door.call("alpha.member", "DELETE", "/v1/services/wind")
    assert_problem(
        await door.call("alpha.key", "POST", "/v1/services/wind/predict", json={}), 503, "unavailable"
    )


async def test_a_services_lease_is_ended_by_deleting_the_service(door: FrontDoor):
    lease = await door.lease()
    async with door.store.begin() as uow:
        stored = await uow.leases.get(lease["id"])
        await uow.leases.update(replace(stored, kind=LeaseKind.SERVICE, name="wind"))
        await uow.commit()
    answer = await door.call("alpha.member", "DELETE", f"/v1/leases/{lease['id']}")
    assert "delete the service" in assert_problem(answer, 409, "conflict")["detail"]


async def test_a_revoked_key_is_refused_within_a_second_and_asked_for_rarely_until_then(door: FrontDoor):
    await deploy(door)
    await door.start_service("wind")
    made = (await door.call("alpha.admin", "POST", "/v1/keys", json={"user": "app"})).json()

    async def status() -> int:
        headers = {"Authorization": f"Bearer {made['secret']}"}
        async with door.client(**headers) as client:
            return (await client.post("/v1/services/wind/predict", json={})).status_code

    assert await status() == 200
    await door.call("alpha.admin", "DELETE", f"/v1/keys/{made['id']}")
    assert await status() == 200  # it was let through a moment ago
    door.clock.advance(999)
    assert await status() == 401
    assert await status() == 401


async def test_who_was_refused_is_let_through_as_soon_as_it_may_be(door: FrontDoor):
    await deploy(door)
    path = "/v1/services/wind/predict"
    assert_problem(await door.call("alpha.key", "POST", path, json={}), 503, "unavailable")
    await door.start_service("wind")
    assert (await door.call("alpha.key", "POST", path, json={})).status_code == 200
    # What one caller may do says nothing about another.
    assert_problem(await door.call("beta.key", "POST", path, json={}), 404, "not_found")
    assert_problem(await door.call("alpha.viewer", "POST", path, json={}), 403, "forbidden")
