"""What is kept of a job when it ends: its log and the models that it published."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.workload import Job, attempt_line
from cloudfarm.errors import HostError, NotFoundError, UnavailableError
from cloudfarm.ports import Artifacts, Hosts

log = logging.getLogger(__name__)


async def archive_log(
    job: Job, lease: Lease, hosts: Hosts, artifacts: Artifacts, max_bytes: int, *, final: bool
) -> str | None:
    """Copy the driver's log from the lease node that ran it to the artifact store; None if no host has it.

    What a preempted job printed before goes first; of too long a log the end is kept. Each attempt's log is a file of
    its own until the ``final`` one, so doing this twice does no harm.
    """
    folder = ("tenants", job.tenant, "logs")
    before = await _log_of_attempt(artifacts, folder, job, job.attempt - 1) if job.attempt else b""
    file = f"job-driver-{job.ray_id}.log"
    for piece in lease.slices:
        try:
            text = await hosts.read_log(piece.host, piece.name, file, max_bytes=max_bytes)
        except (NotFoundError, HostError, UnavailableError) as error:
            log.info("log of job %s is not on %s: %s", job.ray_id, piece.name, error)
            continue
        parts = (*folder, f"{job.id}.log" if final else f"{job.id}.{job.attempt}.log")
        await artifacts.write(*parts, data=_once((before + text)[-max_bytes:]), max_bytes=max_bytes)
        return artifacts.uri(*parts)
    return None


async def _log_of_attempt(artifacts: Artifacts, folder: tuple[str, ...], job: Job, attempt: int) -> bytes:
    try:
        text = await artifacts.read(*folder, f"{job.id}.{attempt}.log")
    except NotFoundError:
        return b""  # no host had it
    return text + attempt_line(attempt + 1).encode()


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
