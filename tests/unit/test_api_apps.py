"""Tenants' own applications behind the front door."""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Message

from cloudfarm.domain.bundles import SERVE_APP
from cloudfarm.errors import AppFailedError
from cloudfarm.raylayer.serve_http import _failed, plain
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_problem

BASE = "/v1/services/sea/app"


def sea() -> FastAPI:
    """Return an ordinary application."""
    app = FastAPI()

    @app.get("/hello")
    def hello(request: Request) -> dict[str, Any]:
        return {"url": str(request.url), "headers": dict(request.headers), "query": request.query_params["q"]}

    @app.post("/echo/")
    async def echo(request: Request) -> Response:
        headers = {"X-Own": "1", "Set-Cookie": "cloudfarm-session=stolen", "Clear-Site-Data": "*"}
        return Response(await request.body(), 207, headers, media_type="text/x-own")

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("secret of the application")

    @app.get("/count")
    async def count(most: int = 3) -> StreamingResponse:
        async def pieces():
            for number in range(most):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0)
            if most > 3:
                await asyncio.Event().wait()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.get("/think")
    async def think() -> None:
        await asyncio.Event().wait()

    return app


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path, max_body_bytes=100_000) as opened:
        await opened.serve("sea", SERVE_APP)
        opened.apps.running["alpha.sea.1"] = sea()
        yield opened


async def test_requests_and_answers_pass(door: FrontDoor):
    answer = await door.call("alpha.key", "GET", f"{BASE}/hello?q=%20a")
    assert answer.status_code == 200, answer.text
    assert answer.json()["url"] == f"http://farm.test{BASE}/hello?q=%20a"
    assert answer.json()["query"] == " a"
    echo = await door.call("alpha.member", "POST", f"{BASE}/echo/", content=b"\x00\xff")
    assert (echo.status_code, echo.content, echo.headers["x-own"]) == (207, b"\x00\xff", "1")
    assert echo.headers["content-type"] == "text/x-own; charset=utf-8"
    assert (await door.call("alpha.key", "GET", f"{BASE}/nothing")).json() == {"detail": "Not Found"}


async def test_the_application_makes_its_own_links(door: FrontDoor):
    redirect = await door.call("alpha.key", "POST", f"{BASE}/echo")
    assert (redirect.status_code, redirect.headers["location"]) == (307, f"http://farm.test{BASE}/echo/")
    assert f"'{BASE}/openapi.json'" in (await door.call("alpha.key", "GET", f"{BASE}/docs")).text
    described = (await door.call("alpha.key", "GET", f"{BASE}/openapi.json")).json()
    assert described["servers"] == [{"url": BASE}]


async def test_no_secret_reaches_the_application_and_no_cookie_comes_from_it(door: FrontDoor):
    async with door.client("alpha.member", Cookie="cloudfarm-session=x; own=y") as client:
        seen = (await client.get(f"{BASE}/hello?q=1")).json()["headers"]
    assert not {"authorization", "cookie"} & set(seen)
    secret = door.tokens["alpha.key"]
    async with door.client(None, **{"X-Ray-Authorization": f"Bearer {secret}", "X-Own": "1"}) as client:
        seen = (await client.get(f"{BASE}/hello?q=1")).json()["headers"]
    assert seen["x-own"] == "1"
    assert secret not in str(door.apps.asked)
    echo = await door.call("alpha.key", "POST", f"{BASE}/echo/")
    assert not {"set-cookie", "clear-site-data"} & set(echo.headers)


async def test_a_browsers_session_does_not_open_applications(door: FrontDoor):
    async with door.client(None, Cookie=f"cloudfarm-session={door.tokens['alpha.member']}") as client:
        assert_problem(await client.get(f"{BASE}/hello?q=1"), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("who", "status", "code"),
    [
        (None, 401, "unauthenticated"),
        ("beta.key", 404, "not_found"),
        ("beta.member", 404, "not_found"),
        ("alpha.viewer", 403, "forbidden"),
    ],
)
async def test_who_may_not_call_does_not_reach_the_application(door: FrontDoor, who, status, code):
    assert_problem(await door.call(who, "GET", f"{BASE}/hello?q=1"), status, code)
    assert door.apps.asked == []


async def test_each_way_of_asking_is_for_its_own_kind(door: FrontDoor):
    await door.model("wind")
    await door.call("alpha.member", "POST", "/v1/services", json={"model": "wind", "gpus": 0.25})
    await door.start_service("wind")
    assert_problem(await door.call("alpha.key", "GET", "/v1/services/wind/app/"), 422, "invalid_input")
    predicted = await door.call("alpha.key", "POST", "/v1/services/sea/predict", json={})
    assert "/v1/services/sea/app/" in assert_problem(predicted, 422, "invalid_input")["detail"]


