"""The port RayJobs: the fake, and Ray's Jobs API on a running farm."""

import itertools
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from cloudfarm.domain.host import NodePhase
from cloudfarm.domain.lease import Slice
from cloudfarm.domain.quantities import GIB
from cloudfarm.domain.status import JobStatus
from cloudfarm.domain.workload import Job, RayJob
from cloudfarm.errors import ConflictError, NotFoundError, UnavailableError
from cloudfarm.ports import RayJobs
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.factories import make_job
from cloudfarm.testing.fake_farm import FakeRayJobs
from tests.processes import eventually

from .bare_farm import EPOCHS, HOST, LEASE, node_in

NUMBERS = itertools.count()
SELECTOR = {"lease": LEASE.id}


class Drivers(Protocol):
    """The far side of the port: what a job's driver was started with, and how it ends."""

    ray_jobs: RayJobs

    def entrypoint(self, job_id: str) -> str: ...
    def env(self, job: Job) -> Mapping[str, str]: ...
    def end(self, job: Job, code: int) -> None: ...


@dataclass
class FakeDrivers:
    ray_jobs: FakeRayJobs

    def entrypoint(self, job_id: str) -> str:
        return f"python {job_id}.py"

    def env(self, job: Job) -> Mapping[str, str]:
        driver = self.ray_jobs.drivers[job.ray_id]
        return {**driver.env, "CLOUDFARM_LEASE": driver.label_selector["lease"]}

    def end(self, job: Job, code: int) -> None:
        status = JobStatus.FAILED if code else JobStatus.SUCCEEDED
        self.ray_jobs.end(job.ray_id, status, f"it ended with {code}", driver_exit_code=code)


@dataclass
class RealDrivers:
    """Shells that write down their environment and wait for a code to end with."""

    ray_jobs: RayJobs
    folder: Path

    def entrypoint(self, job_id: str) -> str:
        env, code = self.folder / f"{job_id}.env", self.folder / f"{job_id}.code"
        return f"env -0 > {env}; until [ -e {code} ]; do sleep 0.1; done; exit $(cat {code})"

    def env(self, job: Job) -> Mapping[str, str]:
        lines = (self.folder / f"{job.id}.env").read_text().split("\0")
        return dict(line.partition("=")[::2] for line in lines if line)

    def end(self, job: Job, code: int) -> None:
        aside = self.folder / f"{job.id}.aside"
        aside.write_text(str(code))
        aside.rename(self.folder / f"{job.id}.code")


@pytest.fixture
def drivers(farm, tmp_path) -> Drivers:
    if farm is None:
        return FakeDrivers(FakeRayJobs(ManualClock()))
    return RealDrivers(farm.port("ray_jobs"), tmp_path)


@pytest.fixture
def new_job(drivers) -> Callable[..., Job]:
    """Makes jobs that end when they are told to; no test uses the id of another."""

    def new(**changes: Any) -> Job:
        job_id = f"j{next(NUMBERS)}"
        return make_job(job_id, lease_id=LEASE.id, entrypoint=drivers.entrypoint(job_id), **changes)

    return new


async def job_in(ray_jobs: RayJobs, job: Job, *statuses: JobStatus) -> RayJob:
    """Wait until Ray says that a job has one of the statuses."""

    async def look() -> RayJob | None:
        found = (await ray_jobs.list())[job.ray_id]
        return found if found.status in statuses else None

    return await eventually(look, f"{job.ray_id} to be {statuses}")


async def test_a_job_gets_its_lease_and_environment_and_a_second_submission_changes_nothing(drivers, new_job):
    ray_jobs = drivers.ray_jobs
    job = new_job(
        runtime_env={"env_vars": {"MINE": "1", "BOTH": "the tenant's"}},
        resources={"entrypoint_label_selector": {"lease": "another"}},
    )
    order = {"env": {"OURS": "2", "BOTH": "the farm's"}, "label_selector": SELECTOR}
    await ray_jobs.submit(job, **order)
    running = await job_in(ray_jobs, job, JobStatus.RUNNING)
    assert (running.ray_id, running.ended_ms, running.driver_exit_code) == (job.ray_id, None, None)
    env = drivers.env(job)
    assert (env["MINE"], env["OURS"], env["BOTH"]) == ("1", "2", "the farm's")
    assert env["CLOUDFARM_LEASE"] == LEASE.id

    await ray_jobs.submit(replace(job, entrypoint="exit 1"), **order)
    assert (await ray_jobs.list())[job.ray_id] == running
    drivers.end(job, 0)
    over = await job_in(ray_jobs, job, JobStatus.SUCCEEDED)
    assert over.driver_exit_code == 0
    assert running.started_ms <= over.started_ms <= over.ended_ms
    await ray_jobs.submit(job, **order)
    assert (await ray_jobs.list())[job.ray_id] == over


