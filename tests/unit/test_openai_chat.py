"""Chats and completions as OpenAI's API has them: shapes, parameters, streams, and what is counted."""

import json

import pytest

from cloudfarm.domain.bundles import manifest_digest
from cloudfarm.domain.generation import Adapter, Message, Sampling
from cloudfarm.domain.status import RevisionStatus
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_openai_error

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = {"model": "talk", "messages": [{"role": "user", "content": "wind from the sea"}]}


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        await opened.serve("talk")
        yield opened


async def ask(door: FrontDoor, path: str = CHAT, who: str = "alpha.key", **fields):
    base = HELLO if path == CHAT else {"model": "talk", "prompt": "wind from the sea"}
    return await door.call(who, "POST", path, json={**base, **fields})


async def events(door: FrontDoor, path: str = CHAT, **fields) -> list[dict]:
    answer = await ask(door, path, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in answer.headers
    *lines, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def used(door: FrontDoor) -> tuple[int, int]:
    """Return what the one request was charged, which has ended."""
    ((_, use),) = door.meter.uses
    assert use.ended
    return use.prompt_tokens, use.completion_tokens


# Whole answers


async def test_a_chat(door: FrontDoor):
    answer = await ask(door)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body == {
        "object": "chat.completion",
        "created": door.clock.now_ms() // 1000,
        "model": "talk",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "wind from the sea", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9},
    }
    assert used(door) == (4, 5)
    assert door.inference.open == 0


async def test_a_completion(door: FrontDoor):
    body = (await ask(door, COMPLETIONS, max_tokens=2, n=2)).json()
    assert body.pop("id").startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": index, "text": "wind from", "logprobs": None, "finish_reason": "length"} for index in (0, 1)
    ]
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    assert used(door) == (4, 4)


async def test_every_answer_has_an_id_of_its_own(door: FrontDoor):
    assert (await ask(door)).json()["id"] != (await ask(door)).json()["id"]


async def test_the_parameters_arrive_in_the_farms_words(door: FrontDoor):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": [{"type": "text", "text": "wind "}, {"type": "text", "text": "speed"}]},
    ]
    answer = await ask(
        door,
        messages=messages,
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        presence_penalty=-2,
        frequency_penalty=1.5,
        stop=["\n", "END"],
        seed=-3,
        n=2,
        ignore_eos=True,
        user="somebody",
        tools=None,
        tool_choice="auto",
        logprobs=False,
        response_format={"type": "text"},
        metadata={"a": "b"},
        store=True,
    )
    assert answer.status_code == 200, answer.text
    ((app, request),) = door.inference.generations
    assert app == "alpha.talk.1"
    assert request.sampling == Sampling(7, 0.0, 0.5, -2.0, 1.5, ("\n", "END"), -3, 2, ignore_eos=True)
    assert request.messages == (
        Message("system", "be brief"),
        Message("assistant", "yes"),
        Message("user", "wind speed"),
    )


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {
                "type": "json_schema",
                "json_schema": {
                    "name": "city",
                    "strict": True,
                    "schema": {"enum": ["서울"]},
                    "description": "x",
                },
            },
            {"enum": ["서울"]},
        ),
    ],
)
async def test_a_format_arrives_as_its_schema(door: FrontDoor, response_format, schema):
    answer = await ask(door, response_format=response_format)
    assert answer.status_code == 200, answer.text
    ((_, request),) = door.inference.generations
    given = request.sampling.json_schema
    assert (None if given is None else json.loads(given)) == schema


