"""What was promised comes back: the whole life of a preemption on a farm in memory."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cloudfarm.domain.lease import LeaseKind
from cloudfarm.domain.ledger import REFUND
from cloudfarm.domain.quantities import GIB
from cloudfarm.domain.quota import Amounts, Quota
from cloudfarm.domain.status import JobStatus, LeaseStatus
from cloudfarm.errors import UnavailableError
from cloudfarm.scheduler.rules import Rules
from cloudfarm.testing.fake_farm import FakeRayJobs
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants

NOTICE_MS = 60_000
QUOTAS = [Quota(name, None, Amounts(2000, 16, 64 * GIB)) for name in ("a", "b")]
RULES = Rules(min_run_ms=600_000, preempt_notice_ms=NOTICE_MS)


@pytest.fixture
async def farm() -> MemoryFarm:
    """Tenant a holds the whole farm, half of it borrowed; its second lease runs a job."""
    farm = MemoryFarm(rules=RULES, quotas=QUOTAS)
    farm.hosts.busy = {"h0", "h1"}  # else Ray ends drained nodes at once
    await farm.begin()
    await farm.request("own", "2x1", hours=10)
    await farm.settle()
    farm.clock.advance(1000)
    await farm.request("borrowed", "2x1", hours=10, kind=LeaseKind.JOB, project="x")
    await farm.submit("train", "borrowed")
    await farm.settle()
    return farm


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def tick(farm: MemoryFarm, ms: int = 0) -> None:
    farm.clock.advance(ms)
    await farm.settle()
    await check_invariants(farm.store)


async def test_a_borrower_is_told_stopped_queued_anew_and_refunded(farm: MemoryFarm) -> None:
    await farm.request("promised", "2x1", tenant="b", hours=1)
    await tick(farm, 60_000)
    assert (await farm.lease("borrowed")).preempted_ms is None  # it has not had its minimum time
    await tick(farm, 540_000)
    told = await farm.lease("borrowed")
    assert told.preempted_ms == farm.clock.now_ms() + NOTICE_MS
    assert "another tenant's lease, which is within its guarantee" in told.message
    assert "promised" not in told.message
    assert {host for host, _, _ in farm.hosts.drained} == {"h1"}
    assert (await farm.lease("own")).preempted_ms is None
    assert "room is made for it" in (await farm.lease("promised")).message
    await tick(farm, NOTICE_MS - 1)
    assert (await farm.lease("borrowed")).status is LeaseStatus.ACTIVE
    await tick(farm, 1)
    promised, waits, job = (
        await farm.lease("promised"),
        await farm.lease("borrowed"),
        await farm.job("train"),
    )
    assert promised.status is LeaseStatus.ACTIVE
    assert (waits.status, waits.slices, waits.preempted_ms) == (LeaseStatus.WAITING, (), None)
    assert (job.status, job.attempt, job.submitted_ms) == (JobStatus.PENDING, 1, None)
    async with farm.store.begin(write=False) as uow:
        charged, refund = await uow.ledger.list(lease_id="borrowed")
    assert charged.milli_gpu_seconds == 2000 * 660
    assert (refund.kind, refund.milli_gpu_seconds) == (REFUND, -charged.milli_gpu_seconds)
    assert (charged.project, refund.project) == ("x", "x")
    await farm.release("promised")
    await tick(farm)
    again, job = await farm.lease("borrowed"), await farm.job("train")
    assert (again.status, again.segment) == (LeaseStatus.ACTIVE, 3)
    assert job.ray_id in farm.ray_jobs.jobs
    farm.ray_jobs.end(job.ray_id, JobStatus.SUCCEEDED)
    await tick(farm)
    assert (await farm.job("train")).status is JobStatus.SUCCEEDED
    assert (await farm.lease("borrowed")).status is LeaseStatus.ENDED


@pytest.mark.parametrize("ended", [JobStatus.SUCCEEDED, JobStatus.FAILED])
async def test_a_job_that_ends_in_its_notice(farm: MemoryFarm, ended: JobStatus) -> None:
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 600_000)
    farm.ray_jobs.end((await farm.job("train")).ray_id, ended)
    await tick(farm, 1000)
    job = await farm.job("train")
    if ended is JobStatus.SUCCEEDED:
        assert (job.status, (await farm.lease("borrowed")).status) == (ended, LeaseStatus.ENDED)
    else:  # of the drain, as far as anybody can tell
        assert (job.status, job.attempt) == (JobStatus.PENDING, 1)
        assert job.ray_id not in farm.ray_jobs.jobs


async def preempt(farm: MemoryFarm) -> None:
    """Let the notice of the job's lease pass, which then waits anew."""
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 600_000)
    await tick(farm, NOTICE_MS)


