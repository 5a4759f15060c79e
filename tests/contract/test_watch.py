"""The port Watch: the fake, and the watch over a running farm."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cloudfarm.errors import UnavailableError
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.factories import make_job
from cloudfarm.testing.fake_farm import FakeRayJobs, FakeWatch
from tests.processes import eventually

from .bare_farm import LEASE

STRAY = Path(__file__).with_name("stray.py")
UNPLACED = Path(__file__).with_name("unplaced.py")
OTHER = replace(LEASE, id="other", tenant="snu")


@pytest.fixture
def ports(farm):
    """The watch, and Ray's jobs as it sees them."""
    if farm is None:
        ray_jobs = FakeRayJobs(ManualClock())
        return FakeWatch(ManualClock(), ray_jobs), ray_jobs
    return farm.port("watch"), farm.port("ray_jobs")


async def test_on_a_quiet_farm_nothing_is_found(ports):
    watch, _ = ports
    assert list(await watch.sweep([LEASE])) == []
    assert list(await watch.sweep([])) == []


async def test_work_outside_its_lease_is_stopped_with_its_job_and_told_to_its_tenant(farm, ports):
    watch, ray_jobs = ports
    job = make_job("stray", lease_id=LEASE.id, entrypoint=f"{sys.executable} {STRAY}")
    await ray_jobs.submit(job, env={}, label_selector={"lease": LEASE.id})
    if farm is None:
        watch.escape(job.ray_id, LEASE.id)

    async def sweep():
        try:
            return await watch.sweep([OTHER, LEASE])
        except UnavailableError:  # a busy machine may not answer in time: as the steward does, look again
            return []

    events = await eventually(sweep, "the stray to be found")
    for event in events:
        assert (event.kind, event.subject, event.tenant) == ("watch.stopped", job.ray_id, LEASE.tenant)
        assert LEASE.id in event.message
        assert event.at_ms > 0

    async def over() -> bool:
        return (await ray_jobs.list())[job.ray_id].status.is_terminal and not await sweep()

    await eventually(over, "the job to be over and the farm quiet")


@pytest.mark.own_farm
async def test_what_ray_is_still_finding_a_place_for_is_no_stray(bare_farm, tmp_path):
    watch, ray_jobs = bare_farm.port("watch"), bare_farm.port("ray_jobs")
    waiting = tmp_path / "waiting"
    job = make_job("unplaced", lease_id=LEASE.id, entrypoint=f"{sys.executable} {UNPLACED} {waiting}")
    await ray_jobs.submit(job, env={}, label_selector={"lease": LEASE.id})

    async def are_waiting() -> bool:
        status = (await ray_jobs.list())[job.ray_id]
        assert not status.status.is_terminal, status
        return waiting.exists()

    await eventually(are_waiting, "the actors to wait for a place")
    found = [event for _ in range(3) for event in await watch.sweep([LEASE])]
    await ray_jobs.stop(job.ray_id)
    assert found == []
