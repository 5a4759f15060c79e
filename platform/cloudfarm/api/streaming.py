"""Answers that take a while: given up when the client goes away, and sent as fast as the client reads."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cloudfarm.api.middleware import ClientGoneError
from cloudfarm.errors import CloudfarmError

STALL_S = 60.0
"""How long a client may take nothing of what is sent before it counts as gone."""

T = TypeVar("T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; when the client goes away first, cancel the work and wait for its end.

    Raises:
        ClientGoneError: if the client went away.
    """
    doing = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGoneError
        return doing.result()
    finally:
        doing.cancel()
        watching.cancel()
        await asyncio.wait((doing, watching))


class EventStream(StreamingResponse):
    """Server-sent events, each taken from its generator when the one before has been sent.

    Nothing is sent before the first event is there, so that whatever is refused until then is an ordinary answer.

    Args:
        events: closed in every case.
        tell: makes the event that tells of an error after the first event; it is the last one.
    """

    def __init__(self, events: AsyncGenerator[bytes], tell: Callable[[CloudfarmError], bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._events = events
        self._tell = tell

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await while_connected(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await _send(send, first)
            try:
                async for event in events:
                    await _send(send, event)
            except CloudfarmError as error:
                await _send(send, self._tell(error))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, body: bytes) -> None:
    try:
        async with asyncio.timeout(STALL_S):
            await send({"type": "http.response.body", "body": body, "more_body": True})
    except TimeoutError:
        raise ClientGoneError from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
