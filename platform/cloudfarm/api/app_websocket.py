"""The client of a tenant's own application by WebSocket: neither side is read faster than the other takes it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from starlette.types import Message
from starlette.websockets import WebSocketState

from cloudfarm.api import app_messages
from cloudfarm.api.problem import deny
from cloudfarm.api.streaming import STALL_S, Sending
from cloudfarm.errors import AppFailedError, CloudfarmError, UnavailableError

READ_AHEAD = 1
"""How many messages of a client wait for the application, besides the one that was read last.

With none, nobody would see that a client leaves before the application has come so far as to ask for its first.
"""
LEAVE_S = 10.0
"""How long an application may go on for a client that has left, or that it has closed."""
MAX_REFUSAL_BYTES = 1024**2
"""The longest answer by which an application refuses a WebSocket: it is gathered before it is sent."""
_REFUSED, _FAILED, _RESTARTED = 1008, 1011, 1012
_SERVER_ERROR = 500

log = logging.getLogger(__name__)


class AppClient:
    """One client, from before its handshake until its end.

    Args:
        websocket: the client's.
        check: raises when the client is welcome no more; asked now and then.
    """

    def __init__(self, websocket: WebSocket, check: Callable[[], Awaitable[None]]) -> None:
        self._websocket, self._check = websocket, check
        self._sending = Sending(websocket.send)
        self._incoming: asyncio.Queue[Message] = asyncio.Queue(READ_AHEAD)
        self._refusal: Message | None = None
        self._refusal_body = bytearray()
        self._gone = False
        self._over = asyncio.Event()
        """The client has left, or the application has closed."""

    async def receive(self) -> Message:
        """Return the client's next message, for the application."""
        return await self._incoming.get()

    async def converse(self, messages: AsyncGenerator[Mapping[str, Any]]) -> None:
        """Pass everything on until one side ends it; tell the client of an error by status, or by close code."""
        tasks = [asyncio.create_task(each) for each in (self._relay(messages), self._watch(), self._read())]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        try:
            for task in tasks:
                if not task.cancelled():
                    task.result()
        except CloudfarmError as error:
            await self._end(error)
        else:
            await self._end()

    async def _read(self) -> None:
        try:
            while not self._gone:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    self._gone = True
                    self._over.set()
                await self._incoming.put(message)
        finally:
            self._over.set()

    async def _relay(self, messages: AsyncGenerator[Mapping[str, Any]]) -> None:
        async with aclosing(messages):
            async for message in messages:
                await self._pass_on(message)

    async def _pass_on(self, message: Mapping[str, Any]) -> None:
        state = self._websocket.application_state
        if state is WebSocketState.CONNECTED:
            await self._send(app_messages.next_message(message))
        elif state is WebSocketState.CONNECTING and self._refusal is not None:
            body, more = app_messages.refusal_body(message)
            self._refusal_body += body
            if len(self._refusal_body) > MAX_REFUSAL_BYTES:
                raise AppFailedError("the application refuses the WebSocket with too long an answer")
            if not more:
                await self._send(self._refusal)
                await self._send({"type": app_messages.REFUSAL_BODY, "body": bytes(self._refusal_body)})
        elif state is WebSocketState.CONNECTING:
            first = app_messages.first_message(message, self._websocket.scope["subprotocols"])
            if first["type"] == app_messages.REFUSAL_START:
                self._refusal = first
            else:
                await self._send(first)
        if self._websocket.application_state is WebSocketState.DISCONNECTED:
            self._over.set()

    async def _send(self, message: Message) -> None:
        try:
            await self._sending(message)
        except (WebSocketDisconnect, OSError, RuntimeError) as error:
            # The last is how the server says that it has closed by itself. What is read of the client says so, too,
            # and the application is still to hear it.
            log.debug("a client is gone: %s", error)

    async def _watch(self) -> None:
        """Return when there is nobody left to work for.

        Raises:
            CloudfarmError: if the client is welcome no more.
        """
        while not self._over.is_set():
            try:
                async with asyncio.timeout(STALL_S):
                    await self._over.wait()
            except TimeoutError:
                if self._sending.stalled():
                    self._gone = True
                    return
                await self._look_again()
        await asyncio.sleep(LEAVE_S)

    async def _look_again(self) -> None:
        try:
            await self._check()
        except CloudfarmError as error:
            if error.status < _SERVER_ERROR:
                raise
            log.info("whether a client may stay cannot be seen just now: %s", error)

    async def _end(self, error: CloudfarmError | None = None) -> None:
        state = self._websocket.application_state
        if self._gone or state not in (WebSocketState.CONNECTING, WebSocketState.CONNECTED):
            if error is not None:
                log.info("an application fails after its client has left: %s", error)
            return
        try:
            async with asyncio.timeout(STALL_S):
                if state is WebSocketState.CONNECTING:
                    silent = AppFailedError("the application neither takes the WebSocket nor refuses it")
                    await deny(self._websocket, error or silent)
                else:
                    await self._websocket.close(*_farewell(error))
        except (WebSocketDisconnect, OSError, RuntimeError) as gone:  # a timeout is one of these
            log.info("a client leaves without its farewell: %s", gone)


def _farewell(error: CloudfarmError | None) -> tuple[int, str]:
    if error is None:
        return 1000, ""
    reason = error.detail.encode()[: app_messages.MAX_REASON_BYTES].decode(errors="ignore")
    if isinstance(error, UnavailableError):
        return _RESTARTED, reason
    return _REFUSED if error.status < _SERVER_ERROR else _FAILED, reason