async def test_what_is_not_said_is_openais_default(door: FrontDoor):
    nulls = dict.fromkeys(["max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "tools"])
    await ask(door)
    await ask(door, **nulls)
    await ask(door, COMPLETIONS)
    chat, same, completion = (request for _, request in door.inference.generations)
    assert chat == same
    assert chat.sampling == Sampling()
    assert completion.sampling == Sampling(max_tokens=16)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a b", ("a b",)),
        (["a b"], ("a b",)),
        ([5, 0, 70000], ((5, 0, 70000),)),
        (["a", "b c"], ("a", "b c")),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
async def test_prompts(door: FrontDoor, prompt, wanted):
    assert (await ask(door, COMPLETIONS, prompt=prompt)).status_code == 200
    ((_, request),) = door.inference.generations
    assert request.prompts == wanted


async def test_several_prompts_are_one_request_with_the_choices_of_all(door: FrontDoor):
    body = (await ask(door, COMPLETIONS, prompt=["a b", "c d e"], n=2)).json()
    assert [(each["index"], each["text"]) for each in body["choices"]] == [
        (0, "a b"),
        (1, "a b"),
        (2, "c d e"),
        (3, "c d e"),
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 14, "total_tokens": 19}
    assert used(door) == (5, 14)


async def test_several_prompts_as_a_stream(door: FrontDoor):
    *found, last = await events(
        door, COMPLETIONS, prompt=[[1, 2], [3]], n=2, stream_options={"include_usage": True}
    )
    choices = [each["choices"][0] for each in found]
    texts = ["".join(each["text"] for each in choices if each["index"] == index) for index in range(4)]
    assert texts == ["1 2", "1 2", "3", "3"]
    assert sorted(each["index"] for each in choices if each["finish_reason"]) == [0, 1, 2, 3]
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}
    assert used(door) == (3, 10)


async def test_a_top_p_of_nothing_leaves_the_likeliest_token(door: FrontDoor):
    assert (await ask(door, top_p=0, temperature=1.5)).status_code == 200
    ((_, request),) = door.inference.generations
    assert (request.sampling.temperature, request.sampling.top_p) == (0, 1)


async def test_a_name_and_an_answer_without_a_text_are_taken(door: FrontDoor):
    messages = [
        {"role": "user", "name": "ann", "content": "hello"},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "user", "content": "go on"},
    ]
    assert (await ask(door, messages=messages)).status_code == 200
    ((_, request),) = door.inference.generations
    assert request.messages[:3] == (
        Message("user", "hello"),
        Message("assistant", ""),
        Message("assistant", ""),
    )


async def test_as_many_choices_as_the_guide_says(door: FrontDoor):
    assert len((await ask(door, n=8)).json()["choices"]) == 8


# Streams


async def test_a_chat_as_a_stream(door: FrontDoor):
    first, *middle, last = await events(door)
    common = {"object": "chat.completion.chunk", "created": door.clock.now_ms() // 1000, "model": "talk"}
    for each in (first, *middle, last):
        assert each.items() >= common.items()
        assert each["id"] == first["id"]
        assert "usage" not in each
        assert each["choices"][0]["logprobs"] is None
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [each["choices"][0]["delta"]["content"] for each in middle] == ["wind", " from", " the", " sea"]
    assert last["choices"][0]["delta"] == {}
    assert [each["choices"][0]["finish_reason"] for each in (first, *middle, last)] == [None] * 5 + ["stop"]
    assert used(door) == (4, 5)


async def test_a_stream_ends_with_what_it_used_if_asked(door: FrontDoor):
    *others, last = await events(door, stream_options={"include_usage": True})
    assert {each["usage"] for each in others} == {None}
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    assert await events(door, stream_options={"include_usage": False})


async def test_a_completion_as_a_stream_of_several_choices(door: FrontDoor):
    found = await events(door, COMPLETIONS, n=2, max_tokens=2)
    assert {each["object"] for each in found} == {"text_completion"}
    choices = [each["choices"][0] for each in found]
    for index in (0, 1):
        mine = [each for each in choices if each["index"] == index]
        assert [each["text"] for each in mine] == ["wind", " from", ""]
        assert [each["finish_reason"] for each in mine] == [None, None, "length"]


async def test_each_choice_of_a_streamed_chat_begins_with_its_role(door: FrontDoor):
    choices = [each["choices"][0] for each in await events(door, n=2)]
    for index in (0, 1):
        roles = ["role" in each["delta"] for each in choices if each["index"] == index]
        assert roles == [True] + [False] * 5


@pytest.mark.parametrize("text", ["전남대학교", 'quote" back\\slash', "line\u2028break\x7f\x01", "🌬"])
async def test_any_text_comes_through(door: FrontDoor, text):
    messages = [{"role": "user", "content": text}]
    (choice,) = (await ask(door, messages=messages)).json()["choices"]
    assert choice["message"]["content"] == " ".join(text.split())
    found = await events(door, messages=messages)
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in found) == " ".join(text.split())


