"""Checks and clients for the front door's tests: the shape of errors, and WebSockets without a server."""

import asyncio
import json
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Self
from urllib.parse import unquote

import httpx
from fastapi import FastAPI

from cloudfarm.api.openai_errors import is_openai


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check an error's answer and return its body. This is the specification of errors.

    - The media type is ``application/problem+json`` and the body is RFC 9457's object.
    - ``type`` is ``urn:cloudfarm:error:<code>``, ``title`` is fixed for the code, ``status`` repeats the HTTP
      status, ``detail`` is one sentence for a person, ``code`` is for programs, ``instance`` is the path that
      was asked for, percent-encoded. Further members are the error's own data.
    - ``X-Cloudfarm-Error`` repeats the code; 401 says how to authenticate; 429 and 503 say when to retry.
    - Nothing is to be cached, and neither a traceback nor the name of a module is shown.
    - Below ``/api/`` the same is answered as plain text ``<detail> (<code>)``, unless ``Accept`` asks for
      JSON, since Ray's clients print the text of whatever they get.
    """
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["x-cloudfarm-error"] == code
    assert answer.headers["cache-control"] == "no-store"
    assert ("www-authenticate" in answer.headers) == (status == 401)  # noqa: PLR2004
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    for inside in ("Traceback", "cloudfarm.", ".py"):
        assert inside not in answer.text
    if answer.headers["content-type"].startswith("text/plain"):
        assert answer.url.path.startswith("/api/")
        assert answer.text.endswith(f" ({code})")
        return {"detail": answer.text.removesuffix(f" ({code})"), "code": code}
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = json.loads(answer.content)
    assert body["type"] == f"urn:cloudfarm:error:{code}"
    assert body["code"] == code
    assert body["status"] == status
    assert unquote(body["instance"]) == answer.url.path
    assert body["title"]
    assert body["detail"]
    return body


OPENAI_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}


def assert_openai_error(
    answer: httpx.Response, status: int, code: str, *, param: str | None = None
) -> dict[str, Any]:
    """Check an error's answer on a route of OpenAI's API and return the error.

    - The body is ``{"error": {"message", "type", "param", "code"}}``; further members are the error's own data.
    - ``param`` is the member of the request that is wrong. A value that can never be right is 400.
    - Headers are as :func:`assert_problem` says, and nothing of the inside is shown.
    """
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-cloudfarm-error"]
    assert answer.headers["cache-control"] == "no-store"
    assert ("www-authenticate" in answer.headers) == (status == 401)  # noqa: PLR2004
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    for inside in (
        "Traceback",
        "cloudfarm.",
        ".py",
        "pydantic",
        "function-",
        "functools",
        "0x",
        "instance of",
    ):
        assert inside not in answer.text
    body = json.loads(answer.content)
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert error["message"]
    kind = "server_error" if status >= 500 else OPENAI_TYPES.get(status, "invalid_request_error")  # noqa: PLR2004
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    return error


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    """Check an error's answer in the shape of its route, whichever that is."""
    if is_openai(answer.url.path):
        assert answer.headers["x-cloudfarm-error"] == code
        error = answer.json()["error"]
        assert_openai_error(answer, status, error["code"], param=error["param"])
    else:
        assert_problem(answer, status, code)


class FakeClient:
    """A client of an ASGI application without a server between them: it reads as it likes, and may go away.

    The application can be one message ahead of what the client has read, as with a full socket.
    """

    def __init__(self, app: FastAPI, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
        self._app = app
        content = json.dumps(body).encode()
        sent = {"content-type": "application/json", **headers}
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "server": ("farm.test", 80),
            "scheme": "http",
            "http_version": "1.1",
            "root_path": "",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "http.request", "body": content, "more_body": False})
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=1)
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Send the request."""
        self._task = asyncio.create_task(
            self._app(self._scope, self._to_app.get, self._take),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Go away."""
        await self.go()

    async def receive(self) -> dict[str, Any]:
        """Return the application's next message."""
        return await asyncio.wait_for(self._from_app.get(), timeout=10)

    async def go(self) -> None:
        """Close the connection, and wait until the application is done with it."""
        if self._task is not None:
            self._to_app.put_nowait({"type": "http.disconnect"})
            self._gone.set()
            await self.ended()

    async def ended(self) -> None:
        """Wait until the application is done with the request; from now on nothing is read."""
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait_for(task, timeout=10)

    async def _take(self, message: Mapping[str, Any]) -> None:
        """Wait for room; what is sent to a client that has gone is lost, as a server does it."""
        taken = asyncio.ensure_future(self._from_app.put(dict(message)))
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((taken, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()
            gone.cancel()

    def cancel(self) -> None:
        """Give the request up on the server's side, as one that is shut down does."""
        if self._task is not None:
            self._task.cancel()


class FakeWebSocket:
    """A WebSocket client of an ASGI application, without a server between them."""

    def __init__(
        self, app: FastAPI, path: str, headers: Mapping[str, str], subprotocols: Sequence[str] = ()
    ) -> None:
        self._app = app
        self._scope = {
            "type": "websocket",
            "http_version": "1.1",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": list(subprotocols),
            "extensions": {"websocket.http.response": {}},
            "server": ("farm.test", 80),
            "scheme": "ws",
            "root_path": "",
            "asgi": {"version": "3.0"},
        }
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._flows = asyncio.Event()
        self._flows.set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect."""
        self._to_app.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(
            self._app(self._scope, self._to_app.get, self._take),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Go away and wait until the application has noticed."""
        await self.go()

    async def receive(self) -> dict[str, Any]:
        """Return the application's next message."""
        return await asyncio.wait_for(self._from_app.get(), timeout=10)

    async def _take(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "websocket.close":  # as servers do
            self._to_app.put_nowait({"type": "websocket.disconnect", "code": message["code"]})
        await self._flows.wait()
        await self._from_app.put(dict(message))

    def send(self, **data: str | bytes) -> None:
        """Send ``text`` or ``bytes``."""
        self._to_app.put_nowait({"type": "websocket.receive", **data})

    def stall(self) -> None:
        """Take nothing any more, without going away."""
        self._flows.clear()

    def cancel(self) -> None:
        """Give the connection up on the server's side, as one that is shut down does."""
        if self._task is not None:
            self._task.cancel()

    @property
    def unread(self) -> int:
        """How many messages the application's server side has not taken."""
        return self._to_app.qsize()

    async def ended(self) -> None:
        """Wait until the application is done with the connection by itself."""
        if self._task is not None:
            task, self._task = self._task, None
            await asyncio.wait_for(task, timeout=10)

    async def go(self, code: int = 1006) -> None:
        """Close the connection, by default as a killed client would."""
        if self._task is not None:
            self._to_app.put_nowait({"type": "websocket.disconnect", "code": code})
            await asyncio.wait_for(self._task, timeout=10)
            self._task = None

    async def text_until_closed(self) -> tuple[str, int]:
        """Return everything that was sent and the close code."""
        text = ""
        while True:
            message = await self.receive()
            if message["type"] == "websocket.send":
                text += message["text"]
            elif message["type"] == "websocket.close":
                return text, message["code"]