async def test_an_attempt_that_never_got_its_place_does_not_run_beside_the_next_one(farm: MemoryFarm) -> None:
    first = (await farm.job("train")).ray_id
    farm.ray_jobs.jobs[first] = replace(farm.ray_jobs.jobs[first], status=JobStatus.PENDING)
    await preempt(farm)
    assert farm.ray_jobs.jobs[first].status is JobStatus.STOPPED
    await farm.release("promised")
    await tick(farm)
    job = await farm.job("train")
    assert (job.attempt, job.status) == (1, JobStatus.RUNNING)
    assert farm.ray_jobs.jobs[job.ray_id].status is JobStatus.RUNNING


async def test_an_attempt_that_ray_hears_of_after_it_was_stopped_does_not_run_beside_the_next_one(
    farm: MemoryFarm,
) -> None:
    first = (await farm.job("train")).ray_id
    handed_over = replace(
        farm.ray_jobs.jobs.pop(first), status=JobStatus.PENDING
    )  # by a steward that has died
    await preempt(farm)
    farm.ray_jobs.jobs[first] = handed_over
    await farm.release("promised")
    await tick(farm)
    job = await farm.job("train")
    assert (job.attempt, job.status) == (1, JobStatus.RUNNING)
    assert farm.ray_jobs.jobs[first].status is JobStatus.STOPPED


async def test_a_job_that_ray_has_forgotten_waits_anew_all_the_same(farm: MemoryFarm) -> None:
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 600_000)
    farm.clock.advance(NOTICE_MS)
    await farm.step()  # the lease is ending
    del farm.ray_jobs.jobs[(await farm.job("train")).ray_id]
    await tick(farm)
    job = await farm.job("train")
    assert (job.status, job.attempt, job.submitted_ms) == (JobStatus.PENDING, 1, None)


async def test_a_step_that_stops_an_attempt_and_cannot_store_it_is_done_again(
    farm: MemoryFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, stopped = FakeRayJobs.stop, []

    async def stop_unheard(ray_jobs: FakeRayJobs, ray_id: str) -> bool:
        stopped.append(await stop(ray_jobs, ray_id))
        if len(stopped) == 1:
            raise UnavailableError("the answer is lost")
        return stopped[-1]

    monkeypatch.setattr(FakeRayJobs, "stop", stop_unheard)
    await preempt(farm)
    await tick(farm)
    job = await farm.job("train")
    assert stopped == [True, False]
    assert (job.status, job.attempt, job.submitted_ms) == (JobStatus.PENDING, 1, None)


async def test_an_owner_who_releases_a_preempted_lease_does_not_get_it_again(farm: MemoryFarm) -> None:
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 600_000)
    await farm.release("borrowed")
    await tick(farm)
    assert (await farm.lease("borrowed")).status is LeaseStatus.ENDED
    assert (await farm.job("train")).status is JobStatus.STOPPED
    assert (await farm.lease("promised")).status is LeaseStatus.ACTIVE


async def test_idle_nodes_are_gone_at_once(farm: MemoryFarm) -> None:
    farm.hosts.busy.clear()
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 600_000)
    assert (await farm.lease("borrowed")).status is LeaseStatus.WAITING
    assert (await farm.lease("promised")).status is LeaseStatus.ACTIVE


async def test_only_what_is_borrowed_is_taken_and_a_crash_changes_nothing(farm: MemoryFarm) -> None:
    await farm.request("too-much", "4x1", tenant="b")
    await tick(farm, 600_000)
    assert (await farm.lease("borrowed")).preempted_ms is None  # four are not promised to b
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 1000)
    deadline_ms = (await farm.lease("borrowed")).preempted_ms
    assert deadline_ms is not None
    await farm.crash()
    await tick(farm, 1000)
    assert (await farm.lease("borrowed")).preempted_ms == deadline_ms
    assert (await farm.lease("own")).preempted_ms is None
    await tick(farm, NOTICE_MS)
    assert (await farm.lease("promised")).status is LeaseStatus.ACTIVE


