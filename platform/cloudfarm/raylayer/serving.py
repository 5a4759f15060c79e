"""The one Serve configuration of the farm.

``PUT /api/serve/applications/`` replaces every application, so only the steward makes it, from the whole of what
should run: one tenant's change never touches another's application, which stays byte for byte the same in it.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cloudfarm.domain.bundles import manifest_digest
from cloudfarm.domain.workload import DRAIN_S, Deployment, Replica, ServeApp
from cloudfarm.errors import UnavailableError
from cloudfarm.raylayer.hook.rules import LEASE_LABEL, REVISION_LABEL
from cloudfarm.raylayer.ray_http import RayHttp

FRONT_DOOR = "front-door"
DEPLOYMENT = "Model"
"""The name of the one deployment that each of the farm's programs in ``services/`` has."""
MAX_ONGOING_REQUESTS = 100
"""Of a replica; what is beyond waits in Serve."""
MOST_SAID = 500
"""Characters of an error."""
_PATH = "/api/serve/applications/"
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
_COLOUR = re.compile(r"\x1b\[\d*m")
_ERROR = re.compile(r"[\w.]+(?::|$)")
_OWN = re.compile(r"^cloudfarm\.[\w.]+: ")


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
        self._wanted = ""
        """What Serve was last told, or was to be told."""
        self._is_told = False
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Make Serve run the front door if it runs nothing yet."""
        async with self._lock:  # what is applied between the look and the order would be taken away again
            if not await self._look():
                await self._tell([])

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        """Make Serve run the front door and exactly these; nothing is sent if nothing changed."""
        async with self._lock:
            await self._tell(deployments)

    async def _tell(self, deployments: Sequence[Deployment]) -> None:
        apps = [self._front_door, *(_application(each) for each in deployments)]
        config = {**self._frame, "applications": apps}
        text = json.dumps(config, sort_keys=True)
        if text != self._wanted or not self._is_told:
            self._wanted = text
            await self._send()

    async def _send(self) -> None:
        self._is_told = False  # until there is an answer it may have been heard or not
        await self._http.request("PUT", _PATH, json=json.loads(self._wanted), timeout=120.0)
        self._is_told = True

    async def remove(self, names: Sequence[str]) -> None:
        """Delete applications that are not in the configuration; Serve's HTTP API deletes all or none."""
        from ray.exceptions import RayError  # noqa: PLC0415 - only in a process that is connected to the cluster
        from ray.serve.context import _get_global_client  # noqa: PLC0415
        from ray.serve.exceptions import RayServeException  # noqa: PLC0415

        try:
            client = await asyncio.to_thread(_get_global_client)
            await client._controller.delete_apps.remote(list(names))  # noqa: SLF001 - without waiting for their end
        except (RayError, RayServeException) as error:
            raise UnavailableError(f"Serve does not answer: {error}") from error

    async def apps(self) -> Mapping[str, ServeApp]:
        """Return every application by name.

        Raises:
            UnavailableError: if Serve does not even run the front door; it is told everything once more.
        """
        found = await self._look()
        if FRONT_DOOR in found or not self._wanted:
            return found
        async with self._lock:
            # Unless it was about to be told: it has lost all, or the dashboard, which then says the same, has lost it.
            if FRONT_DOOR not in await self._look():
                await self._send()
        raise UnavailableError("Serve ran nothing, and has been told again what to run")

    async def _look(self) -> Mapping[str, ServeApp]:
        details = (await self._http.request("GET", _PATH)).json()
        return {name: _seen(name, app) for name, app in details.get("applications", {}).items()}


def _application(deployment: Deployment) -> dict[str, Any]:
    """Return one revision as Serve's configuration: each replica on a lease of its own, and no HTTP route.

    Without a route the only way to it is the front door, which checks the key. While leases come and go only
    ``num_replicas`` changes: any other change, of ``args`` or of a replica's options, would make Serve replace every
    replica. That is why nodes are found by the label ``revision``, and why the number is not in ``args``.
    """
    revision = deployment.revision
    options: dict[str, Any] = {"num_cpus": 1, "label_selector": {REVISION_LABEL: revision.id}}
    if deployment.service.milli_gpus:
        options["num_gpus"] = -(-deployment.service.milli_gpus // 1000)
    return {
        "name": revision.app_name,
        "route_prefix": None,
        "import_path": revision.import_path,
        "args": {"model_uri": deployment.model.uri, "digest": manifest_digest(deployment.model.manifest)},
        "deployments": [
            {
                "name": DEPLOYMENT,
                "num_replicas": deployment.replicas,
                "max_replicas_per_node": 1,
                "max_ongoing_requests": MAX_ONGOING_REQUESTS,
                "graceful_shutdown_timeout_s": DRAIN_S,
                "ray_actor_options": options,
            }
        ],
    }


def _seen(name: str, app: Mapping[str, Any]) -> ServeApp:
    """Return what Serve says of one application.

    It answers if each of its deployments has a running replica, whatever Serve calls it: while it grows or shrinks it
    is ``DEPLOYING``, and those replicas go on. One that Serve has scaled to none starts when it is asked.
    """
    deployments = list(app.get("deployments", {}).values())
    replicas = [[_replica(each) for each in deployment["replicas"]] for deployment in deployments]
    answers = [
        each["target_num_replicas"] == 0 or any(replica.running for replica in those)
        for each, those in zip(deployments, replicas, strict=True)
    ]
    return ServeApp(
        name=name,
        running=bool(answers) and all(answers) and app["status"] != "DELETING",
        failed=app["status"] in _FAILED,
        given_up=app["status"] == "DEPLOY_FAILED",
        message=_why(app, deployments),
        replicas_wanted=max((each["target_num_replicas"] for each in deployments), default=0),
        replicas=tuple(each for those in replicas for each in those),
        lease_ids=frozenset(_leases(deployments)) if app.get("source") == "imperative" else frozenset(),
    )


def _why(app: Mapping[str, Any], deployments: Sequence[Mapping[str, Any]]) -> str:
    """Return what Serve says of an application, or better the error of the deployment that it says it of.

    That is the end of a traceback, whose other lines say where in the farm's own programs it was raised.
    """
    said = [each["message"] for each in deployments if each.get("status") in _FAILED and each.get("message")]
    if not said:
        return app.get("message") or ""
    lines = _COLOUR.sub("", said[0]).strip().splitlines()
    ends = [
        number
        for number, (before, line) in enumerate(pairwise(lines), 1)
        if before[:1].isspace() and _ERROR.match(line)
    ]
    return _OWN.sub("", " ".join(line.strip() for line in lines[ends[-1] if ends else 0 :]))[:MOST_SAID]


def _leases(deployments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the leases that the start-up hook has kept an application's deployments in."""
    for deployment in deployments:
        selector = deployment["deployment_config"].get("ray_actor_options", {}).get("label_selector") or {}
        if LEASE_LABEL in selector:
            yield selector[LEASE_LABEL]


def _replica(seen: Mapping[str, Any]) -> Replica:
    # One that is to leave a node that is being drained is sent requests until another one runs.
    runs = seen["state"] in ("RUNNING", "PENDING_MIGRATION")
    return Replica(seen.get("node_id"), runs, seen["state"] == "STOPPING")