async def test_an_application_that_fails_answers_for_itself(door: FrontDoor):
    answer = await door.call("alpha.key", "GET", f"{BASE}/boom")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


async def test_an_application_without_an_answer_has_failed(door: FrontDoor):
    async def silent(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    async def raising(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError("secret of the application")

    for app in (silent, raising):
        door.apps.running["alpha.sea.1"] = app
        answer = await door.call("alpha.key", "GET", f"{BASE}/")
        assert "secret" not in assert_problem(answer, 502, "app_failed")["detail"]
    del door.apps.running["alpha.sea.1"]
    assert_problem(await door.call("alpha.key", "GET", f"{BASE}/"), 503, "no_replica")


START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.body", "body": b""},
        {"type": "websocket.accept"},
        {**START, "status": "200"},
        {**START, "headers": [("a", "b")]},
        {**START, "headers": [(b"a",)]},
        {**START, "headers": None},
    ],
)
async def test_what_is_no_answer_is_not_sent_on(door: FrontDoor, message):
    async def odd(_scope: Any, _receive: Any, send: Any) -> None:
        await send(message)
        await send({"type": "http.response.body", "body": b""})

    door.apps.running["alpha.sea.1"] = odd
    assert_problem(await door.call("alpha.key", "GET", f"{BASE}/"), 502, "app_failed")


class Client:
    """A client that takes messages one by one and may go away."""

    def __init__(self, door: FrontDoor, path: str, who: str = "alpha.key") -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.left = asyncio.Event()
        headers = [(b"authorization", f"Bearer {door.tokens[who]}".encode())]
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": headers,
        }
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("farm.test", 80), "client": ("::1", 5)}
        self.answering = asyncio.create_task(door.app(scope, self._receive, self.sent.put))
        self._asked = False

    async def _receive(self) -> Message:
        if self._asked:
            await self.left.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}


async def until_true(look: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not look():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0)


async def test_pieces_come_as_they_are_made(door: FrontDoor):
    client = Client(door, f"{BASE}/count?most=4")
    pieces = [(await client.sent.get()) for _ in range(5)]
    assert [each.get("body") for each in pieces[1:]] == [b"data: %d\n\n" % number for number in range(4)]
    assert not client.answering.done()
    client.left.set()
    await client.answering


@pytest.mark.parametrize("path", ["/count?most=4", "/think"])
async def test_a_client_that_goes_away_ends_the_work(door: FrontDoor, path):
    client = Client(door, BASE + path)
    await until_true(lambda: door.apps.under_way)
    ((_, use),) = door.meter.uses
    client.left.set()
    await client.answering
    assert (door.apps.under_way, use.ended) == (0, True)


async def test_an_answer_that_breaks_off_is_cut_off(door: FrontDoor):
    async def half(_scope: Any, _receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("secret of the application")

    door.apps.running["alpha.sea.1"] = half
    client = Client(door, f"{BASE}/")
    await client.answering
    sent = [client.sent.get_nowait() for _ in range(client.sent.qsize())]
    assert [(each["type"], each.get("more_body")) for each in sent] == [
        ("http.response.start", None),
        ("http.response.body", True),
    ]


async def test_requests_are_counted(door: FrontDoor):
    await door.call("alpha.key", "GET", f"{BASE}/hello?q=1")
    ((_, use),) = door.meter.uses
    assert use.ended


async def test_bodies_are_limited(door: FrontDoor):
    assert_problem(
        await door.call("alpha.key", "POST", f"{BASE}/echo/", content=b"x" * 100_001), 413, "too_large"
    )


async def test_the_method_is_the_one_that_was_asked(door: FrontDoor):
    await door.call("alpha.key", "HEAD", f"{BASE}/hello?q=1")
    await door.call("alpha.key", "OPTIONS", f"{BASE}/hello?q=1")
    assert [scope["method"] for _, scope, _ in door.apps.asked] == ["HEAD", "OPTIONS"]


def test_answers_are_read_without_running_what_is_in_them():
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("run in the front door",)

    assert plain(pickle.dumps([START])) == [START]
    for answer in ([Evil()], [{"type": "a", "body": Evil()}], [1], {"type": 1}, None, [{}]):
        with pytest.raises(AppFailedError):
            plain(pickle.dumps(answer))
    with pytest.raises(AppFailedError):
        plain(b"no pickle")


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (grpc.StatusCode.UNKNOWN, "service sea failed; its log says why"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "service sea is more than 64 MiB ahead of its client"),
    ],
)
def test_why_an_application_lost_its_client(status, why):
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(status, nothing, nothing, details="secret of the application")
    assert str(_failed("alpha.sea.1", error)) == why
