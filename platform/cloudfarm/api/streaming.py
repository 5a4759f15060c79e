"""Answers that take a while: given up when the client goes away, and sent as fast as the client reads."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from cloudfarm.api.middleware import ClientGoneError
from cloudfarm.errors import CloudfarmError

STALL_S = 60.0
"""How long a client may take nothing of what is sent before it counts as gone; at most twice as long."""

T = TypeVar("T")


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], stalled: Callable[[], bool] = lambda: False
) -> T:
    """Return what the work returns; when the client goes away first, cancel the work and wait for its end.

    Args:
        receive: tells of the client.
        work: is done for it.
        stalled: asked now and then; a client that has stalled counts as gone.

    Raises:
        ClientGoneError: if the client went away.
    """
    doing = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive, stalled))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGoneError
        return doing.result()
    finally:
        doing.cancel()
        watching.cancel()
        await asyncio.wait((doing, watching))


class Sending:
    """Sends to a client, and knows whether that takes it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._sent = self._sent_before = 0

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        self._begun += 1
        await self._send(message)
        self._sent += 1

    def stalled(self) -> bool:
        """Whether something is being sent of which nothing was taken since this was last asked."""
        stalled = self._begun > self._sent == self._sent_before
        self._sent_before = self._sent
        return stalled


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
        sending = Sending(send)
        await while_connected(receive, self._answer(sending), sending.stalled)

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
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _gone(receive: Receive, stalled: Callable[[], bool]) -> None:
    """Return when the client has gone away."""
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                message = await receive()
        except TimeoutError:
            if stalled():
                return
        else:
            if message["type"] == "http.disconnect":
                return