async def test_a_job_that_fails_is_said_to_have_failed_until_it_is_deleted(drivers, new_job):
    ray_jobs = drivers.ray_jobs
    job, other = new_job(), new_job()
    await ray_jobs.submit(job, env={}, label_selector=SELECTOR)
    await ray_jobs.submit(other, env={}, label_selector=SELECTOR)
    await job_in(ray_jobs, job, JobStatus.RUNNING)
    with pytest.raises(ConflictError):  # only an ended job can be forgotten
        await ray_jobs.delete(job.ray_id)
    assert (await ray_jobs.list())[job.ray_id].status is JobStatus.RUNNING

    await job_in(ray_jobs, other, JobStatus.RUNNING)
    drivers.end(job, 3)
    failed = await job_in(ray_jobs, job, JobStatus.FAILED)
    assert failed.driver_exit_code == 3
    assert failed.message
    await ray_jobs.delete(job.ray_id)
    assert job.ray_id not in await ray_jobs.list()
    await ray_jobs.delete(job.ray_id)
    assert (await ray_jobs.list())[other.ray_id].status is JobStatus.RUNNING
    drivers.end(other, 0)
    await job_in(ray_jobs, other, JobStatus.SUCCEEDED)


async def test_a_job_is_stopped_once(drivers, new_job):
    ray_jobs = drivers.ray_jobs
    job = new_job()
    await ray_jobs.submit(job, env={}, label_selector=SELECTOR)
    await job_in(ray_jobs, job, JobStatus.RUNNING)
    assert await ray_jobs.stop(job.ray_id) is True
    stopped = await job_in(ray_jobs, job, JobStatus.STOPPED)
    assert stopped.ended_ms is not None

    async def over() -> bool:
        return await ray_jobs.stop(job.ray_id) is False

    await eventually(over, "Ray to have let go of the job")  # its supervisor ends a moment after the status
    assert (await ray_jobs.list())[job.ray_id].status is JobStatus.STOPPED


async def test_a_job_that_ray_does_not_know_cannot_be_stopped_and_need_not_be_deleted(drivers):
    with pytest.raises(NotFoundError):
        await drivers.ray_jobs.stop("kaist.train.nobody")
    await drivers.ray_jobs.delete("kaist.train.nobody")


async def test_a_ray_that_does_not_answer_is_unavailable(farm):
    port = FakeRayJobs(ManualClock(), down=True) if farm is None else farm.port("ray_jobs_down")
    for call in (
        lambda: port.submit(make_job(), env={}, label_selector=SELECTOR),
        port.list,
        lambda: port.stop("kaist.train.j1"),
        lambda: port.delete("kaist.train.j1"),
    ):
        with pytest.raises(UnavailableError):
            await call()


@pytest.mark.own_farm
async def test_jobs_start_while_nodes_are_dead_that_are_not_missed_yet(bare_farm, tmp_path):
    hosts, drivers = bare_farm.port("hosts"), RealDrivers(bare_farm.port("ray_jobs"), tmp_path)
    dead = [Slice(f"dead{number}", 0, HOST, (1,), 100, 1, GIB) for number in range(3)]
    for piece in dead:
        await hosts.start_node(
            piece, tenant="kaist", epoch=next(EPOCHS), labels={"lease": piece.lease_id}, env={}
        )
    for piece in dead:
        await node_in(hosts, piece.name, NodePhase.UP)
    for piece in dead:
        bare_farm.signal_node(piece.name, signal.SIGSTOP)  # killed, some raylets have the time to say so
    assert {piece.name for piece in dead} <= await bare_farm.port("cluster").living()
    jobs = [make_job(f"j{next(NUMBERS)}", lease_id=LEASE.id, entrypoint="true") for _ in range(4)]
    for job in jobs:
        await drivers.ray_jobs.submit(job, env={}, label_selector=SELECTOR)
    for job in jobs:
        await job_in(drivers.ray_jobs, job, JobStatus.SUCCEEDED)
    for piece in dead:
        await hosts.kill_node(HOST, piece.name, epoch=next(EPOCHS))
