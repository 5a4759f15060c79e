"""The front door over the real stores: what the one in memory lets pass may break on a database."""

import asyncio

import pytest

from cloudfarm.domain.status import JobStatus
from cloudfarm.store import SqlStore
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem
from cloudfarm.testing.memory_store import MemoryStore


@pytest.fixture
async def door(any_url, tmp_path):
    store = MemoryStore() if any_url is None else await SqlStore.open(any_url)
    async with open_front_door(tmp_path / "state", store=store, max_waiting=3) as opened:
        yield opened
    await store.close()


async def test_a_day_of_a_tenant(door: FrontDoor):
    lease = await door.lease(name="dev", gpus="2x0.5")
    await door.submit(
        submission_id="train-1", metadata={"lease": "dev"}, runtime_env={"env_vars": {"A": "값"}}
    )
    await door.start_lease(lease["id"])
    await door.move_job("train-1", JobStatus.RUNNING)
    await door.move_job("train-1", JobStatus.SUCCEEDED, log="done\n")
    await door.model("wind")
    service = await door.call("alpha.member", "POST", "/v1/services", json={"model": "wind", "gpus": 0.25})
    assert service.status_code == 201, service.text
    await door.start_service("wind")
    answer = await door.call("alpha.key", "POST", "/v1/services/wind/predict", json={"x": 1})
    assert answer.json()["app"] == "alpha.wind.1"
    door.clock.advance(3_600_000)
    await door.end_lease(lease["id"])
    assert (await door.call("alpha.viewer", "GET", "/v1/usage")).json()["total"] == 1000 * 3600
    assert (await door.call("alpha.viewer", "GET", "/api/jobs/train-1/logs")).json() == {"logs": "done\n"}
    assert (await door.call("alpha.member", "DELETE", "/api/jobs/train-1")).json() == {"deleted": True}
    assert (await door.call("operator", "GET", "/v1/farm")).json()["host_list"][0]["id"] == "h0"


async def test_quotas(door: FrontDoor):
    tree = [
        {"id": "energy", "guarantee": {"gpus": 4}},
        {"id": "alpha", "parent": "energy", "limit": {"gpus": "1.5"}},
    ]
    for _ in range(2):
        answer = await door.call("operator", "PUT", "/v1/quotas", json=tree)
        assert answer.status_code == 200, answer.text
    await door.start_lease((await door.lease(gpus="0.5", project="wind"))["id"])
    found = (await door.call("alpha.viewer", "GET", "/v1/quotas")).json()
    assert [(row["id"], row["limit"]["milli_gpus"]) for row in found["in_force"]] == [
        ("energy", None),
        ("alpha", 1500),
        ("alpha/wind", None),
    ]
    assert [row["held"] and row["held"]["milli_gpus"] for row in found["in_force"]] == [None, 500, 500]
    refused = await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "2x1", "project": "wind"})
    assert_problem(refused, 422, "limit_exceeded")


NAMES = ["%00", "a%00b", "%ff", "%F0%9F%92%A9", "x" * 3000, "';--", "a%0Ab", "%ED%A0%80"]


@pytest.mark.parametrize("name", NAMES)
async def test_no_name_makes_a_database_stumble(door: FrontDoor, name):
    for method, path, body in (
        ("GET", f"/api/jobs/{name}", None),
        ("POST", f"/api/jobs/{name}/stop", None),
        ("DELETE", f"/api/jobs/{name}", None),
        ("GET", f"/api/jobs/{name}/logs", None),
        ("GET", f"/v1/leases/{name}", None),
        ("POST", f"/v1/leases/{name}/extend", {"hours": 1}),
        ("GET", f"/v1/model-versions/{name}", None),
        ("GET", f"/v1/services/{name}", None),
        ("POST", f"/v1/services/{name}/predict", {}),
        ("DELETE", f"/v1/tokens/{name}", None),
        ("DELETE", f"/v1/keys/{name}", None),
        ("GET", f"/v1/tenants/{name}", None),
        ("GET", f"/v1/tokens?tenant={name}", None),
    ):
        answer = await door.call("alpha.admin", method, path, json=body)
        assert_problem(answer, 404, "not_found")
    for path in (f"/v1/events?subject={name}", f"/v1/usage?lease={name}"):
        answer = await door.call("operator", "GET", path)
        assert answer.status_code in (200, 404), answer.text
    for path in (f"/v1/leases?tenant={name}", f"/v1/usage?tenant={name}", f"/v1/events?tenant={name}"):
        answer = await door.call("operator", "GET", path)
        assert answer.status_code in (200, 404), answer.text


@pytest.mark.parametrize("text", [r"\u0000", r"\ud800", "x" * 150, r"\u202e", "';--", "\U0001f4a9"])
async def test_no_text_makes_a_database_stumble(door: FrontDoor, text):
    for who, path, template in (
        ("alpha.member", "/v1/leases", '{"gpus": "1", "name": "?"}'),
        ("alpha.member", "/v1/leases", '{"gpus": "1", "gpu_model": "?"}'),
        ("alpha.member", "/api/jobs/", '{"entrypoint": "?"}'),
        ("alpha.member", "/api/jobs/", '{"entrypoint": "x", "metadata": {"?": "?"}}'),
        ("alpha.member", "/api/jobs/", '{"entrypoint": "x", "metadata": {"lease": "?"}}'),
        ("alpha.member", "/api/jobs/", '{"entrypoint": "x", "runtime_env": {"env_vars": {"?": "?"}}}'),
        ("alpha.member", "/v1/services", '{"model": "?"}'),
        ("alpha.admin", "/v1/tokens", '{"user": "?", "role": "viewer"}'),
        ("operator", "/v1/tokens", '{"user": "ann", "role": "viewer", "tenant": "?"}'),
        ("operator", "/v1/tenants", '{"id": "gamma", "title": "?"}'),
    ):
        async with door.client(who, **{"Content-Type": "application/json"}) as client:
            answer = await client.post(path, content=template.replace("?", text).encode())
        assert answer.status_code < 500, (path, answer.text)


async def test_one_of_two_equal_submissions_wins_and_the_other_leaves_nothing(door: FrontDoor):
    body = {"entrypoint": "true", "submission_id": "same"}
    answers = await asyncio.gather(
        *(door.call("alpha.member", "POST", "/api/jobs/", json=body) for _ in range(4)),
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert len((await door.call("alpha.viewer", "GET", "/v1/leases")).json()) == 1


async def test_the_queues_limit_holds_for_requests_at_the_same_moment(door: FrontDoor):
    answers = await asyncio.gather(
        *(door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "0.5"}) for _ in range(6)),
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 3
    assert_problem(await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "1"}), 429, "too_many")


async def test_one_of_two_equal_names_wins_at_the_same_moment(door: FrontDoor):
    body = {"gpus": "0.5", "name": "same"}
    answers = await asyncio.gather(
        *(door.call("alpha.member", "POST", "/v1/leases", json=body) for _ in range(3)),
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
