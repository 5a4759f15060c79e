"""Tenants' own applications, each below its service's path."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, WebSocket
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cloudfarm.api.app_messages import BODY, START, inner_scope, outer_message
from cloudfarm.api.app_websocket import AppClient
from cloudfarm.api.auth import bearer_of
from cloudfarm.api.context import ServiceCalls
from cloudfarm.api.streaming import Sending, while_connected
from cloudfarm.errors import CloudfarmError

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/services/{name}/app", tags=["Models and services"])


@router.api_route("/{path:path}", methods=METHODS, response_model=None, include_in_schema=False)
async def call(name: str, request: Request, calls: ServiceCalls) -> Response:
    """Pass a request on to a tenant's own application, and its answer back as it comes.

    By header only, not by a browser's session: a page of a tenant's that a browser shows would act as who looks at it.
    """
    scope = inner_scope(request.scope, name)
    return AppAnswer(calls.exchange(bearer_of(request), name, scope, await request.body()))


@router.websocket("/{path:path}")
async def call_by_websocket(name: str, websocket: WebSocket, calls: ServiceCalls) -> None:
    """Pass a WebSocket on to a tenant's own application; by header only, as a request."""
    secret = bearer_of(websocket)
    client = AppClient(websocket, lambda: calls.gate.check(secret, name))
    await client.converse(calls.converse(secret, name, inner_scope(websocket.scope, name), client.receive))


class AppAnswer(Response):
    """An application's answer, sent as fast as the client reads it; given up when that goes away."""

    def __init__(self, messages: AsyncGenerator[Mapping[str, Any]]) -> None:
        super().__init__()
        self._messages = messages

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        sending = Sending(send)
        await while_connected(receive, self._relay(sending), sending.stalled)

    async def _relay(self, send: Send) -> None:
        expected = START
        try:
            async with aclosing(self._messages) as messages:
                async for message in messages:
                    await send(outer_message(message, expected))
                    expected = BODY
        except CloudfarmError as error:
            if expected is START:
                raise
            # Too late to say so: the server cuts an answer off that is not whole, which tells the client.
            log.info("an application's answer breaks off: %s", error)
