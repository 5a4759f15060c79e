"""The Ray dashboard under ``/dashboard/``, for operators only."""

from collections.abc import AsyncIterator, Mapping

import httpx
from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse, StreamingResponse

from cloudfarm.api.auth import Operator
from cloudfarm.api.context import Context
from cloudfarm.api.middleware import ASKED_METHOD
from cloudfarm.errors import NotFoundError, UnavailableError

PREFIX = "/dashboard/"
_METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    },
)
_FORWARDED = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "content-type",
        "if-none-match",
        "range",
        "if-modified-since",
    }
)
"""What the dashboard gets to see of a browser's headers. No secret is among them, nor anything by which Ray
would take a POST for a browser's and refuse it: who may send one was decided here."""
_WITHHELD = _HOP_BY_HOP | {"set-cookie", "content-security-policy", "x-frame-options", "server", "date"}
_UI_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"

router = APIRouter(tags=["Dashboard"], include_in_schema=False)


@router.get(PREFIX.rstrip("/"))
async def to_folder(_caller: Operator) -> Response:
    """Add the slash that the dashboard's relative links need."""
    return RedirectResponse(PREFIX)


@router.api_route(PREFIX + "{path:path}", methods=_METHODS)
async def relay(path: str, request: Request, _caller: Operator, context: Context) -> Response:
    """Pass a request on to the Ray dashboard with the cluster's token, and pass its answer back."""
    if not context.dashboard_url:
        raise NotFoundError("this farm has no Ray dashboard")
    client: httpx.AsyncClient = request.app.state.dashboard
    url = httpx.URL(context.dashboard_url).copy_with(
        raw_path=_raw_path(request, path),
    )
    outgoing = client.build_request(
        request.scope.get(ASKED_METHOD, request.method),
        url,
        headers=_upstream_headers(request, context.ray_token),
        content=await request.body(),
    )
    try:
        answer = await client.send(outgoing, stream=True)
    except httpx.HTTPError as error:
        raise UnavailableError("the Ray dashboard does not answer") from error
    return StreamingResponse(_body(answer), answer.status_code, _downstream_headers(answer))


def _raw_path(request: Request, path: str) -> bytes:
    raw = request.scope.get("raw_path") or request.url.path.encode()
    tail = raw.split(PREFIX.encode(), 1)[1] if PREFIX.encode() in raw else path.encode()
    query = request.scope.get("query_string", b"")
    return b"/" + tail.split(b"?", 1)[0] + (b"?" + query if query else b"")


def _upstream_headers(request: Request, token: str) -> Mapping[str, str]:
    headers = {name: value for name, value in request.headers.items() if name in _FORWARDED}
    if request.method == "GET":
        # Ray hides the values of tenants' environment variables from what looks like a browser, and only from
        # it.
        headers["Sec-Fetch-Mode"] = "cors"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _downstream_headers(answer: httpx.Response) -> Mapping[str, str]:
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in _WITHHELD}
    location = headers.get("location", "")
    if location.startswith("/") and not location.startswith("//"):
        headers["location"] = PREFIX + location.lstrip("/")
    # The dashboard's pages run scripts and styles of their own, unlike anything else that is served here.
    headers["content-security-policy"] = _UI_POLICY
    headers["x-frame-options"] = "SAMEORIGIN"
    return headers


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