# Which model


async def test_an_adapter_of_the_callers_tenant(door: FrontDoor):
    base = (await door.call("alpha.member", "GET", "/v1/model-versions/talk")).json()
    async with door.store.begin(write=False) as uow:
        base = await uow.models.get(base["id"])
    await door.adapter("dialect", base)
    newest = await door.adapter("dialect", base)
    other = await door.model("other", kind="causal-lm", files={"w": {"sha256": "1"}})
    await door.adapter("dialect", other)  # a newer version, but for other weights
    body = (await ask(door, model="talk:dialect")).json()
    assert body["model"] == "talk:dialect"
    ((_, request),) = door.inference.generations
    assert request.adapter == Adapter(newest.id, "dialect", newest.uri, manifest_digest(newest.manifest))
    ((route, _),) = door.meter.uses
    assert (route.adapter, route.model, route.service.name) == (request.adapter, "talk:dialect", "talk")
    assert (route.tenant, route.key_id) == ("alpha", "c-alpha-key")
    for name in ("talk:", "talk:none", "talk:talk", "talk:dialect:1", "none:dialect", ":", "\0", "x" * 300):
        error = assert_openai_error(await ask(door, model=name), 404, "model_not_found", param="model")
        assert "dialect" not in error["message"].replace(name[:80], "")


async def test_anothers_model_is_answered_as_a_missing_one(door: FrontDoor):
    async with door.store.begin(write=False) as uow:
        (base,) = await uow.models.list("alpha")
    await door.adapter("dialect", base)
    for name in ("talk", "talk:dialect"):
        theirs = await ask(door, who="beta.key", model=name)
        nobodys = await ask(door, who="beta.key", model="nobodys")
        assert_openai_error(theirs, 404, "model_not_found", param="model")
        assert theirs.text.replace(name, "nobodys") == nobodys.text
    assert door.inference.generations == []


async def test_an_adapter_is_its_tenants_alone(door: FrontDoor):
    """Both tenants serve the same weights; each sees its own adapter only."""
    base = await door.serve("talk", tenant="beta")
    await door.adapter("dialect", base, tenant="beta")
    assert (await ask(door, who="beta.key", model="talk:dialect")).status_code == 200
    assert_openai_error(await ask(door, model="talk:dialect"), 404, "model_not_found", param="model")


async def test_a_model_that_says_nothing_is_not_asked(door: FrontDoor):
    await door.serve("meaning", "text-embedding")
    await door.serve("gale", "windpower-forecaster")
    for path in (CHAT, COMPLETIONS):
        for name in ("meaning", "gale"):
            assert_openai_error(await ask(door, path, model=name), 400, "model_not_supported", param="model")
    answer = await door.call("alpha.key", "POST", "/v1/services/talk/predict", json={})
    assert "/v1/chat/completions" in answer.json()["detail"]
    assert door.meter.uses == []


async def test_the_list_of_models(door: FrontDoor):
    await door.serve("meaning", "text-embedding")
    await door.serve("gale", "windpower-forecaster")
    await door.serve("theirs", tenant="beta")
    async with door.store.begin(write=False) as uow:
        base = await uow.models.find("alpha", "talk")
    await door.adapter("dialect", base)
    body = (await door.call("alpha.key", "GET", "/v1/models")).json()
    assert body["object"] == "list"
    assert [each["id"] for each in body["data"]] == ["meaning", "talk", "talk:dialect"]
    assert body["data"][1] == {
        "id": "talk",
        "object": "model",
        "created": door.clock.now_ms() // 1000,
        "owned_by": "alpha",
    }
    for each in body["data"]:
        assert (await door.call("alpha.member", "GET", f"/v1/models/{each['id']}")).json() == each
    for name in ("theirs", "gale", "none"):
        answer = await door.call("alpha.key", "GET", f"/v1/models/{name}")
        assert_openai_error(answer, 404, "model_not_found", param="model")


