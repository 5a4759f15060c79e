"""Clients that go away, read slowly or are many, and replicas that die: what is charged is what was made."""

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.api import streaming
from cloudfarm.domain.bundles import context_of
from cloudfarm.domain.generation import Generation, Piece, Sampling
from cloudfarm.domain.status import RevisionStatus, Target
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import FakeClient, assert_openai_error

CHAT = "/v1/chat/completions"
BODY = {"model": "talk", "messages": [{"role": "user", "content": "one two three four five six"}]}
EMBED = {"model": "meaning", "input": "hello"}
SERVICE = {CHAT: "talk", "/v1/embeddings": "meaning"}


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path, max_open_requests=3, max_open_requests_of_key=2) as opened:
        await opened.serve("talk")
        await opened.serve("meaning", "text-embedding")
        yield opened


def client(door: FrontDoor, path: str = CHAT, who: str = "alpha.key", **fields) -> FakeClient:
    base = EMBED if path == "/v1/embeddings" else BODY
    return FakeClient(door.app, path, {"Authorization": f"Bearer {door.tokens[who]}"}, {**base, **fields})


async def ask(door: FrontDoor, who: str = "alpha.key", **fields) -> httpx.Response:
    return await door.call(who, "POST", CHAT, json={**BODY, **fields})


def assert_charged_as_made(door: FrontDoor) -> None:
    """Check that everything has ended and every piece that came from the engine is charged, and no other."""
    assert door.inference.open == 0
    assert all(use.ended for _, use in door.meter.uses)
    assert door.app.state.calls.open.open == 0
    charged = sum(use.completion_tokens for _, use in door.meter.uses)
    assert charged == sum(piece.tokens for piece in door.inference.made)
    assert sum(use.prompt_tokens for _, use in door.meter.uses) == sum(
        piece.prompt_tokens for piece in door.inference.made
    )


async def until_stalled(door: FrontDoor, reader: FakeClient) -> None:
    """Read a stream's beginning and its first piece, and wait until the model thinks about the third."""
    for _ in range(2):
        await reader.receive()
    await asyncio.wait_for(door.inference.stalled.wait(), 10)


# Going away


async def test_a_reader_of_a_stream_goes_away(door: FrontDoor):
    async with client(door, stream=True) as reader:
        assert (await reader.receive())["status"] == 200
        for _ in range(3):
            assert (await reader.receive())["more_body"]
        await reader.go()
    assert 2 <= len(door.inference.given) <= 6
    assert_charged_as_made(door)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_a_client_goes_away_while_the_model_thinks(door: FrontDoor, stream, pieces):
    door.inference.stall_after = pieces
    async with client(door, stream=stream) as reader:
        while not door.inference.stalled.is_set():
            if stream and pieces and not door.inference.stalled.is_set():
                await reader.receive()
            await asyncio.sleep(0)
        assert door.inference.open == 1
        await reader.go()
    assert len(door.inference.given) == pieces
    assert_charged_as_made(door)


async def test_a_client_goes_away_while_texts_are_embedded(door: FrontDoor):
    door.inference.stall_after = 0
    async with client(door, "/v1/embeddings") as reader:
        await door.inference.stalled.wait()
        await reader.go()
    assert_charged_as_made(door)


@given(
    readers=st.lists(
        st.tuples(
            st.booleans(), st.integers(0, 12), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 8))
        ),
        min_size=1,
        max_size=6,
    ),
    dies_after=st.one_of(st.none(), st.integers(0, 8)),
    ahead=st.integers(0, 5),
    late=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
async def test_whenever_clients_go_away_they_pay_what_was_made(
    tmp_path_factory, readers, dies_after, ahead, late
):
    async with open_front_door(tmp_path_factory.mktemp("farm")) as door:
        door.app.state.calls.gate.room.poll_s = 0
        await door.serve("talk")
        door.inference.break_after = dies_after
        door.inference.ahead, door.inference.late = ahead, late

        async def read(stream: bool, messages: int, choices: int, most: int | None) -> None:
            async with client(door, stream=stream, n=choices, max_tokens=most) as reader:
                for _ in range(messages):
                    message = await reader.receive()
                    if message["type"] == "http.response.body" and not message.get("more_body"):
                        return

        await asyncio.gather(*(read(*each) for each in readers))
        most_tries = 2 if dies_after == 0 else 1
        assert len(door.meter.uses) <= most_tries * len(readers)
        assert_charged_as_made(door)


