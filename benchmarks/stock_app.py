"""The farm's forecaster as stock Serve serves it, with HTTP routes of its own and nobody who asks for a key.

    python -c 'from benchmarks.stock_app import main; main()' MODEL_URI LEASE ADDRESS PORT

(imported by its name, because what a replica gets must be importable there) deploys two applications beside the
farm's own: ``/bench-model``, where Serve's proxy calls the model, and ``/bench-ingress``, where the proxy calls a thin
FastAPI ingress on the head, which calls the same model by its handle. The farm itself has no proxy, since its front
door listens for itself: Serve's own is started here, on the head, as Serve's controller would.
"""

import argparse
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve._private.proxy_state import ActorProxyWrapper
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from benchmarks.model import STOCK_INGRESS_ROUTE, STOCK_ROUTE
from cloudfarm.inference.forecasts import Forecaster

MODEL_APP = "stock.model"
http = FastAPI()


class HttpForecaster(Forecaster):
    """The model with the thinnest HTTP in front."""

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer one request."""
        return await self.handle(await request.json())


@serve.ingress(http)
class Ingress:
    """A second hop that does nothing."""

    def __init__(self) -> None:
        self._model = serve.get_app_handle(MODEL_APP)

    @http.post("/")
    async def predict(self, request: Request) -> dict[str, Any]:
        """Pass one request on."""
        answer: dict[str, Any] = await self._model.handle.remote(await request.json())
        return answer


def deploy(model_uri: str, lease: str) -> None:
    """Deploy both and return when they run."""
    quiet = {"enable_access_log": False}
    in_lease = {"num_cpus": 1, "num_gpus": 1, "label_selector": {"lease": lease}}
    on_head = {"num_cpus": 0, "label_selector": {"farm": "control", "role": "head"}}
    model = serve.deployment(HttpForecaster, max_ongoing_requests=100, ray_actor_options=in_lease)
    serve.run(model.bind(model_uri), name=MODEL_APP, route_prefix=STOCK_ROUTE, logging_config=quiet)
    ingress = serve.deployment(Ingress, max_ongoing_requests=2000, ray_actor_options=on_head)
    serve.run(ingress.bind(), name="stock.ingress", route_prefix=STOCK_INGRESS_ROUTE, logging_config=quiet)


def start_proxy(address: str, port: int) -> None:
    """Start Serve's proxy on the head, and return when it answers."""
    (head,) = [node for node in ray.nodes() if node["Labels"].get("role") == "head" and node["Alive"]]
    proxy = ActorProxyWrapper._get_or_create_proxy_actor(  # noqa: SLF001 - Serve has no public way
        http_options=HTTPOptions(host=address, port=port, keep_alive_timeout_s=75),
        grpc_options=gRPCOptions(),
        name="stock-proxy",
        node_id=head["NodeID"],
        node_ip_address=head["NodeManagerAddress"],
        port=None,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    ray.get(proxy.ready.remote())
    ray.get(proxy.serving.remote())


def main() -> None:
    """Deploy into the cluster that the environment names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_uri")
    parser.add_argument("lease")
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    asked = parser.parse_args()
    ray.init(namespace="serve", log_to_driver=False, logging_level="ERROR")
    deploy(asked.model_uri, asked.lease)
    start_proxy(asked.address, asked.port)
    ray.shutdown()
