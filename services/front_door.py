"""The front door as a Serve application on the head: ``services.front_door:app`` in the farm's Serve configuration."""

from pathlib import Path

from ray import serve
from ray.serve import Application


class FrontDoor:
    """A replica that listens for itself: with Serve's proxy before it each request would make one hop more."""

    async def __init__(self, state_dir: str) -> None:
        """Listen, and return when requests are answered."""
        from cloudfarm.api import create_app  # noqa: PLC0415 - in the replica, where its parts live
        from cloudfarm.api.listener import Listener  # noqa: PLC0415
        from cloudfarm.container import build_api_context, load_settings  # noqa: PLC0415

        settings = load_settings(Path(state_dir))
        self._listener = Listener(
            create_app(build_api_context(settings)),
            settings.bind_address,
            settings.port,
            max_message_bytes=settings.max_body_bytes,
        )
        await self._listener.open()

    def check_health(self) -> None:
        """Let Serve replace a replica that does not listen any more."""
        self._listener.check()

    async def __del__(self) -> None:
        """Answer what has been asked, and end."""
        await self._listener.close()


def app(args: dict[str, str]) -> Application:
    """Return the front door of the farm whose state folder is ``args["state_dir"]``."""
    deployment = serve.deployment(
        name="FrontDoor",
        ray_actor_options={"num_cpus": 0, "label_selector": {"farm": "control", "role": "head"}},
    )(FrontDoor)
    return deployment.bind(args["state_dir"])
