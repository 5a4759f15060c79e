"""WebSockets to tenants' own applications through the front door on a real socket, with a stock client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import PlainTextResponse
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cloudfarm.api.listener import Listener
from cloudfarm.domain.bundles import SERVE_APP
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from tests.processes import eventually, free_port

MOST = 100_000
PIECES = 500


class Sea:
    """The application, and what it has seen."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.sent = 0
        self.left: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self.app.websocket("/echo")(self.echo)
        self.app.websocket("/flood")(self.flood)
        self.app.websocket("/full")(self.full)

    async def echo(self, socket: WebSocket) -> None:
        await socket.accept(*socket.scope["subprotocols"][-1:])
        while (message := await socket.receive())["type"] == "websocket.receive":
            if message.get("text") == "bye":
                await socket.close(4001, "bye")
            else:
                await socket.send({**message, "type": "websocket.send"})
        self.left.put_nowait((message["code"], message.get("reason", "")))

    async def flood(self, socket: WebSocket) -> None:
        await socket.accept()
        for _ in range(PIECES):
            await socket.send_bytes(b"x" * MOST)
            self.sent += 1

    async def full(self, socket: WebSocket) -> None:
        await socket.send_denial_response(PlainTextResponse("full up", 418, {"X-Own": "1"}))


@pytest.fixture
def sea() -> Sea:
    return Sea()


@pytest.fixture
async def door(tmp_path, sea) -> AsyncIterator[FrontDoor]:
    async with open_front_door(tmp_path) as opened:
        await opened.serve("sea", SERVE_APP)
        opened.apps.running["alpha.sea.1"] = sea.app
        yield opened


@pytest.fixture
async def base(door: FrontDoor) -> AsyncIterator[str]:
    listener = Listener(door.app, "127.0.0.1", port := free_port(), max_message_bytes=MOST)
    await listener.open()
    yield f"ws://127.0.0.1:{port}/v1/services/sea/app"
    await listener.close()


def to(door: FrontDoor, address: str, **options: Any) -> connect:
    headers = {"Authorization": f"Bearer {door.tokens['alpha.key']}"}
    return connect(address, additional_headers=headers, proxy=None, **options)


async def closed(socket: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as ended:
        await asyncio.wait_for(socket.recv(), 20)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


async def test_a_stock_client_talks_with_an_application(door: FrontDoor, sea: Sea, base: str) -> None:
    async with to(door, f"{base}/echo", subprotocols=["v1", "v2"]) as socket:
        assert socket.subprotocol == "v2"
        assert socket.protocol.extensions == []
        for data in ("wind", b"\x00\xff", "", b"x" * MOST):
            await socket.send(data)
            assert await socket.recv() == data
        await socket.send("bye")
        assert await closed(socket) == (4001, "bye")
    async with to(door, f"{base}/echo") as socket:
        await socket.close(4002, "tired")
    assert [await asyncio.wait_for(sea.left.get(), 20) for _ in range(2)] == [(4001, "bye"), (4002, "tired")]


async def test_a_client_that_vanishes_is_seen(door: FrontDoor, sea: Sea, base: str) -> None:
    async with to(door, f"{base}/echo") as socket:
        socket.transport.abort()
        code, _ = await asyncio.wait_for(sea.left.get(), 20)
        assert code in (1005, 1006)

        async def is_over() -> bool:
            return door.meter.uses[0][1].ended

        await eventually(is_over, "the request to have ended")


async def test_refusals_have_a_status(door: FrontDoor, base: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with to(door, f"{base}/full"):
            pass
    answer = refused.value.response
    assert (answer.status_code, answer.body, answer.headers["x-own"]) == (418, b"full up", "1")
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{base}/echo", proxy=None):
            pass
    assert refused.value.response.status_code == 401
    assert b"unauthenticated" in (refused.value.response.body or b"")


async def test_messages_are_limited(door: FrontDoor, sea: Sea, base: str) -> None:
    async with to(door, f"{base}/echo") as socket:
        await socket.send(b"x" * (MOST + 1))
        assert (await closed(socket))[0] == 1009
    assert (await asyncio.wait_for(sea.left.get(), 20))[0] == 1009


async def test_who_reads_slowly_is_sent_no_more(door: FrontDoor, sea: Sea, base: str) -> None:
    async with to(door, f"{base}/flood", max_queue=1) as socket:
        await socket.recv()
        # The sockets' buffers hold some megabytes, and are full when nothing more is sent for a while.
        before = -1
        while before != sea.sent:
            before = sea.sent
            await asyncio.sleep(0.2)
        assert before < PIECES / 2
        for _ in range(PIECES - 1):
            await asyncio.wait_for(socket.recv(), 20)
        assert await closed(socket) == (1000, "")
