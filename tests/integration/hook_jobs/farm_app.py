"""A Serve application of the farm: an ingress on the control plane, a model in a lease."""

from typing import Any

import ray
from ray import serve


def _labels() -> dict[str, str]:
    me = ray.get_runtime_context().get_node_id()
    return next(node["Labels"] for node in ray.nodes() if node["NodeID"] == me)


@serve.deployment(ray_actor_options={"num_cpus": 0.5, "num_gpus": 1, "label_selector": {"lease": "B"}})
class Model:
    def labels(self) -> dict[str, str]:
        return _labels()


@serve.deployment(ray_actor_options={"num_cpus": 0})
class FrontDoor:
    def __init__(self, built_on: dict[str, str], model: Any) -> None:
        self.built_on, self.model = built_on, model

    async def __call__(self, _request: Any) -> dict[str, dict[str, str]]:
        return {"built": self.built_on, "ingress": _labels(), "model": await self.model.labels.remote()}


def build(_args: dict[str, str]) -> serve.Application:
    """Built by the controller's own task: it must not run in anybody's lease."""
    return FrontDoor.bind(_labels(), Model.bind())