async def test_a_cancelled_server_leaves_nothing_open(door: FrontDoor):
    door.inference.stall_after = 2
    async with client(door, stream=True) as reader:
        await reader.receive()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader.ended()
    assert_charged_as_made(door)


# A key that is revoked


async def revoked(door: FrontDoor) -> None:
    deleted = await door.call("alpha.admin", "DELETE", "/v1/keys/c-alpha-key")
    assert deleted.status_code == 204


async def test_a_stream_of_a_revoked_key_ends_at_once_with_an_error(door: FrontDoor):
    door.inference.stall_after = 2
    async with client(door, stream=True) as reader:
        await until_stalled(door, reader)
        assert door.inference.open == 1
        await revoked(door)
        said = []
        while (message := await reader.receive())["more_body"]:
            said.append(message["body"].decode())
    error = json.loads(said[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    assert "revoked" in error["message"]
    assert sum(use.completion_tokens for _, use in door.meter.uses) == 1
    assert_charged_as_made(door)


async def test_a_stream_of_a_revoked_key_that_is_read_slowly_has_nothing_more(door: FrontDoor):
    async with client(door, stream=True) as reader:
        for _ in range(3):
            await reader.receive()
        for _ in range(20):
            await asyncio.sleep(0)
        given = len(door.inference.given)
        await revoked(door)
        said = ""
        while (message := await reader.receive())["more_body"]:
            said = message["body"].decode()
        assert "invalid_api_key" in said
        assert len(door.inference.given) == given
    assert_charged_as_made(door)


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_an_answer_for_a_revoked_key_is_given_up(door: FrontDoor, path):
    door.inference.stall_after = 0
    async with client(door, path) as reader, client(door, who="alpha.member", stream=True) as other:
        await until_open(door, 2)
        await revoked(door)
        assert (await reader.receive())["status"] == 401
        assert door.inference.open == 1
        await other.go()
    assert_charged_as_made(door)


# A service that has lost its replicas


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
@pytest.mark.parametrize(
    ("status", "replicas"),
    [(RevisionStatus.PENDING, 1), (RevisionStatus.FAILED, 0), (RevisionStatus.ENDED, 0)],
)
async def test_who_waits_for_a_replica_that_will_not_come_is_told(door: FrontDoor, path, status, replicas):
    target = Target.END if status is RevisionStatus.ENDED else Target.RUN
    door.inference.stall_after = 0
    async with client(door, path) as reader:
        await until_open(door, 1)
        await door.meter.step()
        async with door.store.begin(write=False) as uow:
            (revision,) = [each for each in await uow.revisions.list() if each.name == SERVICE[path]]
        await door.move_revision(revision.id, status, target=target, replicas=replicas)
        await door.meter.step()
        start = await reader.receive()
        assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"5")
        assert b"has lost its replicas" in (await reader.receive())["body"]
    assert door.inference.open == 0
    assert_charged_as_made(door)


async def test_what_has_begun_is_left_to_end(door: FrontDoor):
    door.inference.stall_after = 2
    async with client(door, stream=True) as reader:
        await until_stalled(door, reader)
        async with door.store.begin(write=False) as uow:
            (revision,) = [each for each in await uow.revisions.list() if each.name == SERVICE[CHAT]]
        await door.move_revision(revision.id, RevisionStatus.PENDING)
        await door.meter.step()
        assert door.inference.open == 1
        await reader.go()
    assert_charged_as_made(door)


# Limits


async def test_of_requests_at_once_one_is_let_in_on_the_last_tokens(door: FrontDoor):
    limits = {"tokens_per_minute": 1, "tokens_per_month": 10_000}
    await door.call("alpha.admin", "PATCH", "/v1/keys/c-alpha-key", json=limits)
    door.inference.stall_after = 0
    async with client(door, max_tokens=5) as reader:
        await until_open(door, 1)
        for path, body in ((CHAT, {**BODY, "max_tokens": 5}), ("/v1/embeddings", EMBED)):
            error = assert_openai_error(
                refused := await door.call("alpha.key", "POST", path, json=body), 429, "rate_limit_exceeded"
            )
            assert refused.headers["retry-after"] == "1"
            assert (error["limit"], error["used"]) == ("tokens_per_minute", 0)
            assert error["held"] >= 5 + 6
        await reader.go()
    door.inference.stall_after = None
    assert (await ask(door, max_tokens=5)).status_code == 200
    assert door.meter._allowances._held == {}


def test_the_most_that_a_request_may_use():
    def most(context_tokens: int, **sampling) -> int:
        return Generation(Sampling(**sampling), prompts=("four",)).most_tokens(context_tokens)

    assert most(100, max_tokens=10, choices=3) == 34
    assert most(0, max_tokens=10, choices=3) == 34
    assert most(12, max_tokens=10) == 12
    assert most(100, choices=3) == 300
    assert most(0) == 0


def test_a_context_that_a_tenant_made_up_is_not_known():
    specs = (
        {"context_tokens": 512},
        {"context_tokens": True},
        {"context_tokens": 2**70},
        {"context_tokens": "9"},
        [],
    )
    assert [context_of({"spec": spec}) for spec in specs] == [512, 0, 0, 0, 0]
    assert context_of({}) == 0


# Reading slowly


async def test_nothing_is_taken_from_the_model_that_the_reader_has_no_room_for(door: FrontDoor):
    async with client(door, stream=True) as reader:
        await reader.receive()
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(door.inference.given) <= 3
        await reader.go()
    assert_charged_as_made(door)


async def test_who_reads_nothing_pays_what_the_engine_has_made_meanwhile(door: FrontDoor, monkeypatch):
    monkeypatch.setattr(streaming, "STALL_S", 0.01)
    door.inference.ahead = 100
    async with client(door, stream=True) as reader:
        await reader.ended()
    ((_, use),) = door.meter.uses
    assert (use.prompt_tokens, use.completion_tokens) == (6, 7)
    assert len(door.inference.given) < 8
    assert_charged_as_made(door)


async def test_a_reader_that_takes_nothing_counts_as_gone(door: FrontDoor, monkeypatch):
    monkeypatch.setattr(streaming, "STALL_S", 0.01)
    async with client(door, stream=True) as reader:
        await reader.ended()
    assert 0 < len(door.inference.given) < 8
    assert_charged_as_made(door)


# Dying


async def test_a_replica_that_dies_at_once_is_an_ordinary_error(door: FrontDoor):
    door.inference.break_after = 0
    for stream in (False, True):
        assert_openai_error(await ask(door, stream=stream), 503, "replica_lost")
    assert_charged_as_made(door)


async def test_a_replica_that_dies_later_ends_the_stream_with_an_error(door: FrontDoor):
    door.inference.break_after = 3
    answer = await ask(door, stream=True)
    assert answer.status_code == 200
    *events, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert len(events) == 3
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"], error["message"]) == (
        "server_error",
        "replica_lost",
        "the replica has died",
    )
    assert_charged_as_made(door)
    assert_openai_error(await ask(door), 503, "replica_lost")
    assert_charged_as_made(door)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_an_end_is_no_answer(door: FrontDoor, monkeypatch, stream):
    async def cut(*_):
        yield Piece(prompt_tokens=1)
        yield Piece(text="half", tokens=1)

    monkeypatch.setattr(type(door.inference), "generate", cut)
    answer = await ask(door, stream=stream)
    if stream:
        assert "[DONE]" not in answer.text
        assert "broke off" in answer.text
    else:
        assert_openai_error(answer, 503, "unavailable")


