"""Ray's Jobs API: answers that Ray's own classes read, waiting jobs that say why, logs from start to end."""

from dataclasses import replace

import pytest
from ray.dashboard.modules.job.common import (
    JobDeleteResponse,
    JobLogsResponse,
    JobStopResponse,
    JobSubmitResponse,
)
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.dashboard.modules.version import CURRENT_VERSION, VersionResponse

from cloudfarm.domain.lease import ExpectedStart
from cloudfarm.domain.status import JobStatus, Target, transition
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import FakeWebSocket, assert_problem


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        yield opened


async def details(door: FrontDoor, submission_id: str) -> JobDetails:
    return JobDetails(**(await door.call("alpha.viewer", "GET", f"/api/jobs/{submission_id}")).json())


async def test_version_is_what_the_stock_client_expects(door: FrontDoor):
    version = VersionResponse(**(await door.call("alpha.viewer", "GET", "/api/version")).json())
    assert version.version == CURRENT_VERSION
    assert version.ray_version.startswith("2.")
    assert (await door.call("operator", "GET", "/api/version")).status_code == 200


async def test_submit_stores_a_job_and_its_lease_and_wakes_the_steward(door: FrontDoor):
    answer = await door.call(
        "alpha.member",
        "POST",
        "/api/jobs/",
        json={
            "entrypoint": "python train.py",
            "submission_id": "train-1",
            "metadata": {"gpus": "2x0.5", "hours": "2", "cpus": "3", "memory": "4GiB", "note": "mine"},
            "runtime_env": {"env_vars": {"A": "1"}},
            "entrypoint_num_gpus": None,
        },
    )
    assert JobSubmitResponse(**answer.json()) == JobSubmitResponse("train-1", "train-1")
    job = await door.job("train-1")
    async with door.store.begin(write=False) as uow:
        lease = await uow.leases.get(job.lease_id)
        events = await uow.events.list(tenant="alpha")
    assert (job.owner, job.entrypoint, job.owns_lease) == ("member-of-alpha", "python train.py", True)
    assert (str(lease.ask.shape), lease.ask.cpus, lease.ask.memory_bytes) == ("2x0.5", 3, 4 * 2**30)
    assert lease.ask.duration_ms == 2 * 3_600_000
    assert (lease.kind, lease.name) == ("job", "train-1")
    assert {event.kind for event in events} == {"lease.requested", "job.submitted"}
    assert door.nudge.count == 1


async def test_submit_without_an_id_makes_one(door: FrontDoor):
    first, second = await door.submit(), await door.submit()
    assert first != second
    assert first.startswith("raysubmit_")
    assert len(first) == len("raysubmit_") + 16


@pytest.mark.parametrize(
    ("fields", "shape", "cpus"),
    [
        ({}, "0", 2),
        ({"entrypoint_num_gpus": 0.5}, "0.5", 2),
        ({"entrypoint_num_gpus": 1}, "1", 2),
        ({"entrypoint_num_cpus": 3.5}, "0", 4),
        ({"entrypoint_num_cpus": 1, "metadata": {"cpus": "3"}}, "0", 3),
        ({"entrypoint_num_gpus": 1, "metadata": {"gpus": "2x0.25"}}, "2x0.25", 2),
    ],
)
async def test_where_the_shape_comes_from(door: FrontDoor, fields, shape, cpus):
    job = await door.job(await door.submit(**fields))
    async with door.store.begin(write=False) as uow:
        lease = await uow.leases.get(job.lease_id)
    assert (str(lease.ask.shape), lease.ask.cpus) == (shape, cpus)


async def test_project_and_priority_come_from_the_metadata(door: FrontDoor):
    job = await door.job(await door.submit(metadata={"project": "wind", "priority": "7"}))
    async with door.store.begin(write=False) as uow:
        lease = await uow.leases.get(job.lease_id)
    assert (lease.project, lease.ask.priority) == ("wind", 7)
    for metadata in ({"project": "Wind Power"}, {"project": ""}, {"priority": "high"}, {"priority": "101"}):
        answer = await door.call(
            "alpha.member", "POST", "/api/jobs/", json={"entrypoint": "true", "metadata": metadata}
        )
        assert answer.status_code == 422, metadata
        assert next(iter(metadata)) in answer.text
    assert len((await door.call("alpha.viewer", "GET", "/v1/leases")).json()) == 1


