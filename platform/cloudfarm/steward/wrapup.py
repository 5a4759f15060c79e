"""What is kept of a job when it ends: its log and the models that it published."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudfarm.domain.bundles import MANIFEST, MAX_MANIFEST_BYTES, check_name, parse_manifest
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.workload import Job, attempt_line
from cloudfarm.errors import (
    CloudfarmError,
    HostError,
    NotFoundError,
    StorageRefusedError,
    TooManyError,
    UnavailableError,
)
from cloudfarm.ports import Artifacts, Hosts

log = logging.getLogger(__name__)

MAX_MODELS = 100
"""Of one job: all their manifests are in memory at once."""
MAX_TOLD = 10


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


@dataclass(frozen=True, slots=True)
class Published:
    """What a job left in its outbox."""

    models: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    """``(name, uri, manifest)`` of every whole bundle."""
    refused: Sequence[str] = ()
    """What is no model, and why."""

    def told(self) -> str:
        """Return what the owner is told of what is refused; empty if nothing is."""
        if not self.refused:
            return ""
        more = len(self.refused) - MAX_TOLD
        return "; ".join([*self.refused[:MAX_TOLD], *([f"and {more} more"] if more > 0 else [])])


async def collect_models(job: Job, artifacts: Artifacts) -> Published:
    """Return what a job published.

    A tenant wrote all of it, and a bundle's manifest last: whatever it is, it keeps neither the job from ending nor
    another model from being registered.

    Raises:
        UnavailableError: the store does not answer; it may later.
    """
    models: list[tuple[str, str, Mapping[str, Any]]] = []
    refused: list[str] = []
    outbox = ("tenants", job.tenant, "outbox", job.id)
    try:
        names = await artifacts.list(*outbox)
    except StorageRefusedError as closed:
        return Published(refused=[f"the outbox: {closed}"])
    for name in names:
        try:
            check_name(name)
            if not await artifacts.exists(*outbox, name, MANIFEST):
                continue
            if len(models) == MAX_MODELS:
                raise TooManyError(f"a job publishes {MAX_MODELS} models at most")
            content = await artifacts.read(*outbox, name, MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
            models.append((name, artifacts.uri(*outbox, name), parse_manifest(content)))
        except CloudfarmError as bad:
            if isinstance(bad, UnavailableError) and not isinstance(bad, StorageRefusedError):
                raise
            refused.append(f"{name[:80]!r}: {bad.detail}")
    return Published(models, refused)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
