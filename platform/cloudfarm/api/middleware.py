"""What holds for every request, whatever its route."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloudfarm.api.problem import TooSlowError, problem_response
from cloudfarm.errors import CloudfarmError, TooLargeError, UnavailableError
from cloudfarm.usecases.access import quoted

log = logging.getLogger(__name__)

MAX_DRAIN_BYTES = 512 * 1024**2
"""How much of a body that is too large is read and thrown away, so that the client sees the answer.

A client that is still sending when the connection closes reports a broken connection and not the reason.
Ray's own client refuses to send more than this.
"""
BODY_TIMEOUT_S = 120.0
"""How long a client may take to send a body that is not a package: an open one costs memory."""
MAX_BYTES_OF_ALL = 256 * 1024**2
"""How much all bodies that are being read may have together, at least one that is as large as it may be."""
ASKED_METHOD = "cloudfarm.method"
"""Where a request's scope has the method that was asked for, if another one is answered."""
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Boundary:
    """The outermost layer: security headers, HEAD, and an answer without internals to what went wrong."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        is_head = scope["method"] == "HEAD"
        if is_head:
            # FastAPI's routes know GET only; a HEAD is a GET whose body is not sent.
            scope = {**scope, "method": "GET", ASKED_METHOD: "HEAD"}

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except ClientGoneError:
            log.info("%s %s: the client went away", scope["method"], quoted(scope["path"]))
        except Exception as mistake:
            incident = secrets.token_hex(6)
            log.exception("incident %s: %s %s", incident, scope["method"], quoted(scope["path"]))
            await scope["app"].state.troubles.tell("answering a request", mistake)
            if started:
                raise  # too late for an answer: the server cuts the connection, which tells the client
            error = CloudfarmError(
                f"the farm made a mistake; tell its operator the incident {incident}", incident=incident
            )
            await problem_response(HTTPConnection(scope), error)(scope, receive, send_on)


class BodyLimit:
    """Reads each body up to a limit before anything else looks at it, its length announced or not.

    No key was checked yet, so there is a limit for all bodies together, too: beyond it clients are told to try again.
    Uploads that are streamed have their own limit and are passed through.

    Args:
        app: gets the bodies whole.
        max_bytes: of one body.
        max_bytes_of_all: of all that are being read.
        streamed_prefix: of the paths of uploads.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, max_bytes_of_all: int = MAX_BYTES_OF_ALL, streamed_prefix: str
    ) -> None:
        self._app = app
        self.held_bytes = 0
        """Of bodies that are being read."""
        self._max_bytes = max_bytes
        self._max_bytes_of_all = max(max_bytes, max_bytes_of_all)
        self._streamed_prefix = streamed_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        streamed = (
            scope["type"] == "http"
            and scope["method"] == "PUT"
            and scope["path"].startswith(self._streamed_prefix)
        )
        if scope["type"] != "http" or streamed:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(receive)
        except CloudfarmError as error:
            await problem_response(HTTPConnection(scope), error)(scope, receive, send)
            return
        replayed = False

        async def receive_again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send)

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        size = 0
        refused: CloudfarmError | None = None
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in body_of(receive):
                    size += len(chunk)
                    if size > self._max_bytes:
                        refused = TooLargeError(
                            f"the body is over {self._max_bytes} bytes", max_bytes=self._max_bytes
                        )
                    elif refused is None and self.held_bytes + len(chunk) > self._max_bytes_of_all:
                        refused = UnavailableError(
                            "the farm reads as many bodies as it can just now", retry_after_s=1
                        )
                    if refused is None:
                        body += chunk
                        self.held_bytes += len(chunk)
                        continue
                    self.held_bytes -= len(body)
                    body.clear()  # the rest is thrown away as it comes
                    if size > self._max_bytes + MAX_DRAIN_BYTES:
                        break
        except TimeoutError:
            raise TooSlowError(f"the body was not there after {BODY_TIMEOUT_S:g} s") from None
        finally:
            self.held_bytes -= len(body)
        if refused is not None:
            raise refused
        return bytes(body)


class ClientGoneError(Exception):
    """The client closed the connection before its body was complete; nobody is left to be told."""


async def body_of(receive: Receive) -> AsyncIterator[bytes]:
    """Yield a request's body as it comes.

    Raises:
        ClientGoneError: if the client goes away before the end.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def drain(body: AsyncIterator[bytes]) -> None:
    """Read and throw away the rest of a body, up to a limit."""
    size = 0
    async for chunk in body:
        size += len(chunk)
        if size > MAX_DRAIN_BYTES:
            return
