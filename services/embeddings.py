"""Text embeddings on Ray Serve: a model bundle behind a handle, no HTTP of its own.

In a Serve config::

    applications:
      - name: embeddings
        import_path: services.embeddings:app
        args: {model_uri: /models/all-minilm-l6-v2, ray_actor_options: {num_gpus: 1}}  # else on CPU
        route_prefix: null

and from Python: ``await serve.get_app_handle("embeddings").embed.remote(["a text"])``; ``describe`` gives the
model's card.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from cloudfarm.inference.embeddings import Embedder


class EmbeddingsArgs(BaseModel):
    """The application's ``args``; the farm gives every one of its services the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    model_uri: str
    """Path or URI of a model bundle."""
    num_replicas: int = 1
    ray_actor_options: dict[str, Any] = {}
    """What each replica needs, and where it must run."""


def app(args: dict[str, Any]) -> Application:
    """Return the application for ``args`` (see ``EmbeddingsArgs``)."""
    wanted = EmbeddingsArgs.model_validate(args)
    deployment = serve.deployment(
        Embedder,
        name="Embedder",
        max_ongoing_requests=100,
        num_replicas=wanted.num_replicas,
        ray_actor_options=wanted.ray_actor_options,
    )
    return deployment.bind(model_uri=wanted.model_uri)
