"""Ray jobs of a tenant: submit, list, show, stop, delete."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from cloudfarm.clock import Clock
from cloudfarm.domain.ids import new_id
from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.quantities import parse_bytes, parse_count
from cloudfarm.domain.status import Event, JobStatus, LeaseStatus, Target
from cloudfarm.domain.tenant import Role
from cloudfarm.domain.workload import Job
from cloudfarm.errors import ConflictError, InvalidInputError, NotFoundError, TooManyError
from cloudfarm.ports import Artifacts, Store, UnitOfWork
from cloudfarm.settings import Settings
from cloudfarm.usecases import paths
from cloudfarm.usecases.access import Principal, in_unit, is_identifier, missing
from cloudfarm.usecases.asks import build_ask, build_not_before, build_project, check_ask
from cloudfarm.usecases.job_request import LEASE_KEY, JobRequest, read_job_request
from cloudfarm.usecases.leases import add_lease, held_lease
from cloudfarm.usecases.runtime_env import packages_of

LIST_LIMIT = 1000
"""Jobs in one list: Ray's own client knows no pages."""
_ALPHABET = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ123456789"


@dataclass(frozen=True, slots=True)
class JobView:
    """A job and, while it waits, why."""

    job: Job
    message: str
    notice: str = ""
    """While it runs: that its lease is about to end, and why."""


async def submit_job(
    store: Store,
    clock: Clock,
    settings: Settings,
    artifacts: Artifacts,
    principal: Principal,
    *,
    body: Any,
) -> Job:
    """Queue a job in a lease of its own, or in one that the tenant holds: both are stored, or neither.

    Args:
        store: the records.
        clock: the time.
        settings: defaults and limits.
        artifacts: where the job's packages must lie already.
        principal: who submits.
        body: what Ray's client sent: see :mod:`cloudfarm.usecases.job_request`.

    Raises:
        AlreadyExistsError: if the tenant has used the submission id.
        CloudfarmError: whatever else is wrong with it, in one sentence.
    """
    principal.need(Role.MEMBER)
    tenant = principal.home
    request = read_job_request(body)
    submission_id = (
        request.submission_id or f"raysubmit_{''.join(secrets.choice(_ALPHABET) for _ in range(16))}"
    )
    for name in packages_of(request.runtime_env):
        if not await artifacts.exists(*paths.package(tenant, name)):
            raise InvalidInputError(f"package {name} has not been uploaded")
    ask = _ask_of(request, settings, clock) if request.lease is None else None
    project = build_project(request.metadata.get("project")) if ask is not None else ""

    async def work(uow: UnitOfWork) -> Job:
        await _check_queue(uow, settings, tenant)
        if ask is not None:
            await check_ask(uow, settings, tenant, ask, project)
            lease = await add_lease(
                uow, clock, principal, ask, kind=LeaseKind.JOB, name=submission_id, project=project
            )
        else:
            lease = await held_lease(uow, principal, request.lease or "")
        job = _job_of(request, submission_id, lease, principal, clock, owns_lease=ask is not None)
        await uow.jobs.add(job)
        message = f"{submission_id} in lease {lease.id}"
        await uow.events.append(
            Event(job.created_ms, "job.submitted", job.id, tenant, principal.actor, message)
        )
        return job

    return await in_unit(store, work)


async def list_jobs(store: Store, principal: Principal) -> Sequence[JobView]:
    """Return the tenant's newest jobs, oldest first."""
    principal.need(Role.VIEWER)
    tenant = principal.home
    async with store.begin(write=False) as uow:
        jobs = await uow.jobs.list(tenant=tenant, limit=LIST_LIMIT)
        leases = {lease.id: lease for lease in await uow.leases.list(tenant=tenant, open_only=True)}
    return [JobView(job, _message(job, leases.get(job.lease_id))) for job in jobs]


