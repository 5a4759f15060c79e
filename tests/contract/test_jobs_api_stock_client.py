"""The unmodified Ray clients against the front door: what people really type.

A real HTTP server over the store in memory; no Ray cluster. A few lines play the steward.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cloudfarm.domain import status as ours
from cloudfarm.testing.front_door import FrontDoor, open_front_door

LINES = ("first line\n", "zweite Zeile ü\n", "last line\n")
LONG = 6_000_000
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class Running:
    url: str
    tokens: dict[str, str]

    def client(self, who: str = "alpha.member") -> JobSubmissionClient:
        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {self.tokens[who]}"})

    def ray(
        self, *arguments: str, who: str = "alpha.member", by: str = "headers"
    ) -> subprocess.CompletedProcess[str]:
        """Run ``ray job ...`` with the token in either of the two ways that a person has."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env["RAY_API_SERVER_ADDRESS"] = self.url
        if by == "headers":
            env["RAY_JOB_HEADERS"] = json.dumps({"Authorization": f"Bearer {self.tokens[who]}"})
        else:
            env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.tokens[who]}
        return subprocess.run(
            [RAY, "job", *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
        )


async def play_steward(door: FrontDoor) -> None:
    """Grant every lease, run every job: it prints, and ends as its entrypoint says."""
    while True:
        async with door.store.begin(write=False) as uow:
            leases = await uow.leases.list(open_only=True)
            jobs = await uow.jobs.list(open_only=True)
        for lease in leases:
            if lease.status is ours.LeaseStatus.WAITING:
                await door.say(lease.id, "place 1 in the queue: no room")
                await asyncio.sleep(0.2)
                await door.start_lease(lease.id)
        for job in jobs:
            name = f"{job.tenant}.{job.submission_id}"
            if job.target is ours.Target.END:
                await door.move_job(job.submission_id, ours.JobStatus.STOPPED, tenant=job.tenant, log="")
            elif job.status is ours.JobStatus.PENDING:
                door.live_logs.write(name, *(["ü" * LONG] if "long" in job.entrypoint else LINES[:2]))
                await door.move_job(job.submission_id, ours.JobStatus.RUNNING, tenant=job.tenant)
            elif "forever" not in job.entrypoint:
                door.live_logs.close(name)
                end = ours.JobStatus.FAILED if "false" in job.entrypoint else ours.JobStatus.SUCCEEDED
                log = "ü" * LONG if "long" in job.entrypoint else "".join(LINES)
                await door.move_job(job.submission_id, end, tenant=job.tenant, log=log)
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def farm(tmp_path_factory) -> Iterator[Running]:
    """Costs about a second; shared by the module."""
    ready, stop = threading.Event(), threading.Event()
    running: list[Running] = []

    async def main() -> None:
        async with open_front_door(tmp_path_factory.mktemp("farm"), max_package_bytes=200_000) as door:
            config = uvicorn.Config(
                door.app, port=0, log_level="warning", lifespan="off", ws="websockets-sansio"
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            running.append(Running(f"http://127.0.0.1:{port}", door.tokens))
            steward = asyncio.create_task(play_steward(door))
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)
                if steward.done():
                    steward.result()
            steward.cancel()
            server.should_exit = True
            await serving

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(30)
    yield running[0]
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("print('hello')\n")
    return tmp_path


@pytest.mark.parametrize("by", ["headers", "token"])
def test_submit_with_a_working_dir_waits_for_the_end_and_shows_the_log(farm: Running, project: Path, by: str):
    done = farm.ray(
        "submit",
        "--metadata-json",
        '{"gpus": "2x0.5", "hours": "1"}',
        "--entrypoint-num-cpus",
        "1",
        "--working-dir",
        str(project),
        "--",
        "python",
        "train.py",
        by=by,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    said = [line for line in lines if line.startswith("cloudfarm: waits for lease")]
    assert any("place 1 in the queue" in line for line in said)
    start = lines.index("first line")
    assert lines[start : start + 3] == ["first line", "zweite Zeile ü", "last line"]
    assert "succeeded" in done.stdout + done.stderr


def test_a_failing_job_fails_the_command(farm: Running):
    done = farm.ray("submit", "--", "false")
    assert done.returncode == 1
    assert "failed" in done.stdout + done.stderr


def test_list_status_logs_stop_delete(farm: Running):
    assert (
        farm.ray("submit", "--submission-id", "cli-1", "--no-wait", "--", "sleep", "forever").returncode == 0
    )
    assert "cli-1" in farm.ray("list").stdout + farm.ray("list").stderr
    assert "cli-1" not in farm.ray("list", who="beta.member").stdout
    for arguments, says in (
        (("status", "cli-1"), "cli-1"),
        (("logs", "cli-1"), ""),
        (("stop", "cli-1"), "was stopped"),
        (("delete", "cli-1"), "deleted successfully"),
    ):
        done = farm.ray(*arguments)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout + done.stderr


def test_what_people_see_of_a_refusal(farm: Running, tmp_path: Path):
    (tmp_path / "big.bin").write_bytes(os.urandom(500_000))
    client = farm.client()
    for fields, says in (
        (
            {"runtime_env": {"conda": "x"}},
            "422: runtime_env key 'conda' is not allowed here: .* (forbidden_key).",
        ),
        ({"metadata": {"gpus": "1.3"}}, "more than one GPU comes in whole GPUs"),
        (
            {"runtime_env": {"working_dir": str(tmp_path)}},
            "413: _ray_pkg_.* is over 200000 bytes (too_large).",
        ),
    ):
        with pytest.raises(RuntimeError, match=says.replace("(", r"\(").replace(")", r"\)")):
            client.submit_job(entrypoint="true", **fields)
    with pytest.raises(
        AuthenticationError, match="the token is good, but its role is viewer and this needs member"
    ):
        farm.client("alpha.viewer").submit_job(entrypoint="true")
    with pytest.raises(AuthenticationError, match="an API key may call services and nothing else"):
        farm.client("alpha.key")
    done = farm.ray("status", "no-such")
    assert done.returncode == 1
    assert (
        "RuntimeError: Request failed with status code 404: there is no job 'no-such' (not_found)."
        in done.stderr
    )


def test_the_python_client(farm: Running, project: Path):
    client = farm.client()
    assert client.get_version() == "4"
    submission_id = client.submit_job(
        entrypoint="sleep forever",
        runtime_env={"working_dir": str(project), "env_vars": {"A": "1"}, "pip": ["einops"]},
        metadata={"note": "mine"},
        entrypoint_num_gpus=0.5,
        entrypoint_memory=1024,
    )
    details = client.get_job_info(submission_id)
    assert details.metadata == {"note": "mine"}
    assert details.runtime_env["env_vars"] == {"A": "1"}
    assert submission_id in {each.submission_id for each in client.list_jobs()}
    assert client.stop_job(submission_id)

    async def follow() -> str:
        return "".join([lines async for lines in client.tail_job_logs(submission_id)])

    asyncio.run(follow())
    assert client.get_job_status(submission_id) is JobStatus.STOPPED
    assert isinstance(client.get_job_logs(submission_id), str)
    assert client.stop_job(submission_id) is False
    assert client.delete_job(submission_id)
    with pytest.raises(RuntimeError, match="there is no job"):
        client.get_job_info(submission_id)


def test_a_package_is_uploaded_once(farm: Running, project: Path, caplog):
    caplog.set_level("INFO")
    (project / "more.py").write_text("x = 1\n")
    for _ in range(2):
        farm.client().submit_job(entrypoint="true", runtime_env={"working_dir": str(project)})
    assert caplog.text.count("Uploading package") == 1
    assert caplog.text.count("already exists, skipping upload") == 1


def test_a_log_of_megabytes_on_one_line_reaches_the_stock_client(farm: Running):
    """Its WebSocket takes frames of at most 4 MiB."""
    client = farm.client()
    submission_id = client.submit_job(entrypoint="print a long line")

    async def follow() -> int:
        return sum([lines.count("ü") async for lines in client.tail_job_logs(submission_id)])

    assert asyncio.run(follow()) >= LONG
