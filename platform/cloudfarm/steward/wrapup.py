"""What is kept of a job when it ends: its log and the models that it published."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.workload import Job
from cloudfarm.errors import HostError, NotFoundError, UnavailableError
from cloudfarm.ports import Artifacts, Hosts

log = logging.getLogger(__name__)


async def archive_log(
    job: Job, lease: Lease, hosts: Hosts, artifacts: Artifacts, max_bytes: int
) -> str | None:
    """Copy the driver's log from the lease node that ran it to the artifact store; None if no host has it."""
    file = f"job-driver-{job.ray_id}.log"
    for piece in lease.slices:
        try:
            text = await hosts.read_log(piece.host, piece.name, file, max_bytes=max_bytes)
        except (NotFoundError, HostError, UnavailableError) as error:
            log.info("log of job %s is not on %s: %s", job.ray_id, piece.name, error)
            continue
        parts = ("tenants", job.tenant, "logs", f"{job.id}.log")
        await artifacts.write(*parts, data=_once(text), max_bytes=max_bytes)
        return artifacts.uri(*parts)
    return None


async def collect_models(job: Job, artifacts: Artifacts) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return ``(name, uri, manifest)`` of every whole bundle in the job's outbox (a manifest is written last)."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    outbox = ("tenants", job.tenant, "outbox", job.id)
    for name in await artifacts.list(*outbox):
        if not await artifacts.exists(*outbox, name, "model.json"):
            continue
        try:
            manifest = json.loads(await artifacts.read(*outbox, name, "model.json"))
        except ValueError as error:
            log.warning(
                "job %s published a model '%s' with an unreadable manifest: %s", job.ray_id, name, error
            )
            continue
        if isinstance(manifest, dict):
            found.append((name, artifacts.uri(*outbox, name), manifest))
    return found


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
