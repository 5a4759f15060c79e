"""What the services of the contract tests run: a replica where the farm wants it."""

from typing import Any

from ray import serve


class Echo:
    async def handle(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload


def app(args: dict[str, Any]) -> serve.Application:
    options = {"num_replicas": args["num_replicas"], "ray_actor_options": args["ray_actor_options"]}
    return serve.deployment(Echo, **options).bind()
