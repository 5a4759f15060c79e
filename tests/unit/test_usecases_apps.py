"""Registering applications of one's own, over HTTP and by the command line."""

import sys

import httpx
import pytest

from cloudfarm import cli
from cloudfarm.cli import services
from cloudfarm.client import FarmClient
from cloudfarm.raylayer import upload
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

PACKAGE = "_ray_pkg_0123456789abcdef.zip"


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        async with opened.client("alpha.member") as client:
            await client.put(f"/api/packages/gcs/{PACKAGE}", content=b"PK")
        yield opened


async def register(door: FrontDoor, who: str = "alpha.member", **body):
    return await door.call(who, "POST", "/v1/apps", json={"import_path": "main:app", **body})


async def test_an_application_is_registered_in_versions(door: FrontDoor):
    env = {"working_dir": f"gcs://{PACKAGE}", "env_vars": {"MODE": "fast"}}
    made = await register(door, name="sea", runtime_env=env, args={"size": 3})
    assert made.status_code == 201, made.text
    body = made.json()
    assert body["ref"] == "sea:1"
    spec = {"import_path": "main:app", "runtime_env": env, "args": {"size": 3}}
    assert body["manifest"] == {"kind": "serve-app", "spec": spec}
    assert (await register(door, name="sea", runtime_env=env, args={"size": 3})).json() == body
    assert (await register(door, name="sea", runtime_env=env)).json()["ref"] == "sea:2"
    listed = (await door.call("alpha.viewer", "GET", "/v1/model-versions")).json()
    assert [each["ref"] for each in listed] == ["sea:1", "sea:2"]
    events = (await door.call("alpha.viewer", "GET", "/v1/events")).json()
    assert [each["kind"] for each in events].count("app.registered") == 2


@pytest.mark.parametrize(
    ("import_path", "name"),
    [("main:app", "main"), ("pkg.my_sea:build.it", "my-sea"), ("_private:app", "private")],
)
async def test_it_is_named_by_its_module(door: FrontDoor, import_path, name):
    assert (await register(door, import_path=import_path)).json()["name"] == name


@pytest.mark.parametrize(
    "import_path",
    [
        "main",
        "main:",
        ":app",
        "a/b:app",
        "main:app; rm",
        "main:app\n",
        "é:a",
        "m:" + "a" * 300,
    ],
)
async def test_a_path_that_leads_nowhere_is_refused(door: FrontDoor, import_path):
    assert_problem(await register(door, import_path=import_path), 422, "invalid_input")


async def test_what_a_job_may_not_bring_an_application_may_not_either(door: FrontDoor):
    assert_problem(await register(door, runtime_env={"image_uri": "x"}), 422, "forbidden_key")
    assert_problem(await register(door, runtime_env={"env_vars": {"RAY_ADDRESS": "x"}}), 422, "forbidden_key")
    missing = {"working_dir": "gcs://_ray_pkg_ffffffffffffffff.zip"}
    assert_problem(await register(door, runtime_env=missing), 404, "not_found")
    theirs = {"working_dir": f"gcs://{PACKAGE}"}
    assert_problem(await register(door, "beta.member", runtime_env=theirs), 404, "not_found")
    assert (await door.call("alpha.viewer", "GET", "/v1/model-versions")).json() == []


async def test_a_models_name_is_taken(door: FrontDoor):
    await door.model("wind")
    assert_problem(await register(door, name="wind"), 409, "already_exists")
    assert_problem(await register(door, name="Wind!"), 422, "invalid_input")


async def test_an_application_is_deployed_on_one_lease(door: FrontDoor):
    await register(door, name="sea")
    body = {"model": "sea", "gpus": 0.5}
    refused = await door.call("alpha.member", "POST", "/v1/services", json={**body, "replicas": 2})
    assert "one lease" in assert_problem(refused, 422, "invalid_input")["detail"]
    assert (await door.call("alpha.member", "POST", "/v1/services", json=body)).status_code == 201
    grown = await door.call("alpha.member", "PATCH", "/v1/services/sea", json={"max_replicas": 2})
    assert "one lease" in assert_problem(grown, 422, "invalid_input")["detail"]
    asleep = await door.call("alpha.member", "PATCH", "/v1/services/sea", json={"min_replicas": 0})
    assert asleep.status_code == 200, asleep.text
    async with door.store.begin(write=False) as uow:
        (revision,) = await uow.revisions.list(open_only=True)
    assert revision.is_own_app


async def test_jobs_publish_no_applications(door: FrontDoor):
    async with door.store.begin() as uow:
        manifest = {"kind": "serve-app", "spec": {"runtime_env": {"image_uri": "x"}}}
        await uow.models.register(
            tenant="alpha", name="sly", uri="/sly", job_id="j1", manifest=manifest, now_ms=1
        )
        await uow.commit()
    refused = await door.call("alpha.member", "POST", "/v1/services", json={"model": "sly"})
    assert "--app" in assert_problem(refused, 422, "invalid_input")["detail"]


def run(monkeypatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cloudfarm", *args])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def farm(monkeypatch):
    """What is sent to a farm that takes everything."""
    sent: list[tuple[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.path, request.read()))
        return httpx.Response(201, json={"ref": "sea:4", "name": "sea", "revisions": []})

    client = FarmClient("http://farm", "cf_x", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(services, "connect", lambda: client)

    def uploaded(url: str, authorization: str, env: dict[str, str]) -> dict[str, str]:
        assert (url, authorization) == ("http://farm", "Bearer cf_x")
        return {**env, "working_dir": f"gcs://of{env['working_dir']}"}

    monkeypatch.setattr(upload, "upload_folders", uploaded)
    return sent


def test_an_application_is_uploaded_registered_and_deployed(monkeypatch, farm):
    extra = ("--runtime-env-json", '{"pip": ["x"]}')
    assert (
        run(monkeypatch, "deploy", "--app", "main:app", "--working-dir", "src", "--gpus", "0.5", *extra) == 0
    )
    (first, app), (second, service) = farm
    assert (first, second) == ("/v1/apps", "/v1/services")
    assert b'"working_dir":"gcs://ofsrc"' in app
    assert b'"pip":["x"]' in app
    assert b'"import_path":"main:app"' in app
    assert b'"model":"sea:4"' in service
    assert b'"name":"sea"' in service
    assert b'"gpus":"0.5"' in service


@pytest.mark.parametrize("args", [(), ("wind", "--app", "main:app")])
def test_either_a_model_or_an_application_is_deployed(monkeypatch, farm, args):
    assert run(monkeypatch, "deploy", *args) == 2
    assert farm == []


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_a_runtime_env_that_is_no_object_is_refused(monkeypatch, farm, text):
    assert run(monkeypatch, "deploy", "--app", "main:app", "--runtime-env-json", text) == 1
    assert farm == []
