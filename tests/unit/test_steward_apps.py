"""Tenants' own applications over a whole farm in memory: jobs in their leases run them, which the steward ends."""

import shlex
from dataclasses import replace

import pytest

from cloudfarm.domain.bundles import SERVE_APP
from cloudfarm.domain.load import Load, LoadReport
from cloudfarm.domain.status import JobStatus, LeaseStatus, RevisionStatus, ServiceStatus, Target
from cloudfarm.domain.workload import RUN_APP, Job, Revision
from cloudfarm.steward.decide import decide
from cloudfarm.steward.scaling import SILENT_MS
from cloudfarm.steward.scene import LEAVE_MS
from cloudfarm.steward.setbacks import FIRST_MS, LONGEST_RUN_MS
from cloudfarm.steward.view import EndApp
from cloudfarm.testing.fake_serving import FRONT_DOOR
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.invariants import check_invariants

APP = "a.sea.1"
ENV = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"MODE": "it's fast"}}
SPEC = {"import_path": "main:app", "runtime_env": ENV, "args": {"size": "it's 3"}}


@pytest.fixture
async def farm() -> MemoryFarm:
    farm = MemoryFarm()
    await farm.begin()
    farm.clock.advance(
        SILENT_MS + 1
    )  # a steward that would have heard of the load by now, if anybody told it
    await deploy(farm)
    await farm.settle()
    return farm


async def deploy(farm: MemoryFarm) -> None:
    await farm.deploy("sea", import_path=RUN_APP, manifest={"kind": SERVE_APP, "spec": SPEC})


