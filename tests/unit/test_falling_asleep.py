"""Requests that arrive as replicas go, or are lost with one: they are answered, once, and count once."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from cloudfarm.domain.bundles import CAUSAL_LM, SERVE_APP, TEXT_EMBEDDING
from cloudfarm.domain.generation import Piece
from cloudfarm.domain.served import Used
from cloudfarm.domain.status import RevisionStatus
from cloudfarm.errors import ReplicaLostError, TooManyError
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_openai_error, assert_problem

PREDICT = ("/v1/services/sea/predict", {"x": 1})
CHAT = ("/v1/chat/completions", {"model": "sea", "messages": [{"role": "user", "content": "one two"}]})
STREAM = (CHAT[0], {**CHAT[1], "stream": True})
COMPLETE = ("/v1/completions", {"model": "sea", "prompt": "one two"})
EMBED = ("/v1/embeddings", {"model": "sea", "input": "one two"})
APP = ("/v1/services/sea/app/", {})
WAYS = {
    "predict": (PREDICT, "windpower-forecaster"),
    "chat": (CHAT, CAUSAL_LM),
    "chat stream": (STREAM, CAUSAL_LM),
    "completions": (COMPLETE, CAUSAL_LM),
    "embeddings": (EMBED, TEXT_EMBEDDING),
    "own application": (APP, SERVE_APP),
}
each_way = pytest.mark.parametrize("way", WAYS)
each_model = pytest.mark.parametrize("way", [way for way in WAYS if way != "own application"])


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path, cold_start_timeout_s=5) as opened:
        opened.app.state.calls.gate.room.poll_s = 0
        yield opened


async def app(_scope, _receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def running(door: FrontDoor, way: str, *, min_replicas: int = 0) -> str:
    """Let a service run that may sleep, remember the way to it, and return its revision."""
    await door.serve("sea", WAYS[way][1])
    await door.call("alpha.member", "PATCH", "/v1/services/sea", json={"min_replicas": min_replicas})
    door.apps.running["alpha.sea.1"] = app
    assert (await ask(door, way)).status_code == 200
    async with door.store.begin(write=False) as uow:
        (revision,) = await uow.revisions.list(open_only=True)
    return revision.id


async def ask(door: FrontDoor, way: str) -> httpx.Response:
    path, body = WAYS[way][0]
    return await door.call("alpha.key", "POST", path, json=body)


def replicas_go(door: FrontDoor) -> None:
    """Let one request find that Serve has nothing any more that could take it."""
    door.inference.gone = 1
    door.apps.running.clear()


def waiting(door: FrontDoor) -> int:
    return sum(load.waiting for load in door.app.state.loads.report().loads.values())


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


async def used(door: FrontDoor) -> Used:
    """Return what the ledger has of all calls, after a hand-over."""
    await door.meter.step()
    async with door.store.begin(write=False) as uow:
        return sum((day.used for day in await uow.served.days()), Used())


@each_way
async def test_who_finds_no_replica_any_more_waits_for_the_service_to_wake(door: FrontDoor, way: str) -> None:
    revision_id = await running(door, way)
    before = await used(door)
    await door.move_revision(revision_id, RevisionStatus.IDLE)
    replicas_go(door)  # long before the front door forgets the way
    door.nudge.reports.clear()
    request = asyncio.create_task(ask(door, way))
    await until(lambda: waiting(door))
    (load,) = door.nudge.reports[0].loads.values()
    assert load.waiting == 1
    asked = len(door.inference.calls + door.inference.generations + door.apps.asked)
    await door.move_revision(revision_id, RevisionStatus.RUNNING)
    door.apps.running["alpha.sea.1"] = app
    answer = await request
    assert answer.status_code == 200, answer.text
    assert waiting(door) == 0
    again = len(door.inference.calls + door.inference.generations + door.apps.asked)
    assert again - asked == (way != "embeddings")
    after = await used(door)
    assert after.requests - before.requests == 1
    assert after.prompt_tokens == 2 * before.prompt_tokens
    assert all(use.ended for _, use in door.meter.uses)


@each_way
async def test_what_the_records_say_is_not_believed_at_once(door: FrontDoor, way: str) -> None:
    """The revision is RUNNING all the while: the steward has not looked yet."""
    await running(door, way)
    replicas_go(door)
    request = asyncio.create_task(ask(door, way))
    await until(lambda: waiting(door))
    door.apps.running["alpha.sea.1"] = app
    assert (await request).status_code == 200


@each_way
async def test_it_is_sent_once_more_and_no_oftener(door: FrontDoor, way: str) -> None:
    await running(door, way)
    replicas_go(door)
    door.inference.gone = 3
    answer = await ask(door, way)
    assert_refused(answer, way, "no_replica")
    assert door.inference.gone == (1 if way != "own application" else 3)
    assert (await used(door)).requests == 2
    assert all(use.ended for _, use in door.meter.uses)


def assert_refused(answer: httpx.Response, way: str, code: str) -> None:
    if way in ("predict", "own application"):
        assert_problem(answer, 503, code)
    else:
        assert_openai_error(answer, 503, code=code)


@each_model
async def test_who_is_lost_with_a_replica_is_answered_by_another_and_counts_once(
    door: FrontDoor, way: str
) -> None:
    await running(door, way)
    before = await used(door)
    door.inference.lost = 1
    answer = await ask(door, way)
    assert answer.status_code == 200, answer.text
    after = await used(door)
    assert (after.requests, after.tokens) == (2 * before.requests, 2 * before.tokens)
    assert all(use.ended for _, use in door.meter.uses)


@each_model
async def test_who_is_lost_twice_is_told_so(door: FrontDoor, way: str) -> None:
    await running(door, way)
    door.inference.lost = 3
    assert_refused(await ask(door, way), way, "replica_lost")
    assert door.inference.lost == 1
    assert (await used(door)).requests == 2


@pytest.mark.parametrize("way", ["chat", "chat stream", "completions"])
async def test_an_answer_that_has_begun_is_not_begun_again(door: FrontDoor, way: str) -> None:
    await running(door, way)
    asked = len(door.inference.generations)
    door.inference.break_after = 2
    assert "replica_lost" in (await ask(door, way)).text
    assert len(door.inference.generations) == asked + 1


async def test_what_is_charged_is_not_asked_and_charged_again(door: FrontDoor, monkeypatch) -> None:
    await running(door, "embeddings")
    before, asked = await used(door), []

    async def embed(_self, _app_name: str, request, made: Callable[[Piece], None]) -> None:
        asked.append(request)
        made(Piece(prompt_tokens=2))
        raise ReplicaLostError

    monkeypatch.setattr(type(door.inference), "embed", embed)
    assert_refused(await ask(door, "embeddings"), "embeddings", "replica_lost")
    assert len(asked) == 1
    assert (await used(door)).tokens == before.tokens + 2


async def test_what_an_own_application_has_got_is_not_sent_again(door: FrontDoor, monkeypatch) -> None:
    await running(door, "own application")
    asked = []

    async def answer(_self, app_name: str, _scope, _body: bytes) -> AsyncIterator[dict]:
        asked.append(app_name)
        raise ReplicaLostError
        yield {}

    monkeypatch.setattr(type(door.apps), "answer", answer)
    assert_refused(await ask(door, "own application"), "own application", "replica_lost")
    assert len(asked) == 1


async def refused(door: FrontDoor, way: str, how: str) -> None:
    """Ask beyond a limit."""
    if how == "limit":
        door.meter.limit = TooManyError("no more", limit="requests_per_minute", retry_after_s=1)
        assert (await ask(door, way)).status_code == 429
    else:
        with door.app.state.calls.open.one("c-alpha-key"):
            assert (await ask(door, way)).status_code == 429


@each_way
@pytest.mark.parametrize("how", ["limit", "open requests"])
async def test_who_is_refused_keeps_nothing_awake_and_wakes_nothing(tmp_path, way: str, how: str) -> None:
    async with open_front_door(tmp_path, max_open_requests_of_key=1) as door:
        revision_id = await running(door, way)
        door.clock.advance(60_000)
        before = door.app.state.loads.report().loads
        await refused(door, way, how)
        assert door.app.state.loads.report().loads == before
        await door.move_revision(revision_id, RevisionStatus.IDLE)
        door.clock.advance(60_000)
        door.nudge.reports.clear()
        await refused(door, way, how)
        assert door.nudge.reports == []
        assert door.app.state.loads.report().loads == before


async def test_who_waits_for_a_service_has_a_request_open(tmp_path) -> None:
    async with open_front_door(tmp_path, max_open_requests_of_key=1) as door:
        door.app.state.calls.gate.room.poll_s = 0
        revision_id = await running(door, "chat")
        await door.move_revision(revision_id, RevisionStatus.IDLE)
        door.clock.advance(1000)
        request = asyncio.create_task(ask(door, "chat"))
        await until(lambda: waiting(door))
        assert (await ask(door, "chat")).status_code == 429
        assert waiting(door) == 1
        await door.move_revision(revision_id, RevisionStatus.RUNNING)
        assert (await request).status_code == 200


async def test_a_call_of_another_kind_wakes_nothing(door: FrontDoor) -> None:
    revision_id = await running(door, "predict")
    await door.move_revision(revision_id, RevisionStatus.IDLE)
    door.clock.advance(1000)
    assert (await ask(door, "chat")).status_code == 400
    assert waiting(door) == 0


async def test_who_waited_in_vain_has_not_used_up_a_request(door: FrontDoor) -> None:
    limits = {"requests_per_minute": 2}
    await door.call("alpha.admin", "PATCH", "/v1/keys/c-alpha-key", json=limits)
    revision_id = await running(door, "chat")
    await door.move_revision(revision_id, RevisionStatus.IDLE)
    door.clock.advance(1000)
    for _ in range(3):
        request = asyncio.create_task(ask(door, "chat"))
        await until(lambda: waiting(door))
        door.clock.advance(5000)
        assert (await request).status_code == 503
    await door.move_revision(revision_id, RevisionStatus.RUNNING)
    assert (await ask(door, "chat")).status_code == 200


async def test_what_has_begun_to_answer_is_not_asked_again(door: FrontDoor) -> None:
    await running(door, "chat stream")
    door.inference.break_after = 2
    answer = await ask(door, "chat stream")
    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert last["error"]["message"] == "the replica has died"
    assert len(door.inference.generations) == 2


async def test_a_replica_that_does_not_answer_may_have_begun(door: FrontDoor) -> None:
    await running(door, "predict")
    door.inference.down = True
    assert_problem(await ask(door, "predict"), 503, "unavailable")
    assert len(door.meter.uses) == 2


async def test_who_waits_again_uses_a_minutes_limit_once(door: FrontDoor) -> None:
    await running(door, "predict")
    body = {"user": "app", "requests_per_minute": 1}
    made = (await door.call("alpha.admin", "POST", "/v1/keys", json=body)).json()
    door.tokens["alpha.key"] = made["secret"]
    replicas_go(door)
    assert (await ask(door, "predict")).status_code == 200
    assert (await ask(door, "predict")).status_code == 429


async def test_one_that_must_not_sleep_is_waited_for_if_its_replicas_were_gone(door: FrontDoor) -> None:
    revision_id = await running(door, "predict", min_replicas=1)
    await door.move_revision(revision_id, RevisionStatus.STARTING)
    replicas_go(door)
    request = asyncio.create_task(ask(door, "predict"))
    await until(lambda: waiting(door))
    await door.move_revision(revision_id, RevisionStatus.RUNNING)
    assert (await request).status_code == 200


async def test_who_waits_goes_on_waiting_when_the_service_is_told_to_sleep_no_more(door: FrontDoor) -> None:
    revision_id = await running(door, "predict")
    await door.move_revision(revision_id, RevisionStatus.IDLE)
    door.clock.advance(1_000)
    first = asyncio.create_task(ask(door, "predict"))
    await until(lambda: waiting(door) == 1)
    await door.call("alpha.member", "PATCH", "/v1/services/sea", json={"min_replicas": 1})
    second = asyncio.create_task(ask(door, "predict"))  # still asleep: it comes by itself
    await until(lambda: waiting(door) == 2)
    for status in (RevisionStatus.PENDING, RevisionStatus.STARTING, RevisionStatus.RUNNING):
        await door.move_revision(revision_id, status)
        await asyncio.sleep(0)
    assert {(await first).status_code, (await second).status_code} == {200}


async def test_gpu_time_is_that_of_the_leases_that_are_charged(door: FrontDoor) -> None:
    """A replica that is wanted and still waits for its lease has none."""
    revision_id = await running(door, "predict", min_replicas=1)
    await door.move_revision(revision_id, RevisionStatus.RUNNING, replicas=3)
    door.clock.advance(1000)
    assert (await ask(door, "predict")).status_code == 200
    route, _ = door.meter.uses[-1]
    assert (route.service.milli_gpus, route.milli_gpus) == (250, 250)
