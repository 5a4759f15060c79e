"""What is refused on OpenAI's routes, and how: every wrong request is a clear 4xx in OpenAI's shape."""

import json

import pytest

from cloudfarm.errors import TooManyError, UnavailableError
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_openai_error, assert_problem

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
BODIES = {
    CHAT: {"model": "talk", "messages": [{"role": "user", "content": "hello"}]},
    COMPLETIONS: {"model": "talk", "prompt": "hello"},
    EMBEDDINGS: {"model": "meaning", "input": "hello"},
}


def schema_named(name, schema=None):
    return {"name": name, "schema": {"type": "object"} if schema is None else schema}


UNSUPPORTED = {
    CHAT: {
        "tools": [{"type": "function"}],
        "tool_choice": "required",
        "functions": [{}],
        "function_call": {"name": "f"},
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {"5": 1},
        "audio": {"voice": "x"},
        "modalities": ["audio"],
        "prediction": {},
        "reasoning_effort": "low",
        "verbosity": "low",
        "web_search_options": {},
    },
    COMPLETIONS: {"logprobs": 0, "echo": True, "suffix": "x", "best_of": 2, "logit_bias": {"5": 1}},
    EMBEDDINGS: {},
}
NEUTRAL = {
    CHAT: {
        "tools": [],
        "tool_choice": "none",
        "functions": [],
        "function_call": "auto",
        "top_logprobs": 0,
        "logit_bias": {},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "service_tier": "auto",
    },
    COMPLETIONS: {"echo": False, "suffix": "", "best_of": 1, "logit_bias": {}},
    EMBEDDINGS: {"dimensions": None, "user": "x"},
}


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        await opened.serve("talk")
        await opened.serve("meaning", "text-embedding")
        yield opened


async def ask(door: FrontDoor, path: str = CHAT, **fields):
    return await door.call("alpha.key", "POST", path, json={**BODIES[path], **fields})


async def send(door: FrontDoor, content: bytes | str, path: str = CHAT, kind: str = "application/json"):
    async with door.client("alpha.key", **{"Content-Type": kind}) as client:
        return await client.post(path, content=content)


# Values


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("model", None),
        ("model", 5),
        ("model", ""),
        ("model", "x" * 301),
        ("messages", None),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [1]),
        ("messages", [{}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": []}]),
        ("messages", [{"role": "king", "content": "x"}]),
        ("messages", [{"role": "tool", "content": "x", "tool_call_id": "1"}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user", "content": "x"}] * 2049),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("max_tokens", 10**400),
        ("max_completion_tokens", 0),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", 10**400),
        ("temperature", True),
        ("temperature", "1"),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("presence_penalty", -2.1),
        ("frequency_penalty", 2.1),
        ("n", 0),
        ("n", 9),
        ("n", 1.0),
        ("stop", ""),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [5]),
        ("stop", {"a": 1}),
        ("seed", 2**63),
        ("seed", 0.5),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("stream_options", 5),
        ("ignore_eos", 1),
        ("response_format", "json_object"),
        ("response_format", {"type": "grammar"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "text", "json_schema": schema_named("x")}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("response_format", {"type": "json_schema", "json_schema": schema_named("a b")}),
        ("response_format", {"type": "json_schema", "json_schema": schema_named("x", "string")}),
        (
            "response_format",
            {
                "type": "json_schema",
                "json_schema": schema_named("x", {"items": [{"$ref": "https://x.org/a"}]}),
            },
        ),
        (
            "response_format",
            {"type": "json_schema", "json_schema": schema_named("x", {"a": "x" * (1 << 16)})},
        ),
    ],
)
async def test_values_that_can_never_be_right(door: FrontDoor, param, value):
    answer = await ask(door, **{param: value})
    error = assert_openai_error(answer, 400, answer.json()["error"]["code"], param=param)
    assert error["code"] in ("invalid_value", "missing_required_parameter", "unknown_parameter")
    assert door.inference.generations == door.meter.uses == []


@pytest.mark.parametrize(
    ("path", "param", "value"),
    [
        (COMPLETIONS, "prompt", ""),
        (COMPLETIONS, "prompt", []),
        (COMPLETIONS, "prompt", ["a", 1]),
        (COMPLETIONS, "prompt", ["a", [1]]),
        (COMPLETIONS, "prompt", [[1], []]),
        (COMPLETIONS, "prompt", ["x"] * 65),
        (COMPLETIONS, "prompt", [[1]] * 65),
        (COMPLETIONS, "prompt", [-1]),
        (COMPLETIONS, "prompt", [1.5]),
        (COMPLETIONS, "prompt", [True]),
        (COMPLETIONS, "prompt", [2**31]),
        (COMPLETIONS, "prompt", None),
        (EMBEDDINGS, "input", ""),
        (EMBEDDINGS, "input", []),
        (EMBEDDINGS, "input", ["a", ""]),
        (EMBEDDINGS, "input", [1, -2]),
        (EMBEDDINGS, "input", [[1], []]),
        (EMBEDDINGS, "input", [[1], "a"]),
        (EMBEDDINGS, "input", [[1]] * 2049),
        (EMBEDDINGS, "dimensions", 0),
        (EMBEDDINGS, "dimensions", "2"),
        (EMBEDDINGS, "input", ["x"] * 2049),
        (EMBEDDINGS, "encoding_format", "int8"),
    ],
)
async def test_prompts_and_inputs_that_are_none(door: FrontDoor, path, param, value):
    assert_openai_error(await ask(door, path, **{param: value}), 400, "invalid_value", param=param)


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (EMBEDDINGS, {"input": ""}, "input: String should have at least 1 character"),
        (EMBEDDINGS, {"input": ["a", ""]}, "input.1: String should have at least 1 character"),
        (EMBEDDINGS, {"input": []}, "input: List should have at least 1 item after validation, not 0"),
        (EMBEDDINGS, {"input": {}}, "input: Input should be a valid string; Input should be a valid list"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt.1: Input should be a valid integer"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt.1: Input should be a valid string"),
        (COMPLETIONS, {"prompt": [[1], [2, -3]]}, "prompt.1.1: Input should be greater than or equal to 0"),
        (CHAT, {"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        (
            CHAT,
            {"temperature": "1"},
            "temperature: Input should be a valid integer; Input should be a valid number",
        ),
        (CHAT, {"stop": ["a", ""]}, "stop.1: String should have at least 1 character"),
        (CHAT, {"messages": [1]}, "messages.0: Input should be an object"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages.0.role: Field required"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text: Field required",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "parts": []}]},
            "messages.0.parts: this route has no such parameter",
        ),
        (CHAT, {"stream_options": 5}, "stream_options: Input should be an object"),
    ],
)
async def test_the_reason_is_the_one_that_helps(door: FrontDoor, path, fields, message):
    answer = await ask(door, path, **fields)
    error = assert_openai_error(answer, 400, answer.json()["error"]["code"], param=next(iter(fields)))
    assert error["message"] == message