async def test_what_was_saved_is_not_refunded_and_its_time_is_used_up(farm: MemoryFarm) -> None:
    lease = await farm.lease("borrowed")
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 500_000)
    run = f"ray_train_run-{(await farm.job('train')).id}-1"
    snapshot = ("tenants", "a", "runs", run, "checkpoint_manager_snapshot.json")
    await farm.artifacts.write(*snapshot, data=once(b"{}"), max_bytes=10)
    await tick(farm, 100_000)
    await tick(farm, NOTICE_MS)
    async with farm.store.begin(write=False) as uow:
        charged, refund = await uow.ledger.list(lease_id="borrowed")
    assert charged.milli_gpu_seconds == 2000 * 660
    assert refund.milli_gpu_seconds == -2000 * 160
    waits = await farm.lease("borrowed")
    assert lease.ask.duration_ms - waits.ask.duration_ms == 500_000


async def test_what_a_service_has_answered_is_not_refunded() -> None:
    farm = MemoryFarm(rules=RULES, quotas=QUOTAS)
    farm.hosts.busy = {"h0", "h1"}
    await farm.begin()
    await farm.request("own", "2x1", hours=10)
    await farm.settle()
    farm.clock.advance(1000)
    await farm.deploy("chat", milli_gpus=2000)
    await farm.settle()
    [borrowed] = await farm.leases_of("r-chat-1")
    await farm.request("promised", "2x1", tenant="b")
    await tick(farm, 600_000)
    await tick(farm, NOTICE_MS)
    assert (await farm.lease("promised")).status is LeaseStatus.ACTIVE
    async with farm.store.begin(write=False) as uow:
        [charged] = await uow.ledger.list(lease_id=borrowed.id)
    assert charged.milli_gpu_seconds == 2000 * 660


async def test_a_job_that_is_moved_goes_on_elsewhere_at_once_and_is_refunded() -> None:
    farm = MemoryFarm(rules=Rules(min_run_ms=600_000, preempt_notice_ms=NOTICE_MS, moves=1))
    farm.hosts.busy = {"h0", "h1"}
    await farm.begin()
    await farm.request("rest", "2x1", hours=10)
    await farm.settle()
    halves = [f"half{number}" for number in range(4)]
    for name in halves:
        await farm.request(name, "0.5", hours=10, kind=LeaseKind.JOB)
        await farm.submit(f"job-{name}", name)
        await farm.settle()
    left: dict[tuple[str, int], str] = {}  # by GPU, one of the two that share it
    for name in halves:
        [piece] = (await farm.lease(name)).slices
        other = left.setdefault((piece.host, piece.gpu_indices[0]), name)
        if other != name:
            farm.ray_jobs.end((await farm.job(f"job-{name}")).ray_id, JobStatus.SUCCEEDED)
            await tick(farm)
    assert len(left) == 2
    await farm.request("whole", "1", tenant="b", hours=1)
    await tick(farm, 700_000)
    assert "is not free" in (await farm.lease("whole")).message  # nobody has saved anything
    for name in left.values():
        run = f"ray_train_run-job-{name}-1"
        snapshot = ("tenants", "a", "runs", run, "checkpoint_manager_snapshot.json")
        await farm.artifacts.write(*snapshot, data=once(b"{}"), max_bytes=10)
    saved_ms = farm.clock.now_ms()
    await tick(farm, 100_000)
    moving = [lease for name in left.values() if (lease := await farm.lease(name)).preempted_ms is not None]
    [before] = moving
    assert "it is moved to make room for another tenant's lease" in before.message
    assert before.message.endswith("it is stopped in 60 s and goes on there at once: save its work")
    assert "what is free is in pieces; room is made for it" in (await farm.lease("whole")).message
    await farm.crash()
    await tick(farm, NOTICE_MS)
    after, whole = await farm.lease(before.id), await farm.lease("whole")
    assert (after.status, whole.status) == (LeaseStatus.ACTIVE, LeaseStatus.ACTIVE)
    assert [(piece.host, piece.gpu_indices) for piece in whole.slices] == [
        (piece.host, piece.gpu_indices) for piece in before.slices
    ]
    assert [(piece.host, piece.gpu_indices) for piece in after.slices] == [
        (piece.host, piece.gpu_indices) for piece in before.room
    ]
    assert after.room == ()
    async with farm.store.begin(write=False) as uow:
        charged, refund = await uow.ledger.list(lease_id=before.id)
    assert refund.kind == REFUND
    assert refund.end_ms - refund.start_ms == 100_000 + NOTICE_MS
    assert refund.start_ms == saved_ms
    assert charged.end_ms == refund.end_ms
    job = await farm.job(f"job-{before.id}")
    assert (job.attempt, job.ray_id in farm.ray_jobs.jobs) == (1, True)
