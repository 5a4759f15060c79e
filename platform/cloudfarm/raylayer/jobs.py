"""Tenants' jobs in the one cluster, through Ray's own Jobs API; and their logs while they run."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import websockets

from cloudfarm.domain.status import JobStatus
from cloudfarm.domain.workload import Job, RayJob
from cloudfarm.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError
from cloudfarm.ports import Artifacts
from cloudfarm.raylayer.ray_http import RayHttp

FORWARDED_BY_HEAD_BYTES = 1
"""What each job asks for its driver, so that it asks for anything.

Ray has a node pass on what is to be placed: the head if it needs some resource, and any node if it needs none. That may
be one that has just died, which Ray does not know for 17 s; then the job failed, though its own lease was well.
"""
_PACKAGE = "gcs://"


def own_package_name(tenant: str, name: str, data: bytes) -> str:
    """Return the name under which a tenant's package is given to Ray: by tenant and content.

    Package names are hashes that clients compute and nobody checks: sharing them would let one tenant plant a package
    that another one's job then runs. A wheel's name means something to pip, so there the digest is the build tag.
    """
    digest = hashlib.sha256(tenant.encode() + b"\0" + data).hexdigest()[:32]
    stem, dot, suffix = name.rpartition(".")
    if suffix == "whl":
        *distribution, python, abi, platform = stem.split("-")
        return "-".join([*distribution[:2], f"0{digest}", python, abi, platform]) + ".whl"
    return f"_ray_pkg_{digest}{dot}{suffix}"


class RayJobsClient:
    """Implements :class:`cloudfarm.ports.RayJobs`."""

    def __init__(self, http: RayHttp, artifacts: Artifacts) -> None:
        self._http = http
        self._artifacts = artifacts

    async def submit(self, job: Job, *, env: Mapping[str, str], label_selector: Mapping[str, str]) -> None:
        """Submit under ``job.ray_id``; a second time changes nothing.

        Packages are handed to Ray only now: Ray forgets an unused one after ten minutes, and a job may wait longer.
        """
        runtime_env = await self._with_packages(job)
        runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), **env}
        body = {
            "entrypoint": job.entrypoint,
            "submission_id": job.ray_id,
            "runtime_env": runtime_env,
            "metadata": {
                **job.metadata,
                "tenant": job.tenant,
                "lease": job.lease_id,
                "job_name": job.submission_id,
            },
            **job.resources,
            "entrypoint_memory": job.resources.get("entrypoint_memory") or FORWARDED_BY_HEAD_BYTES,
            "entrypoint_label_selector": {
                **job.resources.get("entrypoint_label_selector", {}),
                **label_selector,
            },
        }
        try:
            await self._http.request("POST", "/api/jobs/", json=body)
        except (ConflictError, InvalidInputError, UnavailableError) as error:
            # Ray answers 500 with this text for an id that it already has.
            if "already exists" not in error.detail:
                raise

    async def _with_packages(self, job: Job) -> dict[str, Any]:
        runtime_env = dict(job.runtime_env)
        if isinstance(runtime_env.get("working_dir"), str):
            runtime_env["working_dir"] = await self._hand_over(job.tenant, runtime_env["working_dir"])
        if isinstance(runtime_env.get("py_modules"), list):
            runtime_env["py_modules"] = [
                await self._hand_over(job.tenant, uri) for uri in runtime_env["py_modules"]
            ]
        return runtime_env

    async def _hand_over(self, tenant: str, uri: Any) -> Any:
        """Upload one of the tenant's packages to Ray, and return the name that it has there."""
        if not isinstance(uri, str) or not uri.startswith(_PACKAGE):
            return uri
        name = uri.removeprefix(_PACKAGE)
        data = await self._artifacts.read("tenants", tenant, "packages", name)
        own = own_package_name(tenant, name, data)
        path = f"/api/packages/gcs/{quote(own)}"
        try:
            await self._http.request("GET", path)
        except NotFoundError:
            await self._http.request("PUT", path, content=data)
        return _PACKAGE + own

    async def list(self) -> Mapping[str, RayJob]:
        """Return every submitted job by ray_id."""
        found = {}
        for row in (await self._http.request("GET", "/api/jobs/")).json():
            if row.get("submission_id"):
                found[row["submission_id"]] = RayJob(
                    ray_id=row["submission_id"],
                    status=JobStatus(row["status"]),
                    message=row.get("message") or "",
                    error_type=row.get("error_type"),
                    started_ms=row.get("start_time"),
                    ended_ms=row.get("end_time"),
                    driver_exit_code=row.get("driver_exit_code"),
                )
        return found

    async def stop(self, ray_id: str) -> bool:
        """Ask Ray to stop a job; False if it was over."""
        answer = await self._http.request("POST", f"/api/jobs/{quote(ray_id)}/stop")
        return bool(answer.json()["stopped"])

    async def delete(self, ray_id: str) -> None:
        """Make Ray forget an ended job."""
        try:
            await self._http.request("DELETE", f"/api/jobs/{quote(ray_id)}")
        except NotFoundError:
            return
        except UnavailableError as error:
            if "non-terminal" in error.detail:
                raise ConflictError(f"job {ray_id} has not ended: stop it first") from error
            raise


class RayLogs:
    """Implements :class:`cloudfarm.ports.LiveLogs`."""

    def __init__(self, http: RayHttp) -> None:
        self._http = http

    async def tail(self, job: Job) -> AsyncIterator[str]:
        """Yield the log's text from its beginning until Ray closes it.

        Raises:
            UnavailableError: if the connection breaks before that (the lease node was killed, say).
        """
        url = f"ws://{urlsplit(self._http.base_url).netloc}/api/jobs/{quote(job.ray_id)}/logs/tail"
        try:
            async with websockets.connect(
                url,
                additional_headers=self._http.headers,
                max_size=None,
                compression=None,  # with it, Ray sends nothing and closes
                close_timeout=0.1,  # Ray answers nobody who wants to leave before its own tail has ended
                ping_interval=None,  # on loopback a dead peer closes; a busy one must not be taken for dead
            ) as socket:
                async for text in socket:
                    yield text if isinstance(text, str) else text.decode(errors="replace")
        except (websockets.WebSocketException, OSError) as error:
            raise UnavailableError(f"the log of {job.submission_id} was cut off: {error}") from error

    async def read(self, job: Job) -> str:
        """Return the log so far."""
        answer = await self._http.request("GET", f"/api/jobs/{quote(job.ray_id)}/logs")
        return str(answer.json().get("logs") or "")