async def test_two_limits(door: FrontDoor):
    answer = await ask(door, max_tokens=5, max_completion_tokens=6)
    assert_openai_error(answer, 400, "invalid_value", param="max_tokens")
    assert (await ask(door, max_tokens=5, max_completion_tokens=5)).status_code == 200


@pytest.mark.parametrize("path", BODIES)
async def test_what_the_farm_does_not_do_is_refused_by_name(door: FrontDoor, path):
    for param, value in UNSUPPORTED[path].items():
        answer = await ask(door, path, **{param: value})
        assert_openai_error(answer, 400, "unsupported_parameter", param=param)


@pytest.mark.parametrize("path", BODIES)
async def test_what_changes_nothing_is_accepted(door: FrontDoor, path):
    answer = await ask(
        door, path, **NEUTRAL[path], **dict.fromkeys(UNSUPPORTED[path].keys() - NEUTRAL[path].keys())
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", ["temprature", "전남", "a.b", "0"])
async def test_unknown_members_are_refused_by_name(door: FrontDoor, path, name):
    shown = ascii(name)[1:-1]
    error = assert_openai_error(await ask(door, path, **{name: 1}), 400, "unknown_parameter", param=shown)
    assert shown in error["message"]


@pytest.mark.parametrize("path", BODIES)
async def test_missing_members_are_named(door: FrontDoor, path):
    for param in BODIES[path]:
        body = {name: value for name, value in BODIES[path].items() if name != param}
        answer = await door.call("alpha.key", "POST", path, json=body)
        assert_openai_error(answer, 400, "missing_required_parameter", param=param)


# Bodies


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nul",
        b"5",
        b'"text"',
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a": ' * 100_000,
        b"9" * 100_000,
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": NaN}',
        b'{"model": -Infinity}',
        b'{"model": "\\ud800"}',
        b"{" + b",".join(b'"a%d":1' % n for n in range(50_000)) + b"}",
    ],
    ids=lambda content: content[:12],
)
async def test_bodies_that_are_none(door: FrontDoor, path, content):
    answer = await send(door, content, path)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert_openai_error(answer, 400, error["code"], param=error["param"])
    assert len(answer.content) < 2000


@pytest.mark.parametrize("path", BODIES)
async def test_not_every_wrong_member_is_looked_at(door: FrontDoor, path):
    """A finding costs microseconds, and a body has room for a hundred thousand."""
    error = assert_openai_error(
        await ask(door, path, **{f"a{n}": 1 for n in range(65)}), 400, "invalid_value"
    )
    assert "more than 64 members" in error["message"]