async def test_a_job_for_a_time_to_come(door: FrontDoor):
    job = await door.job(await door.submit(metadata={"not_before": "2027-01-15T09:00Z"}))
    async with door.store.begin(write=False) as uow:
        lease = await uow.leases.get(job.lease_id)
    assert lease.ask.not_before_ms == door.clock.now_ms() + 3_600_000
    for not_before in ("", "2h", "2027-01-15T07:00Z", "2030-01-15T07:00Z"):
        body = {"entrypoint": "true", "metadata": {"not_before": not_before}}
        answer = await door.call("alpha.member", "POST", "/api/jobs/", json=body)
        assert answer.status_code == 422, not_before
        assert "not_before" in answer.text
    assert len((await door.call("alpha.viewer", "GET", "/v1/leases")).json()) == 1


async def test_entrypoint_memory_is_the_least_a_slice_has(door: FrontDoor):
    job = await door.job(await door.submit(entrypoint_memory=8 * 2**30))
    async with door.store.begin(write=False) as uow:
        assert (await uow.leases.get(job.lease_id)).ask.memory_bytes == 8 * 2**30


async def test_an_id_is_used_once(door: FrontDoor):
    await door.submit(submission_id="once")
    answer = await door.call(
        "alpha.member", "POST", "/api/jobs/", json={"entrypoint": "x", "submission_id": "once"}
    )
    assert_problem(answer, 409, "already_exists")
    async with door.store.begin(write=False) as uow:
        assert len(await uow.leases.list()) == 1  # the second one's lease was not left behind


async def test_job_in_a_held_lease(door: FrontDoor):
    lease = await door.lease(name="mine")
    by_name = await door.job(await door.submit(metadata={"lease": "mine"}))
    by_label = await door.job(
        await door.submit(entrypoint_label_selector={"lease": lease["id"], "gpu": "0"}),
    )
    assert by_name.lease_id == by_label.lease_id == lease["id"]
    assert not by_name.owns_lease
    assert by_label.resources == {"entrypoint_label_selector": {"lease": lease["id"], "gpu": "0"}}
    async with door.store.begin(write=False) as uow:
        assert len(await uow.leases.list()) == 1


async def test_label_selector_of_a_job_with_its_own_lease_keeps_the_lease(door: FrontDoor):
    job = await door.job(await door.submit(entrypoint_label_selector={"host": "h0"}))
    assert job.resources == {"entrypoint_label_selector": {"host": "h0", "lease": job.lease_id}}


async def test_job_in_a_lease_that_is_over_or_not_to_share(door: FrontDoor):
    lease = await door.lease()
    await door.start_lease(lease["id"])
    await door.end_lease(lease["id"])
    other = await door.job(await door.submit(submission_id="other"))
    released = await door.lease()
    await door.call("alpha.member", "DELETE", f"/v1/leases/{released['id']}")
    for name, says in (
        (lease["id"], "has ended"),
        (other.lease_id, "was made for"),
        (released["id"], "is ending"),
    ):
        answer = await door.call(
            "alpha.member", "POST", "/api/jobs/", json={"entrypoint": "x", "metadata": {"lease": name}}
        )
        assert says in assert_problem(answer, 409, "conflict")["detail"]


async def test_a_waiting_job_says_why(door: FrontDoor):
    await door.submit(submission_id="train-1", metadata={"gpus": "0.5"})
    job = await door.job("train-1")
    await door.say(job.lease_id, "place 3 in the queue: 0.5 GPU is not free at the moment")
    seen = await details(door, "train-1")
    assert seen.status == "PENDING"
    assert "place 3 in the queue" in seen.message
    assert (await door.call("alpha.viewer", "GET", "/api/jobs/")).json()[0]["message"] == seen.message
    start = ExpectedStart("borrows", 1_700_000_000_000, 1_700_000_400_000, 1_700_001_000_001)
    async with door.store.begin() as uow:
        lease = await uow.leases.get(job.lease_id)
        await uow.leases.update(replace(lease, expected_start=start))
        await uow.commit()
    told = (await details(door, "train-1")).message
    assert told == f"{seen.message}; expected to start about 2023-11-14 22:20 UTC (22:13 to 22:31)"


