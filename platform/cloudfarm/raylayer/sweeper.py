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
from cloudfarm.raylayer.strays import Stray
from cloudfarm.raylayer.watch import Watch

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
        for stray in {stray.job_id: stray for stray in survey.strays}.values():
            await self._stop_job(stray)
        return events

    async def _stop_job(self, stray: Stray) -> None:
        try:
            if stray.submission_id:
                await self._ray_jobs.stop(stray.submission_id)
            else:
                await asyncio.to_thread(self._watch.stop_driver, stray)
        except (CloudfarmError, grpc.RpcError) as error:
            log.warning(
                "job %s strays and cannot be stopped just now: %s", stray.submission_id or stray.job_id, error
            )

    async def _stop(self, stray: Stray, tenant: str | None) -> Event:
        message = f"{stray.reason}; it was stopped"
        try:
            await asyncio.to_thread(self._watch.stop_stray, stray)
        except grpc.RpcError as error:
            message = f"{stray.reason}; stopping it failed ({error.code()}) and is tried again"
        subject = stray.submission_id or stray.owner_lease
        return Event(self._clock.now_ms(), "watch.stopped", subject, tenant, "steward", message)
