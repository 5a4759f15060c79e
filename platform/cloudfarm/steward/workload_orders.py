"""Carrying out what was decided about jobs: in the store, and by Ray."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from cloudfarm.domain.status import Event, JobStatus, Target, transition
from cloudfarm.domain.workload import Job
from cloudfarm.errors import NotFoundError
from cloudfarm.ports import Artifacts, Hosts, RayJobs, UnitOfWork
from cloudfarm.steward import view as v
from cloudfarm.steward.orders import Handler, Orders
from cloudfarm.steward.wrapup import Published, archive_log, collect_models


@dataclass(frozen=True, slots=True)
class WorkloadOrders(Orders):
    """What jobs need."""

    hosts: Hosts
    ray_jobs: RayJobs
    artifacts: Artifacts
    max_log_bytes: int

    def handlers(self) -> Mapping[type, Handler]:
        """Return what carries out each kind of decision."""
        return {
            v.SubmitJob: self._submit_job,
            v.StopJob: self._stop_job,
            v.UpdateJob: self._update_job,
            v.RequeueJob: self._requeue_job,
        }

    async def _submit_job(self, decision: v.SubmitJob, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            job = await uow.jobs.get(decision.job_id)
            if job.submitted_ms is None:
                await uow.jobs.update(replace(job, submitted_ms=view.now_ms))

        await self.in_store(epoch, work)
        job = next(job for job in view.jobs if job.id == decision.job_id)
        lease = view.leases_by_id[job.lease_id]
        env = {
            "CLOUDFARM_JOB": job.id,
            "CLOUDFARM_MODEL_OUTBOX": self.artifacts.uri("tenants", job.tenant, "outbox", job.id),
        }
        if (
            job.attempt
        ):  # a steward that died as it handed the one before over may have been heard after that was stopped
            await self._stop(replace(job, attempt=job.attempt - 1).ray_id)
        try:
            await self.ray_jobs.submit(job, env=env, label_selector={"lease": lease.id})
        finally:  # what failed without an answer may have been taken
            await self._stop_unwanted(job)

    async def _stop_unwanted(self, job: Job) -> None:
        """Stop what was handed to Ray and is not wanted any more: its packages took their time.

        An older steward may do so, too: what is over or tried anew by the store will never be wanted again.
        """
        async with self.store.begin(write=False) as uow:
            try:
                now = await uow.jobs.get(job.id)
            except NotFoundError:  # it was over, and its tenant has deleted it
                now = None
        if (
            now is None
            or now.status.is_terminal
            or now.target is Target.END
            or now.ray_id != job.ray_id  # preempted meanwhile
        ):
            await self._stop(job.ray_id)

    async def _stop_job(self, decision: v.StopJob, view: v.FarmView, epoch: int) -> bool:
        await self.check(epoch)
        await self.ray_jobs.stop(next(job.ray_id for job in view.jobs if job.id == decision.job_id))
        return False

    async def _update_job(self, decision: v.UpdateJob, view: v.FarmView, epoch: int) -> None:
        seen = next(job for job in view.jobs if job.id == decision.job_id)
        lease = view.leases_by_id.get(seen.lease_id)
        log_uri = seen.log_uri
        published = Published()
        if decision.status.is_terminal and seen.submitted_ms is not None:
            # Before the lease may end: afterwards the host keeps the log only as long as its disk does.
            if lease is not None:
                log_uri = await archive_log(
                    seen, lease, self.hosts, self.artifacts, self.max_log_bytes, final=True
                )
            if decision.status is JobStatus.SUCCEEDED:
                published = await collect_models(seen, self.artifacts)

        async def work(uow: UnitOfWork) -> None:
            job = await uow.jobs.get(decision.job_id)
            ray = decision.ray
            step = transition(
                job,
                decision.status,
                now_ms=view.now_ms,
                message=decision.message,
                log_uri=log_uri,
                started_ms=(ray.started_ms if ray else None) or job.started_ms,
                ended_ms=((ray.ended_ms if ray else None) or view.now_ms)
                if decision.status.is_terminal
                else None,
                error_type=job.error_type or (ray.error_type if ray else None),
                driver_exit_code=ray.driver_exit_code if ray else None,
            )
            await uow.apply(step)
            for name, uri, manifest in published.models:
                model = await uow.models.register(
                    tenant=job.tenant,
                    name=name,
                    uri=uri,
                    job_id=job.id,
                    manifest=manifest,
                    now_ms=view.now_ms,
                )
                await uow.events.append(
                    Event(
                        view.now_ms,
                        "model.registered",
                        model.id,
                        job.tenant,
                        "steward",
                        f"{model.ref} from job {job.submission_id}",
                    ),
                )
            if told := published.told():
                message = f"job {job.submission_id} published what is no model: {told}"
                await uow.events.append(
                    Event(view.now_ms, "model.refused", job.id, job.tenant, "steward", message)
                )

        await self.in_store(epoch, work)

    async def _requeue_job(self, decision: v.RequeueJob, view: v.FarmView, epoch: int) -> None:
        seen = next(job for job in view.jobs if job.id == decision.job_id)
        lease = view.leases_by_id[seen.lease_id]
        await archive_log(seen, lease, self.hosts, self.artifacts, self.max_log_bytes, final=False)
        # Its supervisor may still wait for a place in the lease: with the next segment's nodes it would get one, and
        # two attempts write into one folder.
        await self.check(epoch)
        await self._stop(seen.ray_id)

        async def work(uow: UnitOfWork) -> None:
            job = await uow.jobs.get(decision.job_id)
            job = replace(job, submitted_ms=None, attempt=seen.attempt + 1, error_type=None)
            message = "preempted; waits for its lease's next segment"
            if job.status is JobStatus.PENDING:
                await uow.jobs.update(replace(job, message=message))
            else:
                await uow.apply(transition(job, JobStatus.PENDING, now_ms=view.now_ms, message=message))

        await self.in_store(epoch, work)

    async def _stop(self, ray_id: str) -> None:
        """Stop what Ray has under an id, if it has anything."""
        with suppress(NotFoundError):
            await self.ray_jobs.stop(ray_id)
