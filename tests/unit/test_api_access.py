"""Who may do what, over every route of the OpenAPI document.

The tables come from the document, so that a new route is checked without anybody thinking of it; a route that
needs a body must be given one in ``BODIES``, else it fails here.
"""

import re

import pytest

from cloudfarm.domain.bundles import TEXT_EMBEDDING
from cloudfarm.domain.status import JobStatus
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import FakeWebSocket, assert_problem, assert_refused

OPEN = {("GET", "/healthz"), ("DELETE", "/v1/session")}
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
FOR_KEYS = {
    ("POST", "/v1/services/{name}/predict"),
    ("POST", CHAT),
    ("POST", COMPLETIONS),
    ("POST", EMBEDDINGS),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
}
FOR_OPERATORS = {
    ("POST", "/v1/tenants"),
    ("PATCH", "/v1/tenants/{tenant}"),
    ("PATCH", "/v1/hosts/{host}"),
    ("DELETE", "/v1/hosts/{host}"),
    ("PUT", "/v1/quotas"),
}
FOR_VIEWERS = {("POST", "/v1/session")}
"""Routes that a viewer may use although their method is not GET."""
BODIES = {
    ("POST", "/api/jobs/"): {"entrypoint": "true"},
    ("POST", "/v1/tenants"): {"id": "gamma"},
    ("PATCH", "/v1/tenants/{tenant}"): {"title": "changed"},
    ("PATCH", "/v1/hosts/{host}"): {"cordoned": True},
    ("PUT", "/v1/quotas"): [{"id": "alpha"}],
    ("POST", "/v1/tokens"): {"user": "eve", "role": "viewer"},
    ("POST", "/v1/keys"): {"user": "robot"},
    ("PATCH", "/v1/keys/{key_id}"): {"tokens_per_minute": 5},
    ("POST", "/v1/leases"): {"gpus": "0.5"},
    ("POST", "/v1/leases/{lease_id}/extend"): {"hours": 1},
    ("POST", "/v1/apps"): {"import_path": "main:app"},
    ("POST", "/v1/services"): {"model": "wind", "name": "fresh"},
    ("PATCH", "/v1/services/{name}"): {"replicas": 2},
    ("POST", "/v1/services/{name}/predict"): {"x": 1},
    ("POST", CHAT): {"model": "talk", "messages": [{"role": "user", "content": "hello"}]},
    ("POST", COMPLETIONS): {"model": "talk", "prompt": "hello"},
    ("POST", EMBEDDINGS): {"model": "meaning", "input": "hello"},
}
PACKAGE = "_ray_pkg_0123456789abcdef.zip"


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        yield opened


def routes(door: FrontDoor) -> list[tuple[str, str]]:
    document = door.app.openapi()
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


async def things_of_alpha(door: FrontDoor) -> dict[str, str]:
    """Make one of everything that has an id, and return the ids by the paths' parameters."""
    lease = await door.lease()
    await door.submit(submission_id="train-1")
    await door.model("wind")
    await door.call("alpha.member", "POST", "/v1/services", json={"model": "wind"})
    await door.serve("talk")
    await door.serve("meaning", TEXT_EMBEDDING)
    async with door.client("alpha.member") as client:
        await client.put(f"/api/packages/gcs/{PACKAGE}", content=b"PK")
    return {
        "tenant": "alpha",
        "token_id": "c-alpha-viewer",
        "key_id": "c-alpha-key",
        "lease_id": lease["id"],
        "submission_id": "train-1",
        "ref": "wind",
        "model": "talk",
        "name": "wind",
        "protocol": "gcs",
        "host": "h0",
    }


def fill(path: str, things: dict[str, str], *, package: bool) -> str:
    def value(match: re.Match[str]) -> str:
        return PACKAGE if package and match[1] == "name" else things[match[1]]

    return re.sub(r"{(\w+)}", value, path)


async def call(door: FrontDoor, who: str | None, method: str, path: str, things: dict[str, str]):
    filled = fill(path, things, package="/packages/" in path)
    return filled, await door.call(who, method, filled, json=BODIES.get((method, path)))


