"""kill -9 of the steward, a host agent, the front door, a lease node, and of the whole farm: what is left is right."""

import asyncio
import os
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from cloudfarm.store import SqlStore
from cloudfarm.testing.invariants import check_invariants

from .conftest import RunningFarm, Tenant, new_farm, raylet_of, until


def check_store(farm: RunningFarm) -> None:
    """Check the farm's promises in its own database."""

    async def check() -> None:
        store = await SqlStore.open(f"sqlite:///{farm.state / 'farm.db'}")
        try:
            await check_invariants(store)
        finally:
            await store.close()

    asyncio.run(check())


def kill_actor(farm: RunningFarm, title: str) -> None:
    """SIGKILL an actor's process and wait until Ray has started another."""
    before = farm.actor_pids(title)
    assert before, f"no process {title}"
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: (now := farm.actor_pids(title)) and not set(now) & set(before), f"another {title}")


@pytest.mark.farm
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("clean_farm")
def test_control_processes_are_killed_and_work_goes_on(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    univ, solar = tenants
    lease = univ.hold("2x0.5")
    goes = tmp_path / "go"
    job = univ.start_job("python", "wait.py", str(goes), metadata={"lease": lease["id"]})
    univ.wait_job(job, "RUNNING")
    for title in ("ray::StewardActor", "ray::HostAgent", "ray::ServeReplica:front-door"):
        kill_actor(farm, title)
    until(lambda: farm_answers(farm), "the front door")
    # A new lease can be had, which takes the steward and the agents; the old one has the very same nodes.
    other = solar.hold("0.5")
    after = univ.lease(lease["id"])
    assert after["status"] == "ACTIVE"
    assert [piece["node_id"] for piece in after["slices"]] == [piece["node_id"] for piece in lease["slices"]]
    goes.touch()
    assert univ.wait_job(job)["status"] == "SUCCEEDED"
    solar.release(other["id"])
    univ.release(lease["id"])
    check_store(farm)


def farm_answers(farm: RunningFarm) -> bool:
    with farm.operator as operator:
        try:
            return operator.get("/healthz")["status"] == "ok"
        except Exception:  # noqa: BLE001 - whatever it is, it does not answer yet
            return False


@pytest.mark.farm
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("clean_farm")
def test_a_lease_node_that_dies_ends_its_lease_and_is_charged_until_then(
    farm: RunningFarm,
    tenants: tuple[Tenant, Tenant],
) -> None:
    univ, _ = tenants
    lease = univ.hold("0.5")
    raylet = raylet_of(farm, lease["id"])
    # Charged until its host last answered: wait for an answer that is later than the lease's start.
    with farm.operator as operator:

        def seen_since() -> bool:
            hosts = operator.get("/v1/farm")["host_list"]
            return all(iso_s(host["seen"]) > iso_s(lease["started"]) for host in hosts)

        until(seen_since, "the hosts to be looked at")
    killed_at = time.time()
    os.kill(raylet, signal.SIGKILL)
    ended = univ.wait_lease(lease["id"], "ENDED")
    assert ended["reason"] == "node_lost"
    with univ.client as client:
        charged = client.get("/v1/usage", lease=lease["id"])["total"]
    assert 0 < charged <= 500 * (killed_at - iso_s(lease["started"]) + 1.5)
    check_store(farm)


def iso_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.own_farm
@pytest.mark.timeout(400)
def test_the_whole_farm_is_killed_and_comes_up_again(tmp_path: Path) -> None:
    farm = new_farm("crash")
    farm.up()
    try:
        univ = farm.tenant("univ")
        lost = univ.hold("4x1")
        waiting = univ.start_job("python", "hello.py", metadata={"gpus": "2x0.5"})
        crash_at = time.time()
        for _ in range(3):  # what was forked meanwhile as well
            for pid in farm.leftovers():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        farm.up()
        ended = univ.wait_lease(lost["id"], "ENDED")
        assert ended["reason"] == "node_lost"
        assert iso_s(ended["ended"]) <= crash_at + 2  # the time without a farm is nobody's
        assert univ.wait_job(waiting)["status"] == "SUCCEEDED"
        check_store(farm)
        farm.up()  # a second time changes nothing
        assert univ.job(waiting)["status"] == "SUCCEEDED"
    finally:
        farm.remove()
