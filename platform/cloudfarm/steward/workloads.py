"""What jobs need next."""

from collections.abc import Iterator

from cloudfarm.domain.lease import Lease, LeaseKind
from cloudfarm.domain.status import EndReason, JobStatus, LeaseStatus, Target
from cloudfarm.domain.workload import LEFT_ITS_LEASE, Job, RayJob
from cloudfarm.steward.view import (
    Decision,
    FarmView,
    ReleaseLease,
    RequeueJob,
    StopJob,
    SubmitJob,
    UpdateJob,
)


def jobs(view: FarmView) -> Iterator[Decision]:
    """Yield what the open jobs need."""
    for job in view.jobs:
        lease = view.leases_by_id.get(job.lease_id)
        yield from _waiting_job(job, lease) if job.submitted_ms is None else _submitted_job(job, lease, view)


def _waiting_job(job: Job, lease: Lease | None) -> Iterator[Decision]:
    if job.target is Target.END:
        yield UpdateJob(job.id, JobStatus.STOPPED, "stopped before it started")
    elif lease is None or (lease.status is LeaseStatus.ENDING and not _waits_anew(lease)):
        yield _lost(job, lease)
    elif lease.status is LeaseStatus.WAITING and lease.target is Target.END:
        yield UpdateJob(job.id, JobStatus.STOPPED, f"its lease {lease.id} was given up")
    elif lease.status is LeaseStatus.ACTIVE and lease.target is Target.RUN and lease.preempted_ms is None:
        yield SubmitJob(job.id)


def _submitted_job(job: Job, lease: Lease | None, view: FarmView) -> Iterator[Decision]:
    if view.ray_jobs is None:
        return
    ray = view.ray_jobs.get(job.ray_id)
    if _is_preempted(job, lease, ray):
        yield RequeueJob(job.id)
        return
    if ray is not None and ray.status.is_terminal and job.error_type == LEFT_ITS_LEASE:
        yield UpdateJob(job.id, JobStatus.FAILED, job.message, ray)
    elif ray is not None and ray.status.is_terminal:
        yield UpdateJob(job.id, ray.status, ray.message, ray)
    elif lease is None or lease.status is not LeaseStatus.ACTIVE:
        yield _lost(job, lease)
    elif ray is None:
        # The steward died between noting the submission and making it; submitting twice is harmless.
        yield (
            UpdateJob(job.id, JobStatus.STOPPED, "stopped before it started")
            if job.target is Target.END
            else SubmitJob(job.id)
        )
    else:
        if ray.status is JobStatus.RUNNING and job.status is JobStatus.PENDING:
            yield UpdateJob(job.id, JobStatus.RUNNING, ray.message, ray)
        if job.target is Target.END:
            yield StopJob(job.id)


def _is_preempted(job: Job, lease: Lease | None, ray: RayJob | None) -> bool:
    """Whether a job has to be run again: it is over, unfinished, and its lease was being taken from it.

    A job that fails while its lease is drained failed of that, as far as anybody can tell.
    """
    if lease is None or job.target is Target.END or job.error_type == LEFT_ITS_LEASE:
        return False
    if lease.status is LeaseStatus.ACTIVE:
        return lease.preempted_ms is not None and ray is not None and ray.status is JobStatus.FAILED
    # One that was stopped, and not by its owner, was stopped to be run again, by a step that could not store that.
    finished = ray is not None and ray.status is JobStatus.SUCCEEDED
    return lease.status is LeaseStatus.ENDING and _waits_anew(lease) and not finished


def _waits_anew(lease: Lease) -> bool:
    """Whether an ending lease will wait for another segment: unless its owner has released it meanwhile."""
    return lease.reason is EndReason.PREEMPTED and lease.target is Target.RUN


def _lost(job: Job, lease: Lease | None) -> UpdateJob:
    reason = lease.reason if lease is not None else None
    why = lease.message if lease is not None and lease.message else "it has ended"
    given_up = (EndReason.RELEASED, EndReason.CANCELLED, EndReason.PREEMPTED)
    stopped = job.target is Target.END or reason in given_up
    return UpdateJob(
        job.id, JobStatus.STOPPED if stopped else JobStatus.FAILED, f"its lease {job.lease_id} ended: {why}"
    )


def releases(view: FarmView) -> Iterator[Decision]:
    """Yield a release for every lease whose job is over."""
    used = {job.lease_id for job in view.jobs}
    for lease in view.leases:
        over = lease.kind is LeaseKind.JOB and lease.id not in used
        if over and lease.target is Target.RUN and lease.status is not LeaseStatus.ENDING:
            yield ReleaseLease(lease.id, EndReason.JOB_FINISHED)