async def get_job(store: Store, principal: Principal, submission_id: str) -> JobView:
    """Return a job."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        job = await find_job(uow, principal, submission_id)
        lease = None if job.status.is_terminal else await uow.leases.get(job.lease_id)
    return JobView(job, _message(job, lease), _notice(job, lease))


async def stop_job(store: Store, clock: Clock, principal: Principal, submission_id: str) -> bool:
    """Ask for a job to be stopped; False if it is over, as Ray answers."""
    principal.need(Role.MEMBER)

    async def work(uow: UnitOfWork) -> bool:
        job = await find_job(uow, principal, submission_id)
        if job.status.is_terminal:
            return False
        if job.target is Target.RUN:
            await uow.jobs.update(replace(job, target=Target.END))
            await uow.events.append(
                Event(clock.now_ms(), "job.stop_asked", job.id, job.tenant, principal.actor)
            )
        return True

    return await in_unit(store, work)


async def delete_job(
    store: Store,
    clock: Clock,
    artifacts: Artifacts,
    principal: Principal,
    submission_id: str,
) -> None:
    """Forget an ended job and its log; its lease and what it cost stay on record.

    Raises:
        ConflictError: if it is not over.
    """
    principal.need(Role.MEMBER)

    async def work(uow: UnitOfWork) -> Job:
        job = await find_job(uow, principal, submission_id)
        if not job.status.is_terminal:
            raise ConflictError(f"job {submission_id} is {job.status}; stop it first")
        await uow.jobs.delete(job.id)
        message = job.submission_id
        await uow.events.append(
            Event(clock.now_ms(), "job.deleted", job.id, job.tenant, principal.actor, message)
        )
        return job

    job = await in_unit(store, work)
    for parts in paths.job_logs(job):
        await artifacts.delete(*parts)


async def count_active(store: Store, principal: Principal) -> tuple[int, int | None]:
    """Return how many jobs run, and when one last ended: what ``/api/component_activities`` tells."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        jobs = await uow.jobs.list(tenant=principal.scope(None), limit=LIST_LIMIT)
    running = sum(job.status is JobStatus.RUNNING for job in jobs)
    return running, max((job.ended_ms for job in jobs if job.ended_ms is not None), default=None)


async def find_job(uow: UnitOfWork, principal: Principal, submission_id: str) -> Job:
    """Return a job of the principal's tenant, else raise what a missing one raises."""
    if is_identifier(submission_id):
        try:
            return await uow.jobs.find(principal.home, submission_id)
        except NotFoundError:
            raise missing("job", submission_id) from None
    raise missing("job", submission_id)


def _ask_of(request: JobRequest, settings: Settings, clock: Clock) -> Ask:
    metadata = request.metadata
    gpus: str | float = metadata.get("gpus", request.num_gpus if request.num_gpus is not None else "0")
    cpus = parse_count(metadata.get("cpus", settings.default_cpus), name="cpus", at_least=1)
    memory = parse_bytes(metadata.get("memory", settings.default_memory))
    distinct = metadata.get("distinct_gpus", "true")
    if distinct not in ("true", "false"):
        raise InvalidInputError("metadata: distinct_gpus is 'true' or 'false'")
    return build_ask(
        settings,
        gpus=gpus,
        cpus=max(cpus, ceil(request.num_cpus or 0)),
        memory=max(memory, request.memory or 0),
        hours=metadata.get("hours"),
        gpu_model=metadata.get("gpu_model"),
        distinct_gpus=distinct == "true",
        priority=metadata.get("priority"),
        not_before_ms=build_not_before(metadata.get("not_before"), clock.now_ms()),
    )


def _job_of(
    request: JobRequest,
    submission_id: str,
    lease: Lease,
    principal: Principal,
    clock: Clock,
    *,
    owns_lease: bool,
) -> Job:
    # The entrypoint's CPUs, GPUs and memory made the lease. They are not passed on: Ray would set them aside
    # for the driver alone, and the job's own tasks would wait for ever for what is left of a slice.
    resources: dict[str, Any] = {}
    if request.resources:
        resources["entrypoint_resources"] = dict(request.resources)
    if request.label_selector:
        # The lease is in it although whoever submits to Ray adds it as well: no order of merging the two may
        # lead out of the lease.
        resources["entrypoint_label_selector"] = {**request.label_selector, LEASE_KEY: lease.id}
    return Job(
        id=new_id("j"),
        tenant=lease.tenant,
        owner=principal.user,
        submission_id=submission_id,
        lease_id=lease.id,
        owns_lease=owns_lease,
        entrypoint=request.entrypoint,
        created_ms=clock.now_ms(),
        runtime_env=request.runtime_env,
        metadata=request.metadata,
        resources=resources,
    )


async def _check_queue(uow: UnitOfWork, settings: Settings, tenant: str) -> None:
    waiting = sum(
        job.status is JobStatus.PENDING for job in await uow.jobs.list(tenant=tenant, open_only=True)
    )
    if waiting >= settings.max_waiting:
        raise TooManyError(
            f"{waiting} jobs of tenant {tenant} are waiting already, and that is the most",
            max_waiting=settings.max_waiting,
        )


def _notice(job: Job, lease: Lease | None) -> str:
    if job.status is not JobStatus.RUNNING or lease is None:
        return ""
    return lease.message if lease.preempted_ms is not None or lease.noticed_ms is not None else ""


def _message(job: Job, lease: Lease | None) -> str:
    if job.status is not JobStatus.PENDING or lease is None:
        return _notice(job, lease) or job.message
    if job.target is Target.END:
        return "is being stopped"
    if lease.status is LeaseStatus.ACTIVE:
        return job.message or f"lease {lease.id} is ready; the driver is being started"
    return f"waits for lease {lease.id} ({lease.ask.shape} GPU): {lease.told or lease.status.lower()}"
