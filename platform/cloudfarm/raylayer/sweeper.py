"""Stops what the watch finds: the stray work itself, and the driver of the job that sent it there."""

import asyncio
import logging
from collections.abc import Sequence

import grpc
import ray

from cloudfarm.clock import Clock
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import Event
from cloudfarm.errors import CloudfarmError, UnavailableError
from cloudfarm.ports import RayJobs
from cloudfarm.raylayer.watch import Stray, Watch

log = logging.getLogger(__name__)


class RayWatch:
    """Implements :class:`cloudfarm.ports.Watch`; lives in a process that is connected to the cluster."""

    def __init__(self, ray_jobs: RayJobs, clock: Clock) -> None:
        self._ray_jobs = ray_jobs
        self._clock = clock
        self._watch = Watch(ray.get_runtime_context().gcs_address)

    async def sweep(self, leases: Sequence[Lease]) -> Sequence[Event]:
        """Stop everything that runs where it should not, and say what and why.

        Raises:
            UnavailableError: if the cluster cannot be asked just now.
        """
        try:
            survey = await asyncio.to_thread(self._watch.survey)
        except grpc.RpcError as error:
            raise UnavailableError(f"the cluster cannot be surveyed: {error.code()}") from error
        tenants = {lease.id: lease.tenant for lease in leases}
        events = [await self._stop(stray, tenants.get(stray.owner_lease)) for stray in survey.strays]
        # Ray retries a killed task where its job wants it: the job has to go as well.
        for ray_id in {stray.submission_id for stray in survey.strays if stray.submission_id}:
            try:
                await self._ray_jobs.stop(ray_id)
            except CloudfarmError as error:
                log.warning("job %s strays and cannot be stopped just now: %s", ray_id, error)
        return events

    async def _stop(self, stray: Stray, tenant: str | None) -> Event:
        message = f"{stray.reason}; it was stopped"
        try:
            await asyncio.to_thread(self._watch.stop_stray, stray)
        except grpc.RpcError as error:
            message = f"{stray.reason}; stopping it failed ({error.code()}) and is tried again"
        subject = stray.submission_id or stray.owner_lease
        return Event(self._clock.now_ms(), "watch.stopped", subject, tenant, "steward", message)