async def test_the_document_lists_the_routes_that_the_design_promises(door: FrontDoor):
    paths = {path for _, path in routes(door)}
    for wanted in (
        "/api/version",
        "/api/packages/{protocol}/{name}",
        "/api/jobs/",
        "/api/jobs/{submission_id}",
        "/api/jobs/{submission_id}/stop",
        "/api/jobs/{submission_id}/logs",
        "/api/component_activities",
        "/v1/leases/{lease_id}/extend",
        "/v1/services/{name}/predict",
        CHAT,
        "/v1/usage",
        "/v1/events",
        "/v1/farm",
        "/v1/whoami",
        "/healthz",
    ):
        assert wanted in paths


async def test_another_tenants_thing_is_answered_exactly_as_a_missing_one(door: FrontDoor):
    things = await things_of_alpha(door)
    missing = {name: f"no-such-{name.replace('_', '-')}" for name in things} | {"protocol": "gcs"}
    checked = 0
    for method, path in routes(door):
        if "{" not in path or (method, path) == ("PUT", "/api/packages/{protocol}/{name}"):
            continue  # a PUT writes into the caller's own folder: see the test below
        who = "beta.admin"
        if (method, path) in FOR_OPERATORS:
            continue
        there, theirs = await call(door, who, method, path, things)
        asked = fill(path, missing, package=False)
        nothing = await door.call(who, method, asked, json=BODIES.get((method, path)))
        assert theirs.status_code == nothing.status_code == 404, (method, path, theirs.text)
        parameter = re.findall(r"{(\w+)}", path)[-1]
        name = PACKAGE if "/packages/" in path else things[parameter]
        assert theirs.text.replace(there, asked).replace(name, missing[parameter]) == nothing.text, (
            method,
            path,
        )
        assert set(theirs.headers) == set(nothing.headers)
        checked += 1
    assert checked >= 15


async def test_the_owner_does_reach_the_same_things(door: FrontDoor):
    """The test above would pass on a front door that finds nothing at all."""
    things = await things_of_alpha(door)
    await door.start_service("wind")
    for method, path in routes(door):
        if "{" in path and method == "GET":
            _, answer = await call(door, "alpha.admin", method, path, things)
            assert answer.status_code == 200, (path, answer.text)


async def test_a_package_goes_into_the_tenants_own_folder(door: FrontDoor):
    await things_of_alpha(door)
    async with door.client("beta.member") as client:
        assert (await client.put(f"/api/packages/gcs/{PACKAGE}", content=b"poison")).status_code == 200
    assert await door.context.artifacts.read("tenants", "alpha", "packages", PACKAGE) == b"PK"


async def test_no_token(door: FrontDoor):
    things = await things_of_alpha(door)
    for method, path in routes(door):
        if (method, path) not in OPEN:
            _, answer = await call(door, None, method, path, things)
            assert_refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic Zm9vOmJhcg==",
        "cf_without_scheme",
        "Bearer " + "x" * 5000,
        "Bearer \xe9",
    ],
)
async def test_bad_tokens(door: FrontDoor, header):
    async with door.client() as client:
        answer = await client.get("/v1/leases", headers=[(b"authorization", header.encode("latin-1"))])
    assert_problem(answer, 401, "unauthenticated")


async def test_a_bad_header_is_not_made_good_by_a_cookie(door: FrontDoor):
    async with door.client(None, Cookie=f"cloudfarm-session={door.tokens['alpha.member']}") as client:
        assert (await client.get("/v1/leases")).status_code == 200
        assert (await client.get("/v1/leases", headers={"Authorization": "Bearer wrong"})).status_code == 401


async def test_rays_own_header_is_taken(door: FrontDoor):
    async with door.client(
        None, **{"X-Ray-Authorization": f"Bearer {door.tokens['alpha.member']}"}
    ) as client:
        assert (await client.get("/api/version")).status_code == 200


async def test_a_viewer_may_not_write(door: FrontDoor):
    things = await things_of_alpha(door)
    for method, path in routes(door):
        if method != "GET" and (method, path) not in OPEN | FOR_VIEWERS:
            _, answer = await call(door, "alpha.viewer", method, path, things)
            assert_refused(answer, 403, "forbidden")


async def test_a_member_may_not_manage_tokens_and_an_admin_not_the_farm(door: FrontDoor):
    things = await things_of_alpha(door)
    for method, path in routes(door):
        if path.startswith(("/v1/tokens", "/v1/keys")):
            _, answer = await call(door, "alpha.member", method, path, things)
            assert_problem(answer, 403, "forbidden")
        if (method, path) in FOR_OPERATORS:
            _, answer = await call(door, "alpha.admin", method, path, things)
            assert_problem(answer, 403, "forbidden")


