"""Finds the secret in a request and says who it is.

Each kind of caller is a dependency that returns the principal, so a route that forgot to ask who calls would
be missing an argument. Role and ownership are checked again by the use case.
"""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.requests import HTTPConnection

from cloudfarm.api.context import Context
from cloudfarm.domain.tenant import Role
from cloudfarm.errors import ForbiddenError
from cloudfarm.usecases.access import Principal
from cloudfarm.usecases.credentials import authenticate

COOKIE = "cloudfarm-session"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


async def get_secret(connection: HTTPConnection) -> str | None:
    """Return the token or key of a request, which is still to be checked.

    It comes in ``Authorization``, in Ray's own ``X-Ray-Authorization`` (for clients behind a proxy
    that uses the first for itself), or in the session cookie that browsers get.
    """
    secret = bearer_of(connection)
    if secret is None and (secret := connection.cookies.get(COOKIE)) is not None:
        _refuse_foreign_pages(connection)
    return secret


Secret = Annotated[str | None, Depends(get_secret)]
"""A token or a key, not yet checked; None if there is none."""


async def get_caller(secret: Secret, context: Context) -> Principal:
    """Return who calls, by token or key."""
    return await authenticate(context.store, context.clock, secret)


def bearer_of(connection: HTTPConnection) -> str | None:
    """Return the secret from the headers; None without such a header, empty if it holds something else."""
    for header in ("authorization", "x-ray-authorization"):
        if header in connection.headers:
            scheme, _, secret = connection.headers[header].partition(" ")
            return secret.strip() if scheme.lower() == "bearer" else ""
    return None


Caller = Annotated[Principal, Depends(get_caller)]
"""Whoever has a token or a key."""


class _Needs:
    def __init__(self, role: Role) -> None:
        self._role = role

    async def __call__(self, caller: Caller) -> Principal:
        caller.need(self._role)
        return caller


Viewer = Annotated[Principal, Depends(_Needs(Role.VIEWER))]
"""Anybody with a token."""
Member = Annotated[Principal, Depends(_Needs(Role.MEMBER))]
"""A token that may use the farm."""
Admin = Annotated[Principal, Depends(_Needs(Role.ADMIN))]
"""A token that may manage tokens and keys."""
Operator = Annotated[Principal, Depends(_Needs(Role.OPERATOR))]
"""A token of those who run the farm."""


def _refuse_foreign_pages(connection: HTTPConnection) -> None:
    # SameSite=Strict stops other sites, but another port of this host is the same site, and a tenant may run
    # a web page there. WebSockets count as unsafe: browsers open them across origins without asking.
    method = connection.scope.get("method", "WEBSOCKET")
    origin = connection.headers.get("origin", "")
    if method not in _SAFE_METHODS and urlsplit(origin).netloc != connection.headers.get("host"):
        raise ForbiddenError("a session cookie may change things from the farm's own pages only; use a token")
