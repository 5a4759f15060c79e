"""Tenants' own applications, each below its service's path."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, WebSocket
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from cloudfarm.api.auth import bearer_of
from cloudfarm.api.context import ServiceCalls
from cloudfarm.api.middleware import ASKED_METHOD
from cloudfarm.api.problem import deny
from cloudfarm.api.streaming import Sending, while_connected
from cloudfarm.errors import AppFailedError, CloudfarmError, InvalidInputError

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_START, _BODY = "http.response.start", "http.response.body"
_OURS = frozenset({b"authorization", b"x-ray-authorization", b"proxy-authorization", b"cookie"})
"""What an application does not get to see: the caller's secrets."""
_WITHHELD = frozenset(
    {
        b"set-cookie",
        b"set-cookie2",
        b"clear-site-data",
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""What an application may not say: all of them and the farm itself are one site to a browser, with the same cookies."""

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
    """Refuse what is not passed on."""
    try:
        await calls.gate.route(bearer_of(websocket), name, what="service")
        raise InvalidInputError(f"service {name} is asked by HTTP only; WebSockets are not passed on")
    except CloudfarmError as error:
        await deny(websocket, error)


def inner_scope(scope: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what the application is told of a request: plain values, and no secret of its caller's."""
    root = f"/v1/services/{name}/app"
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": scope["http_version"],
        "method": scope.get(ASKED_METHOD, scope["method"]),
        "scheme": scope["scheme"],
        "path": scope["path"],
        "raw_path": scope.get("raw_path"),
        "root_path": root,
        "query_string": scope["query_string"],
        "headers": [(key, value) for key, value in scope["headers"] if key.lower() not in _OURS],
        "client": tuple(scope["client"]) if scope.get("client") else None,
        "server": tuple(scope["server"]) if scope.get("server") else None,
    }


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
        expected = _START
        try:
            async with aclosing(self._messages) as messages:
                async for message in messages:
                    await send(outer_message(message, expected))
                    expected = _BODY
        except CloudfarmError as error:
            if expected is _START:
                raise
            # Too late to say so: the server cuts an answer off that is not whole, which tells the client.
            log.info("an application's answer breaks off: %s", error)


def outer_message(message: Mapping[str, Any], expected: str) -> Message:
    """Return one message of an application as it may be sent on.

    Raises:
        AppFailedError: if it is not the kind of message that is expected, or does not hold what it should.
    """
    if message["type"] == expected == _BODY and isinstance(message.get("body", b""), bytes):
        return {"type": _BODY, "body": message.get("body", b""), "more_body": bool(message.get("more_body"))}
    headers = message.get("headers", ())
    status = message.get("status")
    if message["type"] == expected == _START and isinstance(status, int) and _are_headers(headers):
        kept = [(key.lower(), value) for key, value in headers if key.lower() not in _WITHHELD]
        return {"type": _START, "status": status, "headers": kept}
    raise AppFailedError("the application's answer is not one of HTTP")


def _are_headers(headers: Any) -> bool:
    return isinstance(headers, list | tuple) and all(
        isinstance(each, list | tuple) and len(each) == 2 and all(isinstance(part, bytes) for part in each)  # noqa: PLR2004 - name and value
        for each in headers
    )
