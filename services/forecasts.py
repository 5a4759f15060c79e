"""Wind power forecasts on Ray Serve: a model bundle behind a handle, no HTTP of its own.

In a Serve config::

    applications:
      - name: forecasts
        import_path: services.forecasts:app
        args: {model_uri: /models/windpower-forecaster}
        route_prefix: null
        deployments:
          - {name: Model, num_replicas: 2, ray_actor_options: {num_gpus: 1}}  # else one, on CPU

and from Python: ``await serve.get_app_handle("forecasts").handle.remote(payload)``; ``describe`` gives the
model's card.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from cloudfarm.inference.forecasts import Forecaster


class ForecastsArgs(BaseModel):
    """The application's ``args``; the farm gives every one of its services the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    model_uri: str
    """Path or URI of a model bundle."""
    digest: str | None = None
    """Of the manifest that was registered; any other bundle is refused. None: whichever is there."""


def app(args: dict[str, Any]) -> Application:
    """Return the application for ``args`` (see ``ForecastsArgs``)."""
    wanted = ForecastsArgs.model_validate(args)
    return serve.deployment(Forecaster, name="Model").bind(**wanted.model_dump())