async def test_a_key_opens_the_services_and_nothing_else(door: FrontDoor):
    things = await things_of_alpha(door)
    await door.start_service("wind")
    for method, path in routes(door):
        if (method, path) in OPEN:
            continue
        _, answer = await call(door, "alpha.key", method, path, things)
        if (method, path) in FOR_KEYS:
            assert answer.status_code == 200, answer.text
        else:
            assert_problem(answer, 403, "forbidden")


async def test_an_operator_acts_for_no_tenant(door: FrontDoor):
    for method, path in (("POST", "/api/jobs/"), ("POST", "/v1/leases"), ("POST", "/v1/services")):
        answer = await door.call("operator", method, path, json=BODIES[method, path])
        assert "belongs to no tenant" in assert_problem(answer, 403, "forbidden")["detail"]


async def test_another_tenant_named_in_a_query_or_body_does_not_exist(door: FrontDoor):
    for path in ("/v1/leases", "/v1/services", "/v1/usage", "/v1/events", "/v1/tokens", "/v1/keys"):
        theirs = await door.call("beta.admin", "GET", path, params={"tenant": "alpha"})
        nobody = await door.call("beta.admin", "GET", path, params={"tenant": "nobody"})
        assert_problem(theirs, 404, "not_found")
        assert theirs.text.replace("alpha", "nobody") == nobody.text
    for path, body in (("/v1/tokens", {"user": "eve", "role": "viewer"}), ("/v1/keys", {"user": "eve"})):
        assert_problem(
            await door.call("beta.admin", "POST", path, json={**body, "tenant": "alpha"}), 404, "not_found"
        )


async def test_another_tenants_lease_named_by_a_job_does_not_exist(door: FrontDoor):
    lease = await door.lease("alpha.member", name="ours")
    for fields in (
        {"metadata": {"lease": "{}"}},
        {"entrypoint_label_selector": {"lease": "{}"}},
    ):
        texts = []
        for name in (lease["id"], "ours", "lnothing1"):
            filled = {key: {"lease": name} for key in fields}
            answer = await door.call(
                "beta.member", "POST", "/api/jobs/", json={"entrypoint": "true", **filled}
            )
            assert_problem(answer, 404, "not_found")
            texts.append(answer.text.replace(name, "?"))
        assert len(set(texts)) == 1


async def test_the_log_socket_refuses_as_the_other_routes_do(door: FrontDoor):
    await door.submit(submission_id="train-1")
    cases = [
        (None, "train-1", 401),
        ("alpha.key", "train-1", 403),
        ("beta.member", "train-1", 404),
        ("beta.member", "no-such", 404),
    ]
    texts = {}
    for who, name, status in cases:
        headers = {} if who is None else {"Authorization": f"Bearer {door.tokens[who]}"}
        async with FakeWebSocket(door.app, f"/api/jobs/{name}/logs/tail", headers) as socket:
            start = await socket.receive()
            assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
            texts[who, name] = (await socket.receive())["body"].decode()
    assert texts["beta.member", "train-1"].replace("train-1", "no-such") == texts["beta.member", "no-such"]


async def test_tenants_lists_are_apart(door: FrontDoor):
    await things_of_alpha(door)
    for path in ("/api/jobs/", "/v1/leases", "/v1/services", "/v1/model-versions", "/v1/events"):
        assert (await door.call("beta.admin", "GET", path)).json() == []
        assert (await door.call("alpha.admin", "GET", path)).json() != []
    assert [each["id"] for each in (await door.call("beta.viewer", "GET", "/v1/tenants")).json()] == ["beta"]


async def test_both_tenants_may_use_one_submission_id(door: FrontDoor):
    await door.submit("alpha.member", submission_id="same", entrypoint="echo alpha")
    await door.submit("beta.member", submission_id="same", entrypoint="echo beta")
    assert (await door.call("beta.member", "POST", "/api/jobs/same/stop")).json() == {"stopped": True}
    assert (await door.job("same", "alpha")).target == "RUN"
    await door.move_job("same", JobStatus.STOPPED, tenant="beta")
    assert (await door.call("beta.member", "DELETE", "/api/jobs/same")).json() == {"deleted": True}
    assert (await door.call("alpha.member", "GET", "/api/jobs/same")).json()["entrypoint"] == "echo alpha"
