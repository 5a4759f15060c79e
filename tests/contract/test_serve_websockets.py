"""What clients send by WebSocket, between the front door and a replica: over real sockets, without Serve."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cloudfarm.raylayer import serve_websockets
from cloudfarm.raylayer.serve_websockets import Inbox, Inboxes, Outlet

GONE = {"type": "websocket.disconnect", "code": 4000}
CUT_OFF = {"type": "websocket.disconnect", "code": 1006}


def said(data: bytes) -> dict[str, Any]:
    return {"type": "websocket.receive", "bytes": data}


@pytest.fixture
def inboxes(monkeypatch) -> Inboxes:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    return Inboxes()


class Client:
    """A client's side of the front door, which counts how many messages were taken."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self.taken = 0

    async def receive(self) -> Mapping[str, Any]:
        message = await self.says.get()
        self.taken += 1
        return message


@asynccontextmanager
async def talking(inboxes: Inboxes) -> AsyncIterator[tuple[Client, Inbox, "asyncio.Task[None]"]]:
    client = Client()
    async with inboxes.one() as inbox:
        filling = asyncio.create_task(inbox.fill(client.receive))
        try:
            yield client, inbox, filling
        finally:
            filling.cancel()
            await asyncio.wait((filling,))


@pytest.fixture
async def moved() -> AsyncIterator[Callable[[Outlet], Outlet]]:
    """Return an outlet as a replica gets it."""
    outlets: list[Outlet] = []

    def move(outlet: Outlet) -> Outlet:
        outlets.append(pickle.loads(pickle.dumps(outlet)))  # noqa: S301 - our own
        return outlets[-1]

    yield move
    for each in outlets:
        each._close()


async def fetched(outlet: Outlet) -> dict[str, Any]:
    async with asyncio.timeout(10):
        (message,) = pickle.loads(await outlet(None))  # noqa: S301 - as a replica does with what we send it
    return message


async def test_messages_arrive_whole_and_in_order(inboxes: Inboxes, moved):
    async with talking(inboxes) as (client, inbox, filling):
        outlet = moved(inbox.outlet)
        messages = [{"type": "websocket.connect"}, said(b""), said(b"x" * 1_000_000), said(b"last"), GONE]
        for each in messages:
            client.says.put_nowait(each)
        assert [await fetched(outlet) for _ in messages] == messages
        await asyncio.wait_for(filling, 10)


async def test_each_client_has_its_own(inboxes: Inboxes, moved):
    async with talking(inboxes) as (first, one, _), talking(inboxes) as (second, other, _):
        first.says.put_nowait(said(b"first"))
        second.says.put_nowait(said(b"second"))
        assert await fetched(moved(other.outlet)) == said(b"second")
        assert await fetched(moved(one.outlet)) == said(b"first")


async def test_what_is_not_fetched_is_not_taken(inboxes: Inboxes, moved):
    most = 64
    async with talking(inboxes) as (client, inbox, _):
        outlet = moved(inbox.outlet)
        for _ in range(most):
            client.says.put_nowait(said(b"x" * 1_000_000))
        assert client.taken == 0
        await fetched(outlet)
        # The sockets' buffers hold some megabytes, and are full when nothing more is taken for a while.
        before = -1
        while before != client.taken:
            before = client.taken
            await asyncio.sleep(0.1)
        assert client.taken < most / 2


@pytest.mark.parametrize("shown", [b"x" * 32, b"short"])
async def test_a_stranger_gets_nothing(inboxes: Inboxes, moved, shown: bytes):
    async with talking(inboxes) as (client, inbox, _):
        client.says.put_nowait(said(b"secret"))
        address, port = inbox.outlet._address, inbox.outlet._port
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(shown)
        writer.write_eof()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()
        assert await fetched(moved(inbox.outlet)) == said(b"secret")


async def test_who_shows_nothing_is_sent_away(inboxes: Inboxes, monkeypatch):
    monkeypatch.setattr(serve_websockets, "SHOW_TIMEOUT_S", 0.01)
    async with talking(inboxes) as (_, inbox, _):
        reader, writer = await asyncio.open_connection(inbox.outlet._address, inbox.outlet._port)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()


async def test_a_secret_is_good_once(inboxes: Inboxes, moved):
    async with talking(inboxes) as (client, inbox, _):
        first, second = moved(inbox.outlet), moved(inbox.outlet)
        client.says.put_nowait(said(b"mine"))
        assert await fetched(first) == said(b"mine")
        assert await fetched(second) == CUT_OFF


async def test_without_the_front_door_the_client_is_gone(inboxes: Inboxes, moved):
    async with talking(inboxes) as (client, inbox, _):
        outlet, late = moved(inbox.outlet), moved(inbox.outlet)
        client.says.put_nowait(said(b"x"))
        await fetched(outlet)
    assert await fetched(outlet) == CUT_OFF
    assert await fetched(late) == CUT_OFF


async def test_that_a_client_leaves_is_seen_after_the_replica_has(inboxes: Inboxes, moved):
    async with talking(inboxes) as (client, inbox, filling):
        outlet = moved(inbox.outlet)
        client.says.put_nowait(said(b"x"))
        await fetched(outlet)
        fetching = asyncio.create_task(outlet(None))
        await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.wait((fetching,))
        for _ in range(20):
            client.says.put_nowait(said(b"x" * 1_000_000))
        client.says.put_nowait(GONE)
        await asyncio.wait_for(filling, 10)


async def test_a_session_that_ends_before_its_replica_has_come(inboxes: Inboxes):
    async with talking(inboxes) as (client, _, filling):
        client.says.put_nowait(GONE)
        await asyncio.sleep(0)
    assert filling.cancelled()
    assert inboxes._expected == {}
