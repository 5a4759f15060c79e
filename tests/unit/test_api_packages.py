"""Uploads: each tenant's own folder, whole or not at all, within the limit."""

import pytest

from cloudfarm.errors import StorageFullError
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

NAME = "_ray_pkg_0123456789abcdef.zip"
URL = f"/api/packages/gcs/{NAME}"


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path, max_package_bytes=10_000, max_body_bytes=1024) as opened:
        yield opened


async def put(door: FrontDoor, content, url: str = URL):
    async with door.client("alpha.member") as client:
        return await client.put(url, content=content)


async def stored(door: FrontDoor) -> list[str]:
    return list(await door.context.artifacts.list("tenants", "alpha", "packages"))


async def test_upload_and_find(door: FrontDoor):
    assert_problem(await door.call("alpha.viewer", "GET", URL), 404, "not_found")
    assert (await put(door, b"x" * 9_000)).status_code == 200  # over the limit of other bodies
    assert (await door.call("alpha.viewer", "GET", URL)).status_code == 200
    assert_problem(await door.call("beta.viewer", "GET", URL), 404, "not_found")


@pytest.mark.parametrize("announced", [True, False])
async def test_too_large_is_refused_while_it_streams_and_leaves_nothing(door: FrontDoor, announced):
    read = 0

    async def chunks():
        nonlocal read
        for _ in range(20):
            read += 1
            yield b"x" * 1000

    answer = await put(door, b"x" * 20_000 if announced else chunks())
    assert_problem(answer, 413, "too_large")
    assert await stored(door) == []
    if not announced:
        assert read == 20  # read to its end, so that the client gets to see the answer


async def test_full_disk_leaves_nothing(door: FrontDoor, monkeypatch):
    async def full(*_, **__):
        raise StorageFullError

    monkeypatch.setattr(type(door.context.artifacts), "write", full)
    assert_problem(await put(door, b"x"), 507, "storage_full")
    assert await stored(door) == []


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd.zip",
        "a%00.zip",
        ".hidden.zip",
        "-rf.zip",
        "pkg.jar",
        "pkg.tar.gz",
        "pkg",
        "p k g.zip",
        "%F0%9F%92%A9.zip",
        "%ff.zip",
        "a%0Ab.zip",
        "x" * 300 + ".zip",
        "%252e%252e%252fa.zip",
    ],
)
async def test_names_that_are_no_names(door: FrontDoor, name):
    answer = await put(door, b"x", f"/api/packages/gcs/{name}")
    assert answer.status_code in (404, 422), answer.text
    assert_problem(answer, answer.status_code, answer.headers["x-cloudfarm-error"])
    assert_problem(await door.call("alpha.viewer", "GET", f"/api/packages/gcs/{name}"), 404, "not_found")
    assert await stored(door) == []


async def test_only_the_protocol_that_clients_upload_to(door: FrontDoor):
    for protocol in ("s3", "file", "https", "local"):
        assert_problem(await put(door, b"x", f"/api/packages/{protocol}/{NAME}"), 422, "invalid_input")
        assert_problem(
            await door.call("alpha.viewer", "GET", f"/api/packages/{protocol}/{NAME}"), 404, "not_found"
        )


async def test_a_job_may_use_only_what_its_tenant_uploaded(door: FrontDoor):
    await put(door, b"x")
    job = {"entrypoint": "true", "runtime_env": {"working_dir": f"gcs://{NAME}"}}
    assert (await door.call("alpha.member", "POST", "/api/jobs/", json=job)).status_code == 200
    answer = await door.call("beta.member", "POST", "/api/jobs/", json=job)
    assert "has not been uploaded" in assert_problem(answer, 422, "invalid_input")["detail"]
