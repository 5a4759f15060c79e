"""What the services of the contract tests run: a replica where the farm wants it."""

from collections.abc import AsyncGenerator
from typing import Any

from ray import serve


class Echo:
    async def answer(self, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        yield payload


def app(args: dict[str, Any]) -> serve.Application:
    del args
    return serve.deployment(Echo, name="Model").bind()
