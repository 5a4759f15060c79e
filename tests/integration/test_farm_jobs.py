"""Jobs on a running farm: the stock command line, confinement of two tenants, what is left when a lease ends."""

import json
import subprocess
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from .conftest import HOOK_SCRIPTS, RunningFarm, Tenant, until

pytestmark = [pytest.mark.farm, pytest.mark.timeout(300), pytest.mark.usefixtures("clean_farm")]


def test_the_stock_command_line_makes_the_round_trip(tenants: tuple[Tenant, Tenant], tmp_path: Path) -> None:
    univ, _ = tenants
    goes = tmp_path / "go"
    submission_id = univ.start_job("python", "wait.py", str(goes), metadata={"gpus": "0.5"})
    univ.wait_job(submission_id, "RUNNING")
    until(lambda: "holding" in univ.ray("job", "logs", submission_id).stdout, "the log")
    assert submission_id in univ.ray("job", "list", by="token").stdout
    assert (
        "RUNNING"
        in univ.ray("job", "status", submission_id, by="token").stdout
        + univ.ray("job", "status", submission_id).stderr
    )
    stopped = univ.ray("job", "stop", submission_id)
    assert "was stopped" in stopped.stdout + stopped.stderr
    assert univ.wait_job(submission_id)["status"] == "STOPPED"
    assert "holding" in univ.logs(submission_id)  # archived: the lease node is gone
    univ.ray("job", "delete", submission_id)
    assert submission_id not in univ.ray("job", "list").stdout


