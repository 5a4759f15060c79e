"""The unmodified ``openai`` client speaks with the front door."""

from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from cloudfarm.testing.front_door import BASE_URL, FrontDoor, open_front_door

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "wind from the sea"}]


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        await opened.serve("talk")
        await opened.serve("meaning", "text-embedding")
        yield opened


def client_of(door: FrontDoor, secret: str) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(door.app))
    return openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key=secret, http_client=http, max_retries=0)


@pytest.fixture
async def client(door: FrontDoor) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(door, door.tokens["alpha.key"]) as opened:
        yield opened


async def test_models(client: openai.AsyncOpenAI):
    listed = [each async for each in client.models.list()]
    assert [(each.id, each.object, each.owned_by) for each in listed] == [
        ("meaning", "model", "alpha"),
        ("talk", "model", "alpha"),
    ]
    assert await client.models.retrieve("talk") == listed[1]


async def test_an_adapter_by_name(door: FrontDoor, client: openai.AsyncOpenAI):
    async with door.store.begin(write=False) as uow:
        base = await uow.models.find("alpha", "talk")
    await door.adapter("dialect", base)
    assert (await client.models.retrieve("talk:dialect")).id == "talk:dialect"
    answer = await client.chat.completions.create(model="talk:dialect", messages=MESSAGES)
    assert answer.model == "talk:dialect"


async def test_a_chat_and_a_conversation_that_goes_on(client: openai.AsyncOpenAI):
    answer = await client.chat.completions.create(model="talk", messages=MESSAGES, temperature=0, n=2)
    first, second = answer.choices
    assert (first.message.content, first.finish_reason) == ("wind from the sea", "stop")
    assert second.message == first.message
    assert answer.usage is not None
    assert answer.usage.total_tokens == 14
    further = [*MESSAGES, first.message, {"role": "user", "content": [{"type": "text", "text": "and then"}]}]
    answer = await client.chat.completions.create(model="talk", messages=further)
    assert answer.choices[0].message.content == "and then"


async def test_a_stream(door: FrontDoor, client: openai.AsyncOpenAI):
    stream = await client.chat.completions.create(
        model="talk", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == "wind from the sea"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    ((_, use),) = door.meter.uses
    assert chunks[-1].usage.completion_tokens == use.completion_tokens == 5


async def test_the_clients_own_accumulator(client: openai.AsyncOpenAI):
    async with client.chat.completions.stream(model="talk", messages=MESSAGES) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "wind from the sea"
    assert final.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_completions(client: openai.AsyncOpenAI, stream: bool):
    answer = await client.completions.create(model="talk", prompt="a b c", max_tokens=2, stream=stream)
    parts = [each async for each in answer] if stream else [answer]
    assert "".join(part.choices[0].text for part in parts) == "a b"
    assert parts[-1].choices[0].finish_reason == "length"


async def test_completions_of_several_prompts(door: FrontDoor, client: openai.AsyncOpenAI):
    answer = await client.completions.create(model="talk", prompt=["a b", "c"], n=2)
    assert [(each.index, each.text) for each in answer.choices] == [
        (0, "a b"),
        (1, "a b"),
        (2, "c"),
        (3, "c"),
    ]
    stream = await client.completions.create(model="talk", prompt=[[1, 2], [3]], stream=True)
    texts = ["", ""]
    async for part in stream:
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == ["1 2", "3"]
    assert len(door.meter.uses) == 2


async def test_what_frameworks_send(client: openai.AsyncOpenAI):
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "name": "ann", "content": "hello"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "and then"},
    ]
    answer = await client.chat.completions.create(model="talk", messages=messages, top_p=0, n=8)
    assert {each.message.content for each in answer.choices} == {"and then"}
    vectors = await client.embeddings.create(model="meaning", input=["ab", "c"], dimensions=2)
    assert [row.embedding[0] for row in vectors.data] == [2.0, 1.0]
    with pytest.raises(openai.BadRequestError, match="send texts"):
        await client.embeddings.create(model="meaning", input=[[1, 2], [3]])


async def test_embeddings_by_default_and_as_numbers(client: openai.AsyncOpenAI):
    default = await client.embeddings.create(model="meaning", input=["wind", "sun"])
    numbers = await client.embeddings.create(model="meaning", input=["wind", "sun"], encoding_format="float")
    assert [row.embedding for row in default.data] == [row.embedding for row in numbers.data]
    assert default.data[1].embedding == [3.0, 0.25]
    assert default.usage.prompt_tokens == 2


async def test_errors_are_the_clients_own(door: FrontDoor, client: openai.AsyncOpenAI):
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        await create(model="none", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        await create(model="talk", messages=MESSAGES, temperature=3)
    assert (wrong.value.code, wrong.value.param) == ("invalid_value", "temperature")
    with pytest.raises(openai.BadRequestError) as tools:
        await create(model="talk", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}])
    assert tools.value.code == "unsupported_parameter"
    with pytest.raises(openai.APIStatusError) as large:
        await create(model="talk", messages=[{"role": "user", "content": "x" * 2_000_000}])
    assert large.value.status_code == 413
    async with client_of(door, "cfk_wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_an_error_within_a_stream(door: FrontDoor, client: openai.AsyncOpenAI):
    door.inference.break_after = 2
    stream = await client.chat.completions.create(model="talk", messages=MESSAGES, stream=True)
    texts: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError, match="the replica has died"):
        await read()
    assert texts == ["", "wind"]
