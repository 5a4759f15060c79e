"""Wind power forecasts on Ray Serve: a model bundle behind a handle, no HTTP of its own.

In a Serve config::

    applications:
      - name: forecasts
        import_path: services.forecasts:app
        args: {model_uri: /models/windpower-forecaster}
        route_prefix: null
        deployments:
          - {name: Forecaster, ray_actor_options: {num_gpus: 1}}     # without it: on CPU

and from Python: ``await serve.get_app_handle("forecasts").handle.remote(payload)``; ``describe`` gives the
model's card.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from cloudfarm.inference.forecasts import Forecaster


class ForecastsArgs(BaseModel):
    """The application's ``args``: ``model_uri`` is the path or URI of a model bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    model_uri: str


def app(args: dict[str, Any]) -> Application:
    """Return the application for ``args`` (see ``ForecastsArgs``)."""
    deployment = serve.deployment(Forecaster, name="Forecaster", max_ongoing_requests=100)
    return deployment.bind(model_uri=ForecastsArgs.model_validate(args).model_uri)
