"""The front door's listener on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from cloudfarm.api.listener import Listener
from cloudfarm.errors import UnavailableError
from tests.processes import free_port


class Slow:
    """An application with one route that answers when it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = False
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.get("/")(self._answer)

    async def _answer(self) -> str:
        self.asked.set()
        await self.go_on.wait()
        return "here"

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        yield
        self.ended = True


async def test_what_was_asked_before_the_end_is_answered() -> None:
    slow, port = Slow(), free_port()
    listener = Listener(slow.app, "127.0.0.1", port, max_message_bytes=1000)
    await listener.open()
    listener.check()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        asking = asyncio.create_task(client.get("/"))
        await slow.asked.wait()
        closing = asyncio.create_task(listener.close())
        slow.go_on.set()
        assert (await asking).json() == "here"
        await closing
        with pytest.raises(httpx.ConnectError):
            await client.get("/")
    assert slow.ended
    with pytest.raises(UnavailableError, match="does not listen"):
        listener.check()


async def test_nobody_else_gets_the_port() -> None:
    slow, port = Slow(), free_port()
    first, second = (Listener(slow.app, "127.0.0.1", port, max_message_bytes=1000) for _ in range(2))
    with pytest.raises(UnavailableError, match="does not listen"):
        first.check()
    await first.open()
    with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()
