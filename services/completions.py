"""Language models on Ray Serve: a model bundle behind a handle that streams, no HTTP of its own.

In a Serve config::

    applications:
      - name: chat
        import_path: services.completions:app
        args: {model_uri: /models/smollm2-135m-instruct}
        route_prefix: null

and from Python: ``serve.get_app_handle("chat").options(stream=True).generate.remote(generation)``; ``describe``
gives the model's card.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from cloudfarm.inference.completions import CompletionsReplica


class CompletionsArgs(BaseModel):
    """The application's ``args``; the farm gives every one of its services the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    model_uri: str
    """Path or URI of a model bundle."""
    digest: str | None = None
    """Of the manifest that was registered; any other bundle is refused. None: whichever is there."""


def app(args: dict[str, Any]) -> Application:
    """Return the application for ``args`` (see ``CompletionsArgs``)."""
    wanted = CompletionsArgs.model_validate(args)
    return serve.deployment(CompletionsReplica, name="Model").bind(**wanted.model_dump())