async def test_details_are_rays(door: FrontDoor):
    await door.submit(
        submission_id="train-1", metadata={"note": "mine"}, runtime_env={"env_vars": {"A": "1"}}
    )
    door.clock.advance(1000)
    await door.move_job("train-1", JobStatus.RUNNING)
    await door.move_job("train-1", JobStatus.SUCCEEDED, log="done\n")
    seen = await details(door, "train-1")
    assert (seen.type, seen.submission_id, seen.job_id) == ("SUBMISSION", "train-1", None)
    assert (seen.status, seen.driver_exit_code) == ("SUCCEEDED", 0)
    assert seen.end_time == door.clock.now_ms()
    assert seen.metadata == {"note": "mine"}
    assert seen.runtime_env == {"env_vars": {"A": "1"}}
    listed = (await door.call("alpha.viewer", "GET", "/api/jobs")).json()
    assert [JobDetails(**each) for each in listed] == [seen]


async def test_stop(door: FrontDoor):
    await door.submit(submission_id="train-1")
    answer = await door.call("alpha.member", "POST", "/api/jobs/train-1/stop")
    assert JobStopResponse(**answer.json()).stopped
    assert (await door.job("train-1")).target is Target.END
    assert (await door.job("train-1")).status is JobStatus.PENDING  # only the steward changes it
    await door.move_job("train-1", JobStatus.STOPPED)
    answer = await door.call("alpha.member", "POST", "/api/jobs/train-1/stop")
    assert not JobStopResponse(**answer.json()).stopped


async def test_delete_takes_an_ended_job_and_its_log(door: FrontDoor):
    await door.submit(submission_id="train-1")
    assert_problem(await door.call("alpha.member", "DELETE", "/api/jobs/train-1"), 409, "conflict")
    await door.move_job("train-1", JobStatus.FAILED, log="boom\n")
    job = await door.job("train-1")
    answer = await door.call("alpha.member", "DELETE", "/api/jobs/train-1")
    assert JobDeleteResponse(**answer.json()).deleted
    assert_problem(await door.call("alpha.member", "GET", "/api/jobs/train-1"), 404, "not_found")
    assert not await door.context.artifacts.exists("tenants", "alpha", "logs", f"{job.id}.log")
    async with door.store.begin(write=False) as uow:
        assert await uow.leases.get(job.lease_id)


async def test_too_many_waiting(tmp_path):
    async with open_front_door(tmp_path, max_waiting=2) as door:
        await door.submit()
        await door.submit()
        answer = await door.call("alpha.member", "POST", "/api/jobs/", json={"entrypoint": "x"})
        assert_problem(answer, 429, "too_many")
        await door.submit("beta.member")


async def test_logs(door: FrontDoor):
    await door.submit(submission_id="train-1")

    async def log() -> str:
        return JobLogsResponse(
            **(await door.call("alpha.viewer", "GET", "/api/jobs/train-1/logs")).json()
        ).logs

    assert await log() == ""
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n", "two\n")
    assert await log() == "one\ntwo\n"
    await door.move_job("train-1", JobStatus.SUCCEEDED, log="one\ntwo\nthree\n")
    assert await log() == "one\ntwo\nthree\n"


async def test_log_of_a_node_that_does_not_answer(door: FrontDoor):
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.break_off()
    assert_problem(await door.call("alpha.viewer", "GET", "/api/jobs/train-1/logs"), 503, "unavailable")


def tail(door: FrontDoor, submission_id: str, who: str = "alpha.viewer") -> FakeWebSocket:
    headers = {"Authorization": f"Bearer {door.tokens[who]}"}
    return FakeWebSocket(door.app, f"/api/jobs/{submission_id}/logs/tail", headers)