def test_the_farm_comes_before_what_its_leases_compute(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    univ, _ = tenants
    goes = tmp_path / "go"
    submission_id = univ.start_job("python", "wait.py", str(goes), metadata={"gpus": "0.5"})
    univ.wait_job(submission_id, "RUNNING")
    drivers = [each for each in psutil.process_iter(["cmdline"]) if str(goes) in (each.info["cmdline"] or ())]
    serving = farm.actor_pids("ray::ServeReplica:front-door") + farm.actor_pids("ray::StewardActor")
    nice = psutil.Process().nice()
    assert {driver.nice() for driver in drivers} == {nice + 15}
    assert [psutil.Process(pid).nice() for pid in serving] == [nice, nice]
    goes.touch()
    univ.wait_job(submission_id, "SUCCEEDED")


@pytest.mark.parametrize("by", ["headers", "token"])
def test_a_line_arrives_while_its_job_runs(tenants: tuple[Tenant, Tenant], tmp_path: Path, by: str) -> None:
    univ, _ = tenants
    goes = tmp_path / "go"
    submission_id = univ.start_job("python", "wait.py", str(goes), metadata={"gpus": "0.5"})
    with subprocess.Popen(
        univ.ray_command("job", "logs", "--follow", submission_id),
        env={**univ.ray_env(by), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as following:
        assert following.stdout is not None
        # The job cannot end before `go` is there: whatever of it is read until then came while it ran.
        arrived = next((line for line in following.stdout if line == "holding\n"), None)
        status = univ.job(submission_id)["status"]
        goes.touch()
        rest = following.stdout.read()
    assert (arrived, status, following.returncode) == ("holding\n", "RUNNING", 0)
    assert "done\n" in rest
    assert "holding" not in rest


def test_submit_and_wait_follows_the_log_to_the_end(tenants: tuple[Tenant, Tenant]) -> None:
    univ, _ = tenants
    metadata = json.dumps({"gpus": "2x0.5"})
    files = str(Path(__file__).parent / "farm_jobs")
    run = univ.ray(
        "job",
        "submit",
        "--metadata-json",
        metadata,
        "--working-dir",
        files,
        "--",
        "python",
        "hello.py",
        by="token",
    )
    assert "nodes 2" in run.stdout, run.stdout
    assert "succeeded" in run.stdout + run.stderr


def test_a_job_waits_in_the_queue_and_says_why(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    univ, solar = tenants
    held = solar.hold("4x0.9")
    submission_id = univ.start_job("python", "wait.py", str(tmp_path / "x"), metadata={"gpus": "0.5"})
    waiting = until(
        lambda: (job := univ.job(submission_id))["message"].startswith("waits") and job, "the reason"
    )
    assert waiting["status"] == "PENDING"
    assert "place 1 in the queue" in waiting["message"]
    univ.ray("job", "stop", "--no-wait", submission_id)
    assert univ.wait_job(submission_id)["status"] == "STOPPED"
    solar.release(held["id"])


def iso_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def is_escaped(pid: int) -> bool:
    """Whether a process is a Ray worker that runs a task or an actor of the escape."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return title.startswith((b"ray::task", b"ray::Actor"))


def seen(log: str) -> dict[str, list[str]]:
    line = next(line for line in log.splitlines() if line.startswith("SEEN"))
    return json.loads(line.removeprefix("SEEN"))


def test_two_tenants_at_once_stay_in_their_leases(tenants: tuple[Tenant, Tenant]) -> None:
    univ, solar = tenants
    ours = univ.hold("2x0.5", name="ours", memory="4GiB")
    theirs = solar.hold("2x0.5", name="theirs")
    assert {piece["host"] for piece in ours["slices"] + theirs["slices"]} <= {"h0", "h1"}
    first = univ.start_job(
        "python", "work.py", "tasks,core,data,train", metadata={"lease": "ours"}, files=HOOK_SCRIPTS
    )
    second = solar.start_job(
        "python", "work.py", "tasks,core", metadata={"lease": theirs["id"]}, files=HOOK_SCRIPTS
    )
    for tenant, job, lease in ((univ, first, ours), (solar, second, theirs)):
        ended = tenant.wait_job(job, timeout_s=240)
        log = tenant.logs(job)
        assert ended["status"] == "SUCCEEDED", ended["message"] + log[-3000:]
        places = seen(log)
        assert {"driver", "task", "nested", "actor", "placement group"} <= set(places)
        assert {part: leases for part, leases in places.items() if leases != [lease["id"]]} == {}
    assert {"data task", "data actor", "train worker"} <= set(seen(univ.logs(first)))


def test_a_driver_that_breaks_out_is_stopped(
    farm: RunningFarm, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    univ, solar = tenants
    solar_lease = solar.hold("0.5", cpus=4)
    notes = tmp_path / "notes"
    job = univ.start_job(
        "python",
        "escape.py",
        "strip",
        solar_lease["id"],
        str(notes),
        metadata={"gpus": "0"},
        files=HOOK_SCRIPTS,
    )
    with farm.operator as operator:

        def stopped() -> dict | None:
            events = operator.get("/v1/events", limit=200)
            of_this = [event for event in events if solar_lease["id"] in event["message"]]
            return next((event for event in of_this if event["kind"] == "watch.stopped"), None)

        event = until(stopped, "the watch", 90)
    assert event["tenant"] == "univ"
    assert f"runs on lease {solar_lease['id']}" in event["message"]
    ended = univ.wait_job(job)
    assert ended["status"] == "FAILED"
    assert ended["error_type"] == "left_its_lease"
    assert solar_lease["id"] in ended["message"]
    # The watch may be quicker than the work: what got so far as to note its start was stopped soon after.
    noted = [float(line.split()[1]) for line in notes.read_text().splitlines()] if notes.exists() else []
    assert all(iso_s(event["at"]) - at < 5 for at in noted)
    until(
        lambda: (
            not [pid for pid in farm.processes(f"CLOUDFARM_LEASE={solar_lease['id']}") if is_escaped(pid)]
        ),
        "it to go",
        5,
    )
    assert solar.lease(solar_lease["id"])["status"] == "ACTIVE"


def test_a_lease_that_ends_takes_every_process_with_it(
    farm: RunningFarm,
    tenants: tuple[Tenant, Tenant],
    tmp_path: Path,
) -> None:
    univ, _ = tenants
    lease = univ.hold("0.5")
    job = univ.start_job("python", "stubborn.py", str(tmp_path), metadata={"lease": lease["id"]})
    beats = [tmp_path / "ignores-sigterm", tmp_path / "double-forked"]
    until(lambda: all(beat.exists() and beat.read_text() for beat in beats), "the processes", 90)
    ended = univ.release(lease["id"])
    assert ended["reason"] == "released"
    last = [beat.read_text() for beat in beats]
    time.sleep(0.5)  # ten beats of a process that lived on
    assert [beat.read_text() for beat in beats] == last
    assert farm.processes(f"CLOUDFARM_LEASE={lease['id']}") == []
    assert univ.wait_job(job)["status"] == "STOPPED"


def test_a_time_limit_gives_notice_and_ends_the_lease(tenants: tuple[Tenant, Tenant]) -> None:
    univ, _ = tenants
    lease = univ.hold("0.25", hours="0.002")
    ended = univ.wait_lease(lease["id"], "ENDED")
    assert ended["reason"] == "expired"
    with univ.client as client:
        kinds = [event["kind"] for event in client.get("/v1/events", subject=lease["id"])]
    assert "lease.notice" in kinds
