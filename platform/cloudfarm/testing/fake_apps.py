"""Tenants' own applications, in this process."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive

from cloudfarm.errors import AppFailedError, NoReplicaError


@dataclass(slots=True)
class FakeApps:
    """Implements :class:`cloudfarm.ports.Apps`: runs ASGI applications, by the names that Serve would have for them."""

    running: dict[str, ASGIApp] = field(default_factory=dict)
    asked: list[tuple[str, Mapping[str, Any], bytes]] = field(default_factory=list)
    under_way: int = 0

    async def answer(
        self, app_name: str, scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the application's own messages."""
        received = False

        async def receive() -> Message:
            nonlocal received
            if received:
                await asyncio.Event().wait()
            received = True
            return {"type": "http.request", "body": body, "more_body": False}

        complete = False
        try:
            async with aclosing(self._messages(app_name, scope, body, receive)) as messages:
                async for message in messages:
                    yield message
                    complete = message["type"] == "http.response.body" and not message.get("more_body")
        except AppFailedError:
            if not complete:
                raise
        if not complete:
            raise AppFailedError(f"service {app_name.partition('.')[2]} gave no whole answer")

    async def converse(
        self, app_name: str, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield the application's own messages."""

        async def taken() -> Message:
            return dict(await receive())

        async with aclosing(self._messages(app_name, scope, b"", taken)) as messages:
            async for message in messages:
                yield message

    async def _messages(
        self, app_name: str, scope: Mapping[str, Any], body: bytes, receive: Receive
    ) -> AsyncGenerator[Mapping[str, Any]]:
        name = app_name.partition(".")[2]
        if app_name not in self.running:
            raise NoReplicaError(f"service {name} does not run just now")
        self.asked.append((app_name, scope, body))
        sent: asyncio.Queue[Message | None] = asyncio.Queue(1)
        running = asyncio.create_task(self._run(app_name, scope, receive, sent))
        try:
            while (message := await sent.get()) is not None:
                yield message
            # The task is over but for its last step.
            await asyncio.wait((running,))
            if running.exception() is not None:
                raise AppFailedError(f"service {name} failed; its log says why") from running.exception()
        finally:
            running.cancel()
            await asyncio.wait((running,))

    async def _run(
        self, app_name: str, scope: Mapping[str, Any], receive: Receive, sent: "asyncio.Queue[Message | None]"
    ) -> None:
        self.under_way += 1
        try:
            try:
                await self.running[app_name](dict(scope), receive, sent.put)
            finally:
                self.under_way -= 1
        except Exception:
            await sent.put(None)
            raise
        await sent.put(None)
