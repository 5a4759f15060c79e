"""The one Serve configuration of the farm.

``PUT /api/serve/applications/`` replaces every application, so only the steward makes it, from the whole of what
should run: one tenant's change never touches another's application, which stays byte for byte the same in it.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.workload import ModelVersion, ServeApp, Service
from cloudfarm.raylayer.ray_http import RayHttp

FRONT_DOOR = "front-door"
_PATH = "/api/serve/applications/"


class ServeClient:
    """Implements :class:`cloudfarm.ports.Serving`.

    Args:
        http: the dashboard.
        address: that Serve's HTTP proxy listens on.
        port: likewise.
        state_dir: told to the front door, which reads its settings there.
    """

    def __init__(self, http: RayHttp, address: str, port: int, state_dir: str) -> None:
        self._http = http
        self._frame = {
            "proxy_location": "Disabled",
            "http_options": {"host": address, "port": port, "keep_alive_timeout_s": 75},
            "logging_config": {"enable_access_log": False},
        }
        self._front_door = {
            "name": FRONT_DOOR,
            "route_prefix": "/",
            "import_path": "services.front_door:app",
            "args": {"state_dir": state_dir},
        }
        self._applied = ""
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Make Serve run the front door if it runs nothing yet."""
        if not await self.apps():
            await self.apply([])

    async def apply(self, services: Sequence[tuple[Service, ModelVersion, Lease]]) -> None:
        """Make Serve run the front door and exactly these services; nothing is sent if nothing changed."""
        apps = [self._front_door, *(_application(*each) for each in services)]
        config = {**self._frame, "applications": apps}
        text = json.dumps(config, sort_keys=True)
        async with self._lock:
            if text != self._applied:
                await self._http.request("PUT", _PATH, json=config, timeout=120.0)
                self._applied = text

    async def apps(self) -> Mapping[str, ServeApp]:
        """Return every application by name."""
        details = (await self._http.request("GET", _PATH)).json()
        return {
            name: ServeApp(
                name=name,
                running=app["status"] == "RUNNING",
                failed=app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"),
                message=app.get("message") or "",
            )
            for name, app in details.get("applications", {}).items()
        }


def _application(service: Service, model: ModelVersion, lease: Lease) -> dict[str, Any]:
    """Return one service as Serve's configuration: every replica on a slice of its own lease, and no HTTP route.

    Without a route the only way to it is the front door, which checks the key.
    """
    options: dict[str, Any] = {"num_cpus": 1, "label_selector": {"lease": lease.id}}
    if service.milli_gpus:
        options["num_gpus"] = -(-service.milli_gpus // 1000)
    return {
        "name": service.app_name,
        "route_prefix": None,
        "import_path": service.import_path,
        "args": {
            "model_uri": model.uri,
            "num_replicas": service.replicas,
            "ray_actor_options": options,
        },
    }
