"""What a tenant's own application is told of a request, and what of its answer is sent on: each message is checked."""

from collections.abc import Collection, Mapping
from math import inf
from typing import Any

from starlette.types import Message

from cloudfarm.api.middleware import ASKED_METHOD
from cloudfarm.errors import AppFailedError

START, BODY = "http.response.start", "http.response.body"
ACCEPT, SEND, CLOSE = "websocket.accept", "websocket.send", "websocket.close"
REFUSAL = "websocket.http.response"
"""An ASGI extension: an application may refuse a WebSocket with an answer of its own."""
REFUSAL_START, REFUSAL_BODY = f"{REFUSAL}.start", f"{REFUSAL}.body"
MAX_REASON_BYTES = 123
"""Of a WebSocket's close, by RFC 6455."""
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})
"""Those that may be sent; the others say how a connection ended without one."""
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
_HANDSHAKE = b"sec-websocket-"
"""How the headers begin that are the front door's own in the answer to a WebSocket."""


def inner_scope(scope: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what the application is told of a request: plain values, and no secret of its caller's."""
    own = (
        {"method": scope.get(ASKED_METHOD, scope["method"])}
        if scope["type"] == "http"
        else {"subprotocols": list(scope["subprotocols"]), "extensions": _extensions(scope)}
    )
    return {
        **own,
        "type": scope["type"],
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": scope["http_version"],
        "scheme": scope["scheme"],
        "path": scope["path"],
        "raw_path": scope.get("raw_path"),
        "root_path": f"/v1/services/{name}/app",
        "query_string": scope["query_string"],
        "headers": [(key, value) for key, value in scope["headers"] if key.lower() not in _OURS],
        "client": tuple(scope["client"]) if scope.get("client") else None,
        "server": tuple(scope["server"]) if scope.get("server") else None,
    }


def outer_message(message: Mapping[str, Any], expected: str) -> Message:
    """Return one message of an answer as it may be sent on.

    Raises:
        AppFailedError: if it is not the kind of message that is expected, or does not hold what it should.
    """
    if message["type"] == expected == BODY and isinstance(message.get("body", b""), bytes):
        return {"type": BODY, "body": message.get("body", b""), "more_body": bool(message.get("more_body"))}
    status = message.get("status")
    if message["type"] == expected == START and isinstance(status, int):
        return {"type": START, "status": status, "headers": _headers(message)}
    raise _no_answer("HTTP")


def first_message(message: Mapping[str, Any], subprotocols: Collection[str]) -> Message:
    """Return what an application says to a WebSocket first: that it takes it, or not.

    Raises:
        AppFailedError: as :func:`outer_message`.
    """
    subprotocol, status = message.get("subprotocol"), message.get("status")
    if message["type"] == ACCEPT and (subprotocol is None or subprotocol in subprotocols):
        headers = [each for each in _headers(message) if not each[0].startswith(_HANDSHAKE)]
        return {"type": ACCEPT, "subprotocol": subprotocol, "headers": headers}
    if message["type"] == REFUSAL_START and isinstance(status, int) and 200 <= status <= 599:  # noqa: PLR2004 - HTTP's
        return {"type": REFUSAL_START, "status": status, "headers": _headers(message)}
    if message["type"] == CLOSE:
        return next_message(message)
    raise _no_answer("a WebSocket")


def next_message(message: Mapping[str, Any]) -> Message:
    """Return what an application says on an open WebSocket.

    Raises:
        AppFailedError: as :func:`outer_message`.
    """
    text, data = message.get("text"), message.get("bytes")
    if message["type"] == SEND and isinstance(data, bytes):
        return {"type": SEND, "bytes": data}
    if message["type"] == SEND and data is None and _is_text(text):
        return {"type": SEND, "text": text}
    code, reason = message.get("code", 1000), message.get("reason") or ""
    if message["type"] == CLOSE and _is_code(code) and _is_text(reason, MAX_REASON_BYTES):
        return {"type": CLOSE, "code": code, "reason": reason}
    raise _no_answer("a WebSocket")


def refusal_body(message: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Return a piece of the answer by which an application refuses a WebSocket, and whether more comes.

    Raises:
        AppFailedError: as :func:`outer_message`.
    """
    body = message.get("body", b"")
    if message["type"] == REFUSAL_BODY and isinstance(body, bytes):
        return body, bool(message.get("more_body"))
    raise _no_answer("a WebSocket")


def _extensions(scope: Mapping[str, Any]) -> dict[str, Any]:
    return {REFUSAL: {}} if REFUSAL in scope.get("extensions", ()) else {}


def _headers(message: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    headers = message.get("headers", ())
    if not (isinstance(headers, list | tuple) and all(_is_header(each) for each in headers)):
        raise _no_answer("HTTP")
    return [(key.lower(), value) for key, value in headers if key.lower() not in _WITHHELD]


def _is_header(header: Any) -> bool:
    return (
        isinstance(header, list | tuple)
        and len(header) == 2  # noqa: PLR2004 - name and value
        # A line's end within one would be the beginning of another header, or of the body.
        and all(isinstance(part, bytes) and not set(b"\r\n\0") & set(part) for part in header)
    )


def _is_code(code: Any) -> bool:
    return isinstance(code, int) and code in _CLOSE_CODES


def _is_text(text: Any, most: float = inf) -> bool:
    try:
        return isinstance(text, str) and len(text.encode()) <= most
    except UnicodeEncodeError:  # half of a surrogate pair, which no frame can hold
        return False


def _no_answer(protocol: str) -> AppFailedError:
    return AppFailedError(f"the application's answer is not one of {protocol}")
