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