# Being many


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_may_have_so_many_requests_open(door: FrontDoor, stream):
    door.inference.stall_after = 1
    async with client(door, stream=stream), client(door, stream=stream) as second:
        await until_open(door, 2)
        refused = await ask(door)
        error = assert_openai_error(refused, 429, "rate_limit_exceeded")
        assert (error["limit"], error["limit_value"]) == ("open_requests", 2)
        embed = await door.call("alpha.key", "POST", "/v1/embeddings", json=EMBED)
        assert embed.status_code == 429
        async with client(door, who="alpha.member"):
            await until_open(door, 3)
            assert_openai_error(await ask(door, who="alpha.admin"), 503, "unavailable")
        await second.go()
        door.inference.stall_after = None
        assert (await ask(door)).status_code == 200
    assert_charged_as_made(door)


async def test_a_refused_request_takes_no_place(door: FrontDoor):
    door.inference.refusal = "no"
    for _ in range(5):
        assert (await ask(door)).status_code == 400
    door.inference.refusal = ""
    assert (await ask(door)).status_code == 200


async def until_open(door: FrontDoor, count: int) -> None:
    async with asyncio.timeout(10):
        while door.inference.open < count:  # noqa: ASYNC110 - the fake knows no event for a number
            await asyncio.sleep(0)
