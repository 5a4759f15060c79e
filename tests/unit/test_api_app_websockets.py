"""WebSockets to tenants' own applications behind the front door."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from cloudfarm.api import app_websocket
from cloudfarm.domain.bundles import SERVE_APP
from cloudfarm.errors import NotFoundError, TooManyError, UnavailableError
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import FakeWebSocket

BASE = "/v1/services/sea/app"
NAME = "alpha.sea.1"


class Sea:
    """An ordinary application, and what it has seen of its clients."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.left: list[int] = []
        self.cancelled = asyncio.Event()
        self.app.websocket("/echo")(self.echo)
        self.app.websocket("/closed")(self.closed)
        self.app.websocket("/private")(self.private)
        self.app.websocket("/full")(self.full)
        self.app.websocket("/stubborn")(self.stubborn)

    async def echo(self, socket: WebSocket) -> None:
        offered = socket.scope["subprotocols"]
        await socket.accept(offered[-1] if offered else None, [(b"x-own", b"1"), (b"set-cookie", b"a=b")])
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    self.left.append(message["code"])
                    return
                if message.get("text") == "boom":
                    raise RuntimeError("secret of the application")
                if message.get("text") == "end":
                    return
                await socket.send({**message, "type": "websocket.send"})
        except WebSocketDisconnect as error:
            self.left.append(error.code)

    async def closed(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(4001, "that is all")
        self.left.append((await socket.receive())["code"])

    async def private(self, socket: WebSocket) -> None:
        raise WebSocketException(4003 if socket.scope["type"] == "websocket" else 4004)

    async def full(self, socket: WebSocket) -> None:
        await socket.send_denial_response(
            PlainTextResponse("full up", 418, {"X-Own": "1", "Set-Cookie": "a=b"})
        )

    async def stubborn(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.fixture
def sea() -> Sea:
    return Sea()


@pytest.fixture
async def door(tmp_path, sea) -> AsyncIterator[FrontDoor]:
    async with open_front_door(tmp_path) as opened:
        await opened.serve("sea", SERVE_APP)
        opened.apps.running[NAME] = sea.app
        yield opened


def client(
    door: FrontDoor, path: str, who: str | None = "alpha.key", *offered: str, **headers: str
) -> FakeWebSocket:
    if who is not None:
        headers["Authorization"] = f"Bearer {door.tokens[who]}"
    return FakeWebSocket(door.app, BASE + path, headers, offered)


async def accepted(socket: FakeWebSocket) -> dict[str, Any]:
    message = await socket.receive()
    assert message["type"] == "websocket.accept", message
    return message


async def refused(socket: FakeWebSocket, status: int) -> bytes:
    start, body = await socket.receive(), await socket.receive()
    assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
    await socket.ended()
    return body["body"]


async def test_messages_pass_both_ways(door: FrontDoor, sea: Sea):
    async with client(door, "/echo", "alpha.key", "v1", "v2") as socket:
        accept = await accepted(socket)
        assert (accept["subprotocol"], accept["headers"]) == ("v2", [(b"x-own", b"1")])
        for data in ({"text": "wind"}, {"bytes": b"\x00\xff"}, {"text": ""}, {"bytes": b""}):
            socket.send(**data)
            assert await socket.receive() == {"type": "websocket.send", **data}
        await socket.go(4321)
    assert sea.left == [4321]


async def test_the_application_is_told_of_the_request_but_not_of_secrets(door: FrontDoor):
    headers = {"Cookie": "cloudfarm-session=x", "X-Own": "1", "X-Ray-Authorization": "Bearer y"}
    async with client(door, "/echo", "alpha.key", "v1", **headers) as socket:
        await accepted(socket)
    ((name, scope, _),) = door.apps.asked
    assert name == NAME
    assert (scope["type"], scope["path"], scope["root_path"]) == ("websocket", f"{BASE}/echo", BASE)
    assert scope["subprotocols"] == ["v1"]
    assert [key for key, _ in scope["headers"]] == [b"x-own"]
    assert door.tokens["alpha.key"] not in str(scope)


async def test_the_applications_close_reaches_the_client(door: FrontDoor, sea: Sea):
    async with client(door, "/closed") as socket:
        await accepted(socket)
        assert await socket.receive() == {"type": "websocket.close", "code": 4001, "reason": "that is all"}
        await socket.ended()
    assert sea.left == [4001]


async def test_an_application_that_just_ends_closes(door: FrontDoor):
    async with client(door, "/echo") as socket:
        await accepted(socket)
        socket.send(text="end")
        assert await socket.receive() == {"type": "websocket.close", "code": 1000, "reason": ""}


async def test_an_application_may_refuse(door: FrontDoor):
    async with client(door, "/private") as socket:
        assert await socket.receive() == {"type": "websocket.close", "code": 4003, "reason": ""}
    async with client(door, "/full") as socket:
        start, body = await socket.receive(), await socket.receive()
    headers = dict(start["headers"])
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 418)
    assert (headers[b"x-own"], b"set-cookie" in headers, body["body"]) == (b"1", False, b"full up")


@pytest.mark.parametrize(
    ("who", "status", "code"),
    [
        (None, 401, b"unauthenticated"),
        ("beta.key", 404, b"not_found"),
        ("beta.member", 404, b"not_found"),
        ("alpha.viewer", 403, b"forbidden"),
    ],
)
async def test_who_may_not_call_does_not_reach_the_application(door: FrontDoor, who, status, code):
    async with client(door, "/echo", who) as socket:
        assert code in await refused(socket, status)
    assert door.apps.asked == []


async def test_a_browsers_session_does_not_open_applications(door: FrontDoor):
    cookie = {"Cookie": f"cloudfarm-session={door.tokens['alpha.member']}", "Origin": "http://farm.test"}
    async with client(door, "/echo", None, **cookie) as socket:
        await refused(socket, 401)


async def test_other_services_have_no_application(door: FrontDoor):
    await door.model("wind")
    await door.call("alpha.member", "POST", "/v1/services", json={"model": "wind", "gpus": 0.25})
    await door.start_service("wind")
    headers = {"Authorization": f"Bearer {door.tokens['alpha.key']}"}
    async with FakeWebSocket(door.app, "/v1/services/wind/app/", headers) as socket:
        assert b"/v1/services/wind/predict" in await refused(socket, 422)


async def test_an_open_websocket_is_one_request_as_long_as_it_is_open(door: FrontDoor):
    async with client(door, "/echo") as socket:
        await accepted(socket)
        ((route, use),) = door.meter.uses
        assert (route.key_id, use.ended) == ("c-alpha-key", False)
        assert door.app.state.calls.open.open == 1
        assert door.app.state.loads.report().loads[route.service.id].peak == 1
        await socket.go()
        assert (use.ended, door.app.state.calls.open.open) == (True, 0)


async def test_limits_hold(door: FrontDoor):
    door.meter.limit = TooManyError("no more", retry_after_s=7)
    async with client(door, "/echo") as socket:
        start = await socket.receive()
        assert (start["status"], dict(start["headers"])[b"retry-after"]) == (429, b"7")
    assert door.apps.asked == []


async def test_no_more_are_open_at_once_than_requests(tmp_path, sea: Sea):
    async with open_front_door(tmp_path, max_open_requests_of_key=1) as door:
        await door.serve("sea", SERVE_APP)
        door.apps.running[NAME] = sea.app
        async with client(door, "/echo") as first:
            await accepted(first)
            async with client(door, "/echo") as second:
                assert b"too_many" in await refused(second, 429)
        async with client(door, "/echo") as third:
            await accepted(third)


async def test_an_application_that_fails_ends_cleanly(door: FrontDoor):
    async with client(door, "/echo") as socket:
        await accepted(socket)
        socket.send(text="boom")
        close = await socket.receive()
        assert (close["type"], close["code"]) == ("websocket.close", 1011)
        assert "secret" not in close["reason"]
        assert "sea" in close["reason"]


async def test_a_replica_that_is_lost_ends_cleanly(door: FrontDoor, monkeypatch):
    async def lost(_app_name: str, _scope: Any, _receive: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"type": "websocket.accept"}
        raise UnavailableError("service sea does not answer just now" + "é" * 100)

    monkeypatch.setattr(type(door.apps), "converse", lambda _self, *args: lost(*args))
    async with client(door, "/echo") as socket:
        await accepted(socket)
        close = await socket.receive()
        assert (close["code"], close["reason"][:12]) == (1012, "service sea ")
        assert len(close["reason"].encode()) <= 123


async def test_what_fails_before_it_has_begun_is_refused_by_status(door: FrontDoor):
    async def silent(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    async def raising(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError("secret of the application")

    for app in (silent, raising):
        door.apps.running[NAME] = app
        async with client(door, "/echo") as socket:
            body = await refused(socket, 502)
        assert b"app_failed" in body
        assert b"secret" not in body
    del door.apps.running[NAME]
    async with client(door, "/echo") as socket:
        await refused(socket, 503)


def saying(*messages: dict[str, Any]) -> ASGIApp:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
        while (await receive())["type"] != "websocket.disconnect":
            pass

    return app


ACCEPT = {"type": "websocket.accept"}
REFUSAL = {"type": "websocket.http.response.start", "status": 403, "headers": []}


async def test_what_is_no_beginning_is_not_sent_on(door: FrontDoor):
    piece = {"type": "websocket.http.response.body", "body": b"x" * 600_000, "more_body": True}
    for messages in (
        [{"type": "websocket.send", "text": "too early"}],
        [{**ACCEPT, "subprotocol": "never offered"}],
        [{**ACCEPT, "headers": [("a", "b")]}],
        [{**ACCEPT, "headers": [(b"a", b"b\r\nc: d")]}],
        [{**REFUSAL, "status": 101}],
        [{**REFUSAL, "status": "403"}],
        [REFUSAL, {"type": "websocket.accept"}],
        [REFUSAL, {"type": "websocket.http.response.body", "body": "text"}],
        [REFUSAL, piece, piece],
    ):
        door.apps.running[NAME] = saying(*messages)
        async with client(door, "/") as socket:
            assert b"app_failed" in await refused(socket, 502), messages
        assert door.apps.under_way == 0


async def test_what_is_no_message_is_not_sent_on(door: FrontDoor):
    for message in (
        ACCEPT,
        {"type": "websocket.send"},
        {"type": "websocket.send", "text": b"bytes"},
        {"type": "websocket.send", "bytes": "text"},
        {"type": "websocket.send", "text": "half a pair \ud800"},
        {"type": "websocket.close", "code": 1005},
        {"type": "websocket.close", "code": 99},
        {"type": "websocket.close", "code": []},
        {"type": "websocket.close", "reason": "x" * 124},
        {"type": "websocket.close", "reason": 5},
    ):
        door.apps.running[NAME] = saying(ACCEPT, message)
        async with client(door, "/") as socket:
            await accepted(socket)
            assert (await socket.receive())["code"] == 1011, message
            await socket.ended()
        assert door.apps.under_way == 0


async def test_the_handshake_is_the_front_doors_own(door: FrontDoor):
    headers = [
        (b"Sec-WebSocket-Accept", b"x"),
        (b"Sec-WebSocket-Protocol", b"x"),
        (b"Upgrade", b"x"),
        (b"A", b"b"),
    ]
    door.apps.running[NAME] = saying({**ACCEPT, "headers": headers})
    async with client(door, "/") as socket:
        assert (await accepted(socket))["headers"] == [(b"a", b"b")]


async def test_an_application_that_does_not_see_that_its_client_left_is_cancelled(
    door: FrontDoor, sea: Sea, monkeypatch
):
    monkeypatch.setattr(app_websocket, "LEAVE_S", 0.01)
    async with client(door, "/stubborn") as socket:
        await accepted(socket)
    assert sea.cancelled.is_set()
    assert (door.apps.under_way, door.app.state.calls.open.open) == (0, 0)


async def test_an_application_that_goes_on_after_it_has_closed_is_cancelled(door: FrontDoor, monkeypatch):
    said, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_scope: Any, _receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await said.wait()
        await send({"type": "websocket.close", "code": 4001})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(app_websocket, "LEAVE_S", 0.01)
    door.apps.running[NAME] = endless
    async with client(door, "/") as socket:
        await accepted(socket)
        for _ in range(10):  # before which it is not seen that the connection is closed
            socket.send(text="x")
        said.set()
        assert (await socket.receive())["code"] == 4001
        await socket.ended()
    assert cancelled.is_set()


async def test_a_client_that_leaves_before_it_is_let_in_is_seen(door: FrontDoor, monkeypatch):
    thinking, cancelled = asyncio.Event(), asyncio.Event()

    async def thoughtful(_scope: Any, _receive: Any, _send: Any) -> None:
        thinking.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(app_websocket, "LEAVE_S", 0.01)
    door.apps.running[NAME] = thoughtful
    async with client(door, "/"):
        await asyncio.wait_for(thinking.wait(), 10)
    assert cancelled.is_set()


async def test_what_the_application_does_not_take_is_not_read(door: FrontDoor):
    async with client(door, "/stubborn") as socket, client(door, "/echo") as other:
        await accepted(socket)
        await accepted(other)
        for _ in range(10):
            socket.send(text="x")
        for _ in range(10):
            other.send(text="wind")
            assert (await other.receive())["text"] == "wind"
        # One more is in the hand of whoever reads.
        assert socket.unread == 10 - app_websocket.READ_AHEAD - 1
        socket.cancel()  # as a server that is shut down does
        with pytest.raises(asyncio.CancelledError):
            await socket.ended()
    assert door.apps.under_way == 0


async def test_a_client_that_takes_nothing_counts_as_gone(door: FrontDoor, sea: Sea, monkeypatch):
    monkeypatch.setattr(app_websocket, "STALL_S", 0.02)
    async with client(door, "/echo") as socket:
        await accepted(socket)
        socket.stall()
        socket.send(text="wind")
        await socket.ended()
    assert (door.apps.under_way, door.meter.uses[0][1].ended) == (0, True)


async def test_a_key_that_is_revoked_closes_what_it_has_open(door: FrontDoor):
    async with client(door, "/echo") as socket:
        await accepted(socket)
        socket.send(text="wind")
        assert (await socket.receive())["text"] == "wind"
        async with door.store.begin() as uow:
            await uow.credentials.revoke("c-alpha-key", door.clock.now_ms())
            await uow.commit()
        await door.meter.step()
        close = await socket.receive()
        assert (close["type"], close["code"]) == ("websocket.close", 1008)
    assert door.apps.under_way == 0


async def test_a_service_that_a_key_may_call_no_more_closes_what_it_has_open(door: FrontDoor, monkeypatch):
    async def missing(_self: Any, _secret: Any, _name: Any) -> None:
        raise NotFoundError("there is no service sea")

    monkeypatch.setattr(app_websocket, "STALL_S", 0.02)
    monkeypatch.setattr(type(door.app.state.calls.gate), "check", missing)
    async with client(door, "/echo") as socket:
        await accepted(socket)
        close = await socket.receive()
        assert (close["type"], close["code"]) == ("websocket.close", 1008)


async def test_a_store_that_does_not_answer_closes_nothing(door: FrontDoor, monkeypatch):
    looked = asyncio.Event()

    async def silent(_self: Any, _secret: Any, _name: Any) -> None:
        looked.set()
        raise UnavailableError("the store does not answer")

    monkeypatch.setattr(app_websocket, "STALL_S", 0.02)
    monkeypatch.setattr(type(door.app.state.calls.gate), "check", silent)
    async with client(door, "/echo") as socket:
        await accepted(socket)
        await asyncio.wait_for(looked.wait(), 10)
        socket.send(text="still here")
        assert (await socket.receive())["text"] == "still here"


async def test_a_client_that_comes_as_the_replicas_go_waits_for_others(door: FrontDoor, sea: Sea) -> None:
    """Nothing of it has been taken by then, so it is sent once more, whole."""
    door.app.state.calls.gate.room.poll_s = 0
    door.apps.running.clear()
    async with client(door, "/echo") as socket:
        for _ in range(1000):
            if any(load.waiting for load in door.app.state.loads.report().loads.values()):
                break
            await asyncio.sleep(0)
        else:
            pytest.fail("it does not wait")
        door.apps.running[NAME] = sea.app
        await accepted(socket)
        socket.send(text="hello")
        assert (await socket.receive())["text"] == "hello"
