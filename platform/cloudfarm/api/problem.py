"""The one shape of errors: RFC 9457 problem bodies, made from the one error root.

``{"type": "urn:cloudfarm:error:<code>", "title", "status", "detail", "code", "instance", ...}``; further
members are the error's own data. Ray's clients print the whole text of an answer, so routes below ``/api/``
answer with the sentence alone, ``<detail> (<code>)``, unless JSON is asked for. Routes of OpenAI's API answer as
their clients expect: see :mod:`cloudfarm.api.openai_errors`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from cloudfarm.api import openai_errors
from cloudfarm.errors import CloudfarmError, InvalidInputError, NotFoundError
from cloudfarm.usecases.access import quoted

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 2
MAX_SHOWN_ERRORS = 10
_SERVER_ERROR = 500

log = logging.getLogger(__name__)


class BadRequestError(CloudfarmError):
    """The request cannot be read at all."""

    code: ClassVar[str] = "bad_request"
    status: ClassVar[int] = 400
    title: ClassVar[str] = "The request cannot be read"


class MethodNotAllowedError(CloudfarmError):
    """The path exists, but not with this method."""

    code: ClassVar[str] = "method_not_allowed"
    status: ClassVar[int] = 405
    title: ClassVar[str] = "This path does not know the method"


class TooSlowError(CloudfarmError):
    """The body did not come in time."""

    code: ClassVar[str] = "too_slow"
    status: ClassVar[int] = 408
    title: ClassVar[str] = "The body came too slowly"


def problem_body(error: CloudfarmError, instance: str) -> dict[str, Any]:
    """Return the error's problem body; its data never hides a standard member."""
    return {
        **error.data,
        "type": f"urn:cloudfarm:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "instance": instance,
    }


def problem_response(connection: HTTPConnection, error: CloudfarmError) -> Response:
    """Return the answer that tells of an error."""
    headers = dict(_headers(error))
    path = connection.scope["path"]  # as it came: the framework's URL drops what no URL may hold
    if path.startswith("/api/") and "json" not in connection.headers.get("accept", ""):
        # Ray's client puts a full stop behind the text.
        text = f"{error.detail.rstrip('.')} ({error.code})".encode(errors="backslashreplace")
        return Response(text, error.status, headers, media_type="text/plain")
    if openai_errors.is_openai(path):
        answer = json.dumps(openai_errors.error_body(error))
        return Response(answer, openai_errors.status_of(error), headers, media_type="application/json")
    # ASCII only: the detail may quote a stranger's text, which need not be encodable.
    body = json.dumps(problem_body(error, quote(path)))
    return Response(body, error.status, headers, media_type=PROBLEM_JSON)


async def deny(websocket: WebSocket, error: CloudfarmError) -> None:
    """Refuse a WebSocket with the error's status and text, where the server can, else with a close code."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(problem_response(websocket, error))
    else:
        await websocket.close(code=1008, reason=error.detail[:100])


def install_handlers(app: FastAPI) -> None:
    """Make every error of the application leave in the one shape."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, CloudfarmError)  # noqa: S101 - registered for nothing else
        if error.status >= _SERVER_ERROR:
            log.warning(
                "%s %s: %s: %s", request.method, quoted(request.scope["path"]), error.code, error.detail
            )
        return problem_response(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
        found = error.errors()
        if openai_errors.is_openai(request.scope["path"]):
            return problem_response(request, openai_errors.from_validation(found, error.body))
        return problem_response(request, from_validation(found))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
        if request.method == "OPTIONS" and error.status_code == MethodNotAllowedError.status:
            return Response(
                status_code=204, headers=error.headers
            )  # the framework knows the methods and lists them
        response = problem_response(request, from_http(request, error))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(CloudfarmError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidInputError:
    """Return pydantic's findings as one of ours: where and what, but not the value, which may be a secret."""
    shown = [
        {"where": ".".join(str(part) for part in error["loc"])[:200], "what": str(error["msg"])[:200]}
        for error in errors[:MAX_SHOWN_ERRORS]
    ]
    detail = "; ".join(f"{ascii(each['where'])[1:-1]}: {each['what']}" for each in shown)
    return InvalidInputError(detail, errors=shown)


def from_http(request: Request, error: HTTPException) -> CloudfarmError:
    """Return what the framework itself refuses as one of ours."""
    path = request.scope["path"]
    if error.status_code == NotFoundError.status:
        return NotFoundError(f"there is no path {quoted(path)}")
    if error.status_code == MethodNotAllowedError.status:
        return MethodNotAllowedError(f"{quoted(path)} does not know {quoted(request.method)}")
    return BadRequestError(str(error.detail))


def _headers(error: CloudfarmError) -> Mapping[str, str]:
    headers = {"Cache-Control": "no-store", "X-Cloudfarm-Error": error.code}
    if error.status == 401:  # noqa: PLR2004 - the header that RFC 9110 asks for with this status
        headers["WWW-Authenticate"] = 'Bearer realm="cloudfarm"'
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.data.get("retry_after_s", RETRY_AFTER_S))
    return headers
