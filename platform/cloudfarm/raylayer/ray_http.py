"""The Ray dashboard's HTTP API with the cluster's token; every failure becomes one of the farm's errors."""

from pathlib import Path
from typing import Any

import httpx

from cloudfarm.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError

_ERRORS = {400: InvalidInputError, 404: NotFoundError, 409: ConflictError}


class RayHttp:
    """A client of one dashboard.

    Args:
        base_url: such as ``http://127.0.0.1:8265``.
        token_file: file of the cluster's token.
        timeout_s: for each request.
    """

    def __init__(self, base_url: str, token_file: Path, timeout_s: float = 30.0) -> None:
        self.base_url = base_url
        self.headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
        self._client = httpx.AsyncClient(base_url=base_url, headers=self.headers, timeout=timeout_s)

    async def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Send a request and return its good answer.

        Raises:
            NotFoundError, InvalidInputError, ConflictError: as Ray says.
            UnavailableError: if the dashboard does not answer or fails.
        """
        try:
            response = await self._client.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"the Ray dashboard does not answer: {type(error).__name__}: {error}"
            ) from error
        if response.is_success:
            return response
        kind = _ERRORS.get(response.status_code, UnavailableError)
        raise kind(f"Ray answered {response.status_code} to {method} {path}: {response.text[:2000]}")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()