async def pass_time(farm: MemoryFarm, milliseconds: int = LEAVE_MS) -> None:
    for _ in range(-(-milliseconds // 1000)):
        farm.clock.advance(1000)
        await farm.settle()


async def jobs(farm: MemoryFarm) -> list[Job]:
    async with farm.store.begin(write=False) as uow:
        return list(await uow.jobs.list())


async def revision(farm: MemoryFarm, number: int = 1) -> Revision:
    async with farm.store.begin(write=False) as uow:
        return await uow.revisions.get(f"r-sea-{number}")


async def running(farm: MemoryFarm) -> Job:
    """Let the application run, and return its job."""
    job = (await jobs(farm))[-1]
    farm.serving.start((await revision(farm)).app_name, job.lease_id)
    await farm.settle()
    return job


async def test_it_has_one_lease_whatever_the_service_had_before_it(farm) -> None:
    await running(farm)
    async with farm.store.begin() as uow:
        service = await uow.services.get("s-sea")
        await uow.services.update(replace(service, min_replicas=2, max_replicas=3))
        await uow.commit()
    await pass_time(farm)
    assert [lease.status for lease in await farm.leases_of("r-sea-1")] == [LeaseStatus.ACTIVE]


async def test_a_job_in_the_lease_runs_the_application(farm) -> None:
    (job,) = await jobs(farm)
    (lease,) = await farm.leases_of("r-sea-1")
    assert (job.tenant, job.owner, job.lease_id, job.owns_lease) == ("a", "kim", lease.id, False)
    assert job.submission_id == f"app-sea-1-{lease.id}"
    words = ["exec", "python", "-m", RUN_APP, "main:app", "--name", APP, "--args", '{"size": "it\'s 3"}']
    assert shlex.split(job.entrypoint) == words
    assert job.runtime_env == ENV
    assert farm.ray_jobs.drivers[job.ray_id].label_selector == {"lease": lease.id}
    assert set(farm.serving.applied) == set()  # Serve is not told: it would import it elsewhere
    assert (await revision(farm)).status is RevisionStatus.STARTING
    await running(farm)
    assert (await revision(farm)).status is RevisionStatus.RUNNING
    await pass_time(farm)
    assert [each.id for each in await jobs(farm)] == [job.id]
    await check_invariants(farm.store)


async def test_an_application_whose_job_ends_has_failed_and_nothing_of_it_is_left(farm) -> None:
    job = await running(farm)
    farm.ray_jobs.end(job.ray_id, JobStatus.FAILED, "no module main", driver_exit_code=1)
    await farm.settle()
    failed = await revision(farm)
    assert (failed.status, failed.message) == (RevisionStatus.FAILED, "no module main")
    assert set(await farm.serving.apps()) == {FRONT_DOOR}
    await pass_time(farm, FIRST_MS - 1_000)
    assert await farm.leases_of("r-sea-1") == []
    assert [each.id for each in await jobs(farm)] == [job.id]  # not again and again
    await pass_time(farm, 1_000)
    (lease,) = await farm.leases_of("r-sea-1")
    first, again = await jobs(farm)
    assert (first.id, again.lease_id) == (job.id, lease.id)
    farm.serving.start(APP, again.lease_id)
    await farm.settle()
    assert (await revision(farm)).status is RevisionStatus.RUNNING


@pytest.mark.parametrize(
    ("ran_ms", "pause_ms"), [(1_000, 2 * FIRST_MS), (FIRST_MS + LONGEST_RUN_MS, FIRST_MS)]
)
async def test_only_what_has_run_for_long_is_tried_again_as_soon_as_the_first_time(
    farm, ran_ms: int, pause_ms: int
) -> None:
    farm.ray_jobs.end((await jobs(farm))[-1].ray_id, JobStatus.FAILED, "no module main", driver_exit_code=1)
    await farm.settle()
    await pass_time(farm, FIRST_MS)
    job = await running(farm)
    await pass_time(farm, ran_ms)
    farm.ray_jobs.end(job.ray_id, JobStatus.FAILED, "out of memory", driver_exit_code=1)
    await farm.settle()
    await pass_time(farm, pause_ms - 1_000)
    assert (await revision(farm)).status is RevisionStatus.FAILED
    await pass_time(farm, 1_000)
    assert (await revision(farm)).status is RevisionStatus.STARTING


async def test_a_deleted_application_is_ended_by_its_job(farm) -> None:
    job = await running(farm)
    await farm.undeploy("s-sea")
    await farm.settle()
    assert (await farm.job(job.id)).status is JobStatus.RUNNING  # requests may still be on their way
    await pass_time(farm, LEAVE_MS + 2000)
    assert (await farm.job(job.id)).status is JobStatus.STOPPED
    assert set(await farm.serving.apps()) == {
        FRONT_DOOR
    }  # also if the job was killed before it did so itself
    assert (await revision(farm)).status is RevisionStatus.ENDED
    assert (await farm.service("s-sea")).status is ServiceStatus.DELETED
    assert await farm.leases_of("r-sea-1") == []
    await check_invariants(farm.store)


async def test_a_lost_lease_is_replaced_and_the_application_runs_anew(farm) -> None:
    job = await running(farm)
    (before,) = await farm.leases_of("r-sea-1")
    farm.hosts.lose(before.slices[0].name)
    await pass_time(farm)
    (after,) = await farm.leases_of("r-sea-1")
    assert after.id != before.id
    assert after.status is LeaseStatus.ACTIVE
    assert APP not in await farm.serving.apps()
    assert (await farm.job(job.id)).status is JobStatus.FAILED
    (second,) = (each for each in await jobs(farm) if each.id != job.id)
    assert second.lease_id == after.id
    farm.serving.start(APP, after.id)
    await farm.settle()
    assert (await revision(farm)).status is RevisionStatus.RUNNING


async def test_what_other_jobs_have_started_in_serve_ends_with_their_leases(farm) -> None:
    await farm.request("l-own", "0.5")
    await farm.settle()
    farm.serving.start("a.mine", "l-own")
    await farm.settle()
    assert "a.mine" in await farm.serving.apps()
    await farm.release("l-own")
    await farm.settle()
    assert "a.mine" not in await farm.serving.apps()


async def test_another_version_takes_over_when_it_runs(farm) -> None:
    first = await running(farm)
    await deploy(farm)
    await farm.settle()
    (second,) = (each for each in await jobs(farm) if each.id != first.id)
    farm.serving.start("a.sea.2", second.lease_id)
    await farm.settle()
    assert (await farm.service("s-sea")).current_id == "r-sea-2"
    await pass_time(farm, LEAVE_MS + 2000)
    assert (await farm.job(first.id)).status is JobStatus.STOPPED
    assert (await farm.job(second.id)).status is JobStatus.RUNNING
    assert set(await farm.serving.apps()) == {FRONT_DOOR, "a.sea.2"}


@pytest.mark.parametrize("undeployed", [False, True])
async def test_a_long_request_is_answered_before_the_application_is_ended(farm, undeployed) -> None:
    """Serve gives replicas of applications that set nothing else 20 seconds to finish."""
    first = await running(farm)
    if undeployed:
        await farm.undeploy("s-sea")
    else:
        await deploy(farm)
        await farm.settle()
        (second,) = (each for each in await jobs(farm) if each.id != first.id)
        farm.serving.start("a.sea.2", second.lease_id)
    await farm.settle()
    farm.clock.advance(60_000)
    report(farm, 0, under_way=1)
    await pass_time(farm, 2000)
    assert (await farm.job(first.id)).status is JobStatus.RUNNING
    report(farm, 0)
    await pass_time(farm, 2000)
    assert (await farm.job(first.id)).status is JobStatus.STOPPED


async def asleep(farm: MemoryFarm) -> Job:
    """Let the application run and fall asleep, so that its job has been told to end it; return that."""
    async with farm.store.begin() as uow:
        service = await uow.services.get("s-sea")
        await uow.services.update(replace(service, min_replicas=0, idle_ms=60_000))
        await uow.commit()
    job = await running(farm)
    farm.clock.advance(60_000)
    report(farm, 0)
    await farm.settle()
    farm.clock.advance(LEAVE_MS)
    report(farm, 0)
    await farm.steward.step()
    await farm.steward.actor.finish()
    assert (await farm.job(job.id)).target is Target.END
    assert APP in await farm.serving.apps()
    return job


def report(farm: MemoryFarm, waiting: int, *, under_way: int = 0) -> None:
    now_ms = farm.clock.now_ms()
    load = Load(waiting, waiting, now_ms if waiting else 1)
    farm.steward.report(LoadReport(now_ms, now_ms - 3_600_000, {"s-sea": load}, {APP: under_way}))


async def test_who_comes_while_an_application_is_being_ended_waits_for_another_lease(farm) -> None:
    first = await asleep(farm)
    report(farm, 1)
    for _ in range(5):
        await farm.step()
        assert (await revision(farm)).status is not RevisionStatus.RUNNING
        assert (await revision(farm)).status is not RevisionStatus.FAILED
    await farm.settle()
    assert (await farm.job(first.id)).status is JobStatus.STOPPED
    (lease,) = await farm.leases_of("r-sea-1")
    assert lease.id != first.lease_id
    await running(farm)
    assert (await revision(farm)).status is RevisionStatus.RUNNING
    assert len(await jobs(farm)) == 2
    await check_invariants(farm.store)


async def test_an_application_that_was_woken_meanwhile_is_not_ended(farm) -> None:
    """The order to end it is slow, and late: what was decided before the request came."""
    async with farm.store.begin() as uow:
        service = await uow.services.get("s-sea")
        await uow.services.update(replace(service, min_replicas=0, idle_ms=60_000))
        await uow.commit()
    job = await running(farm)
    farm.clock.advance(60_000)
    report(farm, 0)
    await farm.settle()
    farm.clock.advance(LEAVE_MS)
    report(farm, 0)
    view = await farm.steward.observer.look(farm.steward.epoch, loads=farm.steward._loads)
    late = decide(view, admit=farm.steward.admit, policy=farm.steward.policy)
    assert EndApp(job.id) in late
    report(farm, 1)
    async with farm.store.begin() as uow:
        await uow.revisions.update(replace(await uow.revisions.get("r-sea-1"), replicas=1))
        await uow.commit()
    await farm.steward.actor.carry_out(late, view, farm.steward.epoch)
    await farm.settle()
    assert (await farm.job(job.id)).target is Target.RUN
    assert (await revision(farm)).status is RevisionStatus.RUNNING


async def test_a_crashed_steward_makes_no_second_job(farm) -> None:
    await farm.crash()
    await farm.settle()
    assert len(await jobs(farm)) == 1


async def test_an_application_whose_lease_is_preempted_is_not_started_beside_itself(farm) -> None:
    """Another job would deploy it anew under the same name, and end with the first."""
    job = await running(farm)
    async with farm.store.begin() as uow:
        (lease,) = await farm.leases_of("r-sea-1")
        await uow.leases.update(replace(lease, preempted_ms=farm.clock.now_ms() + 60_000))
        await uow.commit()
    await pass_time(farm, 30_000)
    assert [each.id for each in await farm.leases_of("r-sea-1")] == [lease.id]
    assert farm.hosts.drained == []
    assert [each.id for each in await jobs(farm)] == [job.id]


async def test_a_version_that_serve_has_scaled_to_none_takes_over(farm) -> None:
    first = await running(farm)
    await deploy(farm)
    await farm.settle()
    (second,) = (each for each in await jobs(farm) if each.id != first.id)
    farm.serving.start("a.sea.2", second.lease_id)
    started = farm.serving.started["a.sea.2"]
    farm.serving.started["a.sea.2"] = replace(started, replicas_wanted=0, replicas=())
    await farm.settle()
    assert (await farm.service("s-sea")).current_id == "r-sea-2"
