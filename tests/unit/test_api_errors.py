"""Every way to be refused leaves in the one shape: see ``assert_problem``, whose docstring specifies it."""

import asyncio

import httpx
import pytest

from cloudfarm.api import middleware
from cloudfarm.errors import UnavailableError
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem, assert_refused
from cloudfarm.usecases import usage


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path, max_body_bytes=2048) as opened:
        yield opened


async def test_unknown_path(door: FrontDoor):
    assert_problem(await door.call(None, "GET", "/v1/nothing"), 404, "not_found")
    assert_problem(await door.call(None, "GET", "/nothing/%00/..%2f"), 404, "not_found")


async def test_unknown_path_below_api_is_readable_text(door: FrontDoor):
    answer = await door.call("alpha.member", "GET", "/api/nothing")
    assert answer.headers["content-type"].startswith("text/plain")
    assert_problem(answer, 404, "not_found")


async def test_json_is_given_below_api_to_those_who_ask(door: FrontDoor):
    async with door.client("alpha.member", Accept="application/json") as client:
        answer = await client.get("/api/jobs/nothing")
    assert answer.headers["content-type"] == "application/problem+json"
    assert_problem(answer, 404, "not_found")


async def test_wrong_method(door: FrontDoor):
    answer = await door.call("alpha.member", "PUT", "/v1/leases")
    assert_problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"nul", b'{"gpus": }', b"\xff\xfe", b'"text"', b"[]", b"1" * 1900, b"[" * 1900],
)
async def test_broken_json(door: FrontDoor, body):
    async with door.client("alpha.member") as client:
        answer = await client.post("/v1/leases", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert_problem(answer, answer.status_code, answer.headers["x-cloudfarm-error"])


async def test_validation_names_the_place_and_not_the_value(door: FrontDoor):
    answer = await door.call("alpha.admin", "POST", "/v1/tokens", json={"user": 5, "role": "king-of-secrets"})
    body = assert_problem(answer, 422, "invalid_input")
    assert {each["where"] for each in body["errors"]} == {"body.user", "body.role"}
    assert "king-of-secrets" not in answer.text


async def test_misspelt_member_is_refused(door: FrontDoor):
    answer = await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "1", "huors": 3})
    assert "huors" in assert_problem(answer, 422, "invalid_input")["detail"]


async def test_body_over_the_limit_with_its_length_announced(door: FrontDoor):
    answer = await door.call("alpha.member", "POST", "/v1/leases", json={"gpus": "1" * 3000})
    assert assert_problem(answer, 413, "too_large")["max_bytes"] == 2048


async def test_body_over_the_limit_without_a_length(door: FrontDoor):
    async def chunks():
        for _ in range(10):
            yield b"x" * 1000

    async with door.client("alpha.member") as client:
        answer = await client.post("/v1/leases", content=chunks())
    assert "content-length" not in answer.request.headers
    assert_problem(answer, 413, "too_large")


@pytest.mark.parametrize("path", ["/v1/leases", "/v1/chat/completions"])
async def test_a_body_that_does_not_come(door: FrontDoor, monkeypatch, path):
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.01)

    async def chunks():
        yield b"{"
        await asyncio.Event().wait()

    async with door.client("alpha.member") as client:
        assert_refused(await client.post(path, content=chunks()), 408, "too_slow")


async def test_body_at_the_limit_is_read(door: FrontDoor):
    async with door.client("alpha.member") as client:
        answer = await client.post("/v1/leases", json={"gpus": "1", "name": "n" * (2048 - 40)})
    assert len(answer.request.content) <= 2048
    assert_problem(answer, 422, "invalid_input")


async def test_unexpected_exception_shows_nothing_and_is_logged_with_its_incident(
    door: FrontDoor, monkeypatch, caplog
):
    def broken(*_, **__):
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(door.store, "begin", broken)
    for path in ("/v1/leases", "/api/jobs/"):
        answer = await door.call("alpha.member", "GET", path)
        assert_problem(answer, 500, "internal")
        assert "hunter2" not in answer.text
    body = assert_problem(await door.call("alpha.member", "GET", "/v1/leases"), 500, "internal")
    assert body["incident"] in body["detail"]
    assert f"incident {body['incident']}" in caplog.text
    assert "hunter2" in caplog.text


async def test_a_mistake_in_an_answer_is_told_to_operators(door: FrontDoor, monkeypatch):
    async def broken(*_, **__):
        raise RuntimeError("password=hunter2")

    with monkeypatch.context() as mistaken:
        mistaken.setattr(usage, "statement", broken)
        for _ in range(2):
            assert_problem(await door.call("alpha.member", "GET", "/v1/usage"), 500, "internal")
    (told,) = (await door.call("operator", "GET", "/v1/farm")).json()["troubles"]
    assert told["message"].startswith("answering a request: RuntimeError at ")
    assert "hunter2" not in told["message"]


async def test_unavailable_store_says_when_to_retry(door: FrontDoor, monkeypatch):
    def down(*_, **__):
        raise UnavailableError("the store does not answer", status=1, type="about:evil", extra=3)

    monkeypatch.setattr(door.store, "begin", down)
    body = assert_problem(await door.call(None, "GET", "/healthz"), 503, "unavailable")
    assert body["extra"] == 3  # and its data did not replace a standard member


async def test_secrets_are_not_logged(door: FrontDoor, caplog):
    caplog.set_level("DEBUG")
    await door.call("alpha.member", "GET", "/v1/nothing")
    answer = await door.call("alpha.admin", "POST", "/v1/tokens", json={"user": "eve", "role": "viewer"})
    await door.call("beta.key", "GET", "/v1/leases")
    for secret in (door.tokens["alpha.member"], door.tokens["beta.key"], answer.json()["secret"]):
        assert secret not in caplog.text


async def test_every_answer_has_security_headers(door: FrontDoor):
    for answer in (await door.call(None, "GET", "/healthz"), await door.call(None, "GET", "/v1/leases")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_head_answers_as_get_without_a_body(door: FrontDoor):
    head = await door.call("alpha.member", "HEAD", "/v1/leases")
    get = await door.call("alpha.member", "GET", "/v1/leases")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert (await door.call("alpha.member", "HEAD", "/v1/leases/none")).status_code == 404


async def test_options_lists_the_methods_and_offers_nothing_to_other_origins(door: FrontDoor):
    async with door.client(None, Origin="https://evil.example") as client:
        answer = await client.options("/v1/leases", headers={"Access-Control-Request-Method": "POST"})
    assert answer.status_code == 204
    assert "POST" in answer.headers["allow"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_trailing_slashes_do_not_redirect_with_a_token(door: FrontDoor):
    answer = await door.call("alpha.member", "GET", "/v1/leases/")
    assert isinstance(answer, httpx.Response)
    assert answer.status_code == 404