async def test_tail_from_the_queue_to_the_end(door: FrontDoor):
    await door.submit(submission_id="train-1", metadata={"gpus": "0.5"})
    lease_id = (await door.job("train-1")).lease_id
    async with tail(door, "train-1") as socket:
        assert (await socket.receive())["type"] == "websocket.accept"
        assert (await socket.receive())[
            "text"
        ] == f"cloudfarm: waits for lease {lease_id} (0.5 GPU): queued\n"
        await door.say(lease_id, "place 1 in the queue")
        assert "place 1 in the queue\n" in (await socket.receive())["text"]
        await door.start_lease(lease_id)
        assert "is ready" in (await socket.receive())["text"]
        door.live_logs.write("alpha.train-1", "one\n")
        await door.move_job("train-1", JobStatus.RUNNING)
        assert (await socket.receive())["text"] == "one\n"
        door.live_logs.write("alpha.train-1", "two\n")
        assert (await socket.receive())["text"] == "two\n"
        door.live_logs.close("alpha.train-1")
        await door.move_job("train-1", JobStatus.SUCCEEDED, log="one\ntwo\nthree\n")
        assert await socket.text_until_closed() == ("three\n", 1000)
    assert door.live_logs.open_tails == 0


async def test_tail_of_an_ended_job_is_its_archive_in_frames_that_the_stock_client_takes(door: FrontDoor):
    await door.submit(submission_id="train-1")
    log = "é" * 5_000_000
    await door.move_job("train-1", JobStatus.SUCCEEDED, log=log)
    text = ""
    async with tail(door, "train-1") as socket:
        await socket.receive()
        while (message := await socket.receive())["type"] == "websocket.send":
            assert len(message["text"].encode()) <= 4 * 2**20
            text += message["text"]
    assert text == log
    assert message["code"] == 1000


async def test_tail_of_a_job_that_never_started(door: FrontDoor):
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.STOPPED)
    async with tail(door, "train-1") as socket:
        await socket.receive()
        assert await socket.text_until_closed() == ("", 1000)


async def test_tail_that_is_cut_off_is_finished_from_the_archive(door: FrontDoor):
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n", "two\n")
    async with tail(door, "train-1") as socket:
        await socket.receive()
        assert [(await socket.receive())["text"] for _ in range(2)] == ["one\n", "two\n"]
        door.live_logs.break_off()
        assert "cannot be reached" in (await socket.receive())["text"]
        await door.move_job("train-1", JobStatus.FAILED, log="one\ntwo\nlast words\n")
        assert await socket.text_until_closed() == ("last words\n", 1000)


async def test_tail_that_comes_back_sends_nothing_twice(door: FrontDoor):
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n", "two\n")
    door.live_logs.cut_after = 1
    async with tail(door, "train-1") as socket:
        await socket.receive()
        assert (await socket.receive())["text"] == "one\n"
        assert "cut off" in (await socket.receive())["text"]
        door.live_logs.cut_after = None
        assert (await socket.receive())["text"] == "two\n"


async def test_a_client_that_goes_away_frees_the_tail(door: FrontDoor):
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    door.live_logs.write("alpha.train-1", "one\n")
    async with tail(door, "train-1") as socket:
        await socket.receive()
        await socket.receive()
        assert door.live_logs.open_tails == 1
        await socket.go()
        assert door.live_logs.open_tails == 0


async def test_a_client_that_goes_away_from_the_queue_frees_the_tail(door: FrontDoor):
    await door.submit(submission_id="train-1")
    async with tail(door, "train-1") as socket:
        await socket.receive()
        await socket.receive()


async def test_a_job_deleted_under_a_tail_ends_it(door: FrontDoor):
    await door.submit(submission_id="train-1")
    async with tail(door, "train-1") as socket:
        await socket.receive()
        await socket.receive()
        async with door.store.begin() as uow:
            job = await uow.jobs.find("alpha", "train-1")
            await uow.apply(transition(job, JobStatus.STOPPED, now_ms=door.clock.now_ms()))
            await uow.jobs.delete(job.id)
            await uow.commit()
        assert await socket.text_until_closed() == ("cloudfarm: there is no job 'train-1'\n", 1000)


async def test_component_activities(door: FrontDoor):
    async def driver() -> dict:
        return (await door.call("alpha.viewer", "GET", "/api/component_activities")).json()["driver"]

    assert (await driver())["is_active"] == "INACTIVE"
    await door.submit(submission_id="train-1")
    await door.move_job("train-1", JobStatus.RUNNING)
    assert (await driver())["is_active"] == "ACTIVE"
    await door.move_job("train-1", JobStatus.SUCCEEDED)
    assert (await driver())["last_activity_at"] == door.clock.now_ms() / 1000
