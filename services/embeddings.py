"""Text embeddings on Ray Serve: a model bundle behind a handle, no HTTP of its own.

In a Serve config::

    applications:
      - name: embeddings
        import_path: services.embeddings:app
        args: {model_uri: /models/all-minilm-l6-v2}
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
    digest: str | None = None
    """Of the manifest that was registered; any other bundle is refused. None: whichever is there."""


def app(args: dict[str, Any]) -> Application:
    """Return the application for ``args`` (see ``EmbeddingsArgs``)."""
    wanted = EmbeddingsArgs.model_validate(args)
    return serve.deployment(Embedder, name="Model").bind(**wanted.model_dump())
