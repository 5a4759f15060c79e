"""The Python client of a farm: the same API as the CLI and the console use."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from cloudfarm.errors import CloudfarmError, UnavailableError, all_errors

JSON = Any


class FarmClient:
    """Talks to one front door with one token or key.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        token: a token (``cf_...``) or, for services only, a key (``cfk_...``).
        timeout_s: for each request.
        transport: instead of the network; for tests.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.authorization = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": self.authorization},
            timeout=timeout_s,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def get(self, path: str, **query: Any) -> JSON:
        """Return the answer to a GET; query values that are None are left out."""
        return self.request(
            "GET", path, params={key: value for key, value in query.items() if value is not None}
        )

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> JSON:
        """Return the answer to a POST."""
        return self.request("POST", path, json=dict(body or {}))

    def put(self, path: str, body: JSON) -> JSON:
        """Return the answer to a PUT."""
        return self.request("PUT", path, json=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> JSON:
        """Return the answer to a PATCH."""
        return self.request("PATCH", path, json=dict(body))

    def delete(self, path: str) -> JSON:
        """Return the answer to a DELETE, None if it is empty."""
        return self.request("DELETE", path)

    def request(self, method: str, path: str, **kwargs: Any) -> JSON:
        """Send a request and return the parsed answer.

        Raises:
            CloudfarmError: the very class that the farm raised, found by its code.
            UnavailableError: if the farm does not answer.
        """
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"the farm at {self.url} does not answer ({type(error).__name__})"
            ) from error
        if response.is_success:
            return response.json() if response.content else None
        raise _error_of(response)


def _error_of(response: httpx.Response) -> CloudfarmError:
    try:
        body = response.json()
    except ValueError:
        return UnavailableError(f"the farm answered {response.status_code}: {response.text[:200]}")
    kinds = {kind.code: kind for kind in all_errors()}
    kind = kinds.get(body.get("code", ""), CloudfarmError)
    return kind(str(body.get("detail") or body.get("title") or f"HTTP {response.status_code}"))
