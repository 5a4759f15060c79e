"""Sessions for browsers, which cannot send a token with every link."""

from fastapi import APIRouter, Request, Response

from cloudfarm.api.auth import COOKIE, Viewer, bearer_of

router = APIRouter(prefix="/v1", tags=["Sessions"])


@router.post("/session", status_code=204)
async def begin(request: Request, _caller: Viewer) -> Response:
    """Put the token of this request into a cookie that pages cannot read and other sites cannot use."""
    response = Response(status_code=204)
    response.set_cookie(
        COOKIE,
        bearer_of(request) or request.cookies[COOKIE],
        max_age=12 * 3600,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.delete("/session", status_code=204)
async def end() -> Response:
    """Forget the cookie. Needs no token: an expired session must be endable too."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response
