"""Clients that connect and send nothing, or half of what they should, by the thousand: others are served meanwhile."""

import asyncio
import resource
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import connect

from cloudfarm.api.listener import Listener
from tests.processes import free_port

HALF = b"GET / HTTP/1.1\r\nHost: farm.test\r\nX-Half: "


def made_app(go_on: asyncio.Event) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def quick() -> str:
        return "here"

    @app.get("/slow")
    async def slow() -> str:
        await go_on.wait()
        return "at last"

    @app.websocket("/talk")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return app


@asynccontextmanager
async def listening(go_on=None, **limits):
    listener = Listener(
        made_app(go_on or asyncio.Event()), "127.0.0.1", port := free_port(), max_message_bytes=1000, **limits
    )
    await listener.open()
    try:
        yield port
    finally:
        await listener.close()


@asynccontextmanager
async def idle(port, count, sent=b""):
    """Open connections on each of which no more than this is sent."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in opened:
        writer.write(sent)
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def ends(reader):
    """Return what comes until the connection is closed."""
    async with asyncio.timeout(20):
        return await reader.read()


@pytest.mark.parametrize("sent", [b"", b"GE", HALF, b"\r\n"])
async def test_who_sends_no_whole_head_is_cut_off_and_others_are_served_meanwhile(sent):
    # Each has a descriptor at both ends, which are in this process.
    count = min(3000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
    go_on = asyncio.Event()
    async with (
        listening(go_on, head_timeout_s=2) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        slow = asyncio.create_task(client.get("/slow"))
        async with idle(port, count, sent) as readers:
            assert (await client.get("/")).json() == "here"
            assert set(await asyncio.gather(*map(ends, readers))) == {b""}
            assert (await client.get("/")).json() == "here"
        go_on.set()
        assert (await slow).json() == "at last"


async def test_the_next_request_of_a_connection_has_as_long_for_its_head():
    async with listening(head_timeout_s=0.5) as port:
        whole = b"GET / HTTP/1.1\r\nHost: farm.test\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(whole)
        assert (await reader.readuntil(b'"here"')).startswith(b"HTTP/1.1 200 OK")
        writer.write(HALF)
        assert await ends(reader) == b""
        writer.close()
        async with idle(port, 1) as (reader,), idle(port, 1, whole) as (other,):
            assert await ends(reader) == b""  # the other had been answered, and may ask again
            assert b"200 OK" in await other.readline()


async def test_a_head_without_end_is_cut_off():
    async with listening(head_timeout_s=3600) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HALF)
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"x" * 10_000 + b"\r\nX-More: ")
                    await writer.drain()
                    await asyncio.sleep(0)  # drain alone does not let the loop read
        writer.close()


async def test_a_websocket_is_not_cut_off():
    async with listening(head_timeout_s=0.5) as port, connect(f"ws://127.0.0.1:{port}/talk") as talk:
        async with idle(port, 1) as (reader,):
            await ends(reader)
        await talk.send("still here")
        assert await talk.recv() == "still here"


async def test_there_are_not_more_connections_than_may_be():
    async with (
        listening(most=3) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        async with idle(port, 3), idle(port, 1) as (reader,):
            answer = await ends(reader)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: " in answer
        async with idle(port, 2):
            assert (await client.get("/")).json() == "here"