async def test_a_model_that_was_opened_to_all(door: FrontDoor):
    answer = await door.call(
        "operator", "PATCH", "/v1/services/talk", params={"tenant": "alpha"}, json={"shared": True}
    )
    assert answer.status_code == 200, answer.text
    async with door.store.begin(write=False) as uow:
        base = await uow.models.find("alpha", "talk")
    await door.adapter("dialect", base, tenant="beta")
    for name in ("talk", "talk:dialect"):
        assert (await ask(door, who="beta.key", model=name)).status_code == 200
    assert {app for app, _ in door.inference.generations} == {"alpha.talk.1"}
    assert_openai_error(await ask(door, model="talk:dialect"), 404, "model_not_found", param="model")
    listed = await door.call("beta.key", "GET", "/v1/models")
    owners = {each["id"]: each["owned_by"] for each in listed.json()["data"]}
    assert owners == {"talk": "farm", "talk:dialect": "beta"}
    await door.serve("talk", tenant="beta")  # one's own comes first
    door.clock.advance(900)
    await ask(door, who="beta.key")
    assert door.inference.generations[-1][0].startswith("beta.talk.")


async def test_what_failed_in_another_tenants_service_is_not_told(door: FrontDoor):
    async with door.store.begin(write=False) as uow:
        service = await uow.services.find("alpha", "talk")
    failed = RevisionStatus.FAILED
    await door.move_revision(service.current_id, failed)
    await door.move_revision(service.current_id, failed, message="the secret of alpha")
    asked = {"tenant": "alpha"}
    for shared, who, told in (
        (False, "alpha.key", True),
        (True, "alpha.key", False),
        (True, "beta.key", False),
    ):
        await door.call("operator", "PATCH", "/v1/services/talk", params=asked, json={"shared": shared})
        door.clock.advance(1_000)
        error = assert_openai_error(await ask(door, who=who), 503, "unavailable")
        assert ("secret" in error["message"]) is told


async def test_a_key_for_some_services_sees_and_calls_those(door: FrontDoor):
    await door.serve("other")
    made = await door.call("alpha.admin", "POST", "/v1/keys", json={"user": "robot", "services": ["other"]})
    async with door.client(None, Authorization=f"Bearer {made.json()['secret']}") as client:
        assert [each["id"] for each in (await client.get("/v1/models")).json()["data"]] == ["other"]
        assert (await client.post(CHAT, json={**HELLO, "model": "other"})).status_code == 200
        refused = await client.post(CHAT, json=HELLO)
        missing = await client.post(CHAT, json={**HELLO, "model": "none"})
    assert_openai_error(refused, 404, "model_not_found", param="model")
    assert refused.text.replace("talk", "none") == missing.text


async def test_a_revoked_key_is_refused_within_a_second(door: FrontDoor):
    made = (await door.call("alpha.admin", "POST", "/v1/keys", json={"user": "app"})).json()
    async with door.client(None, Authorization=f"Bearer {made['secret']}") as client:
        assert (await client.post(CHAT, json=HELLO)).status_code == 200
        await door.call("alpha.admin", "DELETE", f"/v1/keys/{made['id']}")
        door.clock.advance(999)
        assert_openai_error(await client.post(CHAT, json=HELLO), 401, "invalid_api_key")


async def test_a_service_that_is_being_deleted(door: FrontDoor):
    await door.call("alpha.member", "DELETE", "/v1/services/talk")
    assert_openai_error(await ask(door), 503, "unavailable")
    assert (await door.call("alpha.key", "GET", "/v1/models")).json()["data"] == []