@pytest.mark.parametrize(
    "text",
    [
        '"temperature": NaN',
        '"temperature": Infinity',
        '"temperature": 1e999',
        '"top_p": NaN',
        '"stop": "\\ud800"',
        '"messages": [{"role": "user", "content": "\\udfff"}]',
        '"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "\\udfff"}}}',
        '"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": NaN}}}',
        '"messages": [{"role": "user", "content": [{"type": "text", "text": "\\udfff"}]}]',
    ],
)
async def test_numbers_and_letters_that_are_none(door: FrontDoor, text):
    body = json.dumps(BODIES[CHAT])[:-1] + ", " + text + "}"
    param = text.split('"')[1]
    assert_openai_error(await send(door, body), 400, "invalid_value", param=param)


async def test_a_null_byte_is_a_letter_like_others(door: FrontDoor):
    assert (await ask(door, messages=[{"role": "user", "content": "a\0b"}])).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_bodies_that_are_not_said_to_be_json(door: FrontDoor, kind):
    answer = await send(door, json.dumps(BODIES[CHAT]), kind=kind)
    assert_openai_error(answer, 400, "invalid_value")


@pytest.mark.parametrize("path", BODIES)
async def test_ten_megabytes(door: FrontDoor, path):
    answer = await ask(door, path, user="x" * 10_000_000)
    assert assert_openai_error(answer, 413, "too_large")["max_bytes"] == door.context.settings.max_body_bytes


async def test_a_hundred_thousand_messages(tmp_path):
    async with open_front_door(tmp_path, max_body_bytes=2**23) as door:
        await door.serve("talk")
        messages = [{"role": "user", "content": "x"}] * 100_000
        assert_openai_error(await ask(door, messages=messages), 400, "invalid_value", param="messages")


# Other refusals


@pytest.mark.parametrize("path", [*BODIES, "/v1/models", "/v1/models/talk"])
async def test_methods_and_tokens(door: FrontDoor, path):
    answer = await door.call("alpha.key", "DELETE", path)
    assert_openai_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]
    method, body = ("POST", BODIES[path]) if path in BODIES else ("GET", None)
    assert_openai_error(await door.call(None, method, path, json=body), 401, "invalid_api_key")
    async with door.client(None, Authorization="Bearer cfk_wrong") as client:
        assert_openai_error(await client.request(method, path, json=body), 401, "invalid_api_key")
    assert_openai_error(await door.call("alpha.viewer", method, path, json=body), 403, "forbidden")
    assert_openai_error(await door.call("operator", method, path, json=body), 403, "forbidden")


async def test_paths_beside_them_answer_as_the_farm_does(door: FrontDoor):
    for path in ("/v1/audio/speech", "/v1/modelsx", "/v1/chat", "/v1/chat/completions/x"):
        assert_problem(await door.call("alpha.key", "GET", path), 404, "not_found")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses(door: FrontDoor, path, stream):
    door.inference.refusal = "the prompt has 9000 tokens, the model takes 8192"
    door.inference.refused = ("messages", "context_length_exceeded")
    fields = {"stream": stream} if path != EMBEDDINGS else {}
    error = assert_openai_error(
        await ask(door, path, **fields), 400, "context_length_exceeded", param="messages"
    )
    assert error["message"] == door.inference.refusal
    assert [use.ended for _, use in door.meter.uses] == [True]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_no_replica(door: FrontDoor, path, stream):
    door.inference.down = True
    fields = {"stream": stream} if path != EMBEDDINGS else {}
    assert_openai_error(await ask(door, path, **fields), 503, "unavailable")
    assert [use.ended for _, use in door.meter.uses] == [True]


@pytest.mark.parametrize("path", BODIES)
async def test_a_limit_of_the_key(door: FrontDoor, path):
    door.meter.limit = TooManyError(
        "this key may use 1000 tokens a minute", limit="tokens_per_minute", limit_value=1000, retry_after_s=17
    )
    answer = await ask(door, path)
    error = assert_openai_error(answer, 429, "rate_limit_exceeded")
    assert (error["limit"], error["limit_value"]) == ("tokens_per_minute", 1000)
    assert answer.headers["retry-after"] == "17"
    assert door.inference.generations == []


async def test_the_store_is_away(door: FrontDoor, monkeypatch):
    def down(*_, **__):
        raise UnavailableError("the store does not answer")

    monkeypatch.setattr(door.store, "begin", down)
    assert_openai_error(await ask(door), 503, "unavailable")


async def test_a_mistake_of_the_farm_shows_nothing(door: FrontDoor, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(door.store, "begin", broken)
    answer = await ask(door)
    error = assert_openai_error(answer, 500, "internal")
    assert error["incident"] in error["message"]
    assert "hunter2" not in answer.text
