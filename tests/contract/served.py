"""What the services of the contract tests run: a replica where the farm wants it."""

from typing import Any

from ray import serve


class Echo:
    async def handle(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload


def app(args: dict[str, Any]) -> serve.Application:
    del args
    return serve.deployment(Echo, name="Model").bind()
