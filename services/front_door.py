"""The front door as a Serve application on the head: ``services.front_door:app`` in the farm's Serve configuration."""

from pathlib import Path

from ray import serve
from ray.serve import Application


def app(args: dict[str, str]) -> Application:
    """Return the front door of the farm whose state folder is ``args["state_dir"]``."""
    state_dir = Path(args["state_dir"])

    def build():  # type: ignore[no-untyped-def]  # noqa: ANN202 - built in the replica, where its parts live
        from cloudfarm.api import create_app  # noqa: PLC0415
        from cloudfarm.container import build_api_context, load_settings  # noqa: PLC0415

        return create_app(build_api_context(load_settings(state_dir)))

    deployment = serve.deployment(
        name="FrontDoor",
        max_ongoing_requests=2000,
        ray_actor_options={"num_cpus": 0, "label_selector": {"farm": "control", "role": "head"}},
    )(serve.ingress(build)())
    return deployment.bind()
