"""Embeddings as OpenAI's API has them."""

import base64
import struct

import pytest

from cloudfarm.domain.generation import ToEmbed
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.testing.http_checks import assert_openai_error

PATH = "/v1/embeddings"


@pytest.fixture
async def door(tmp_path):
    async with open_front_door(tmp_path) as opened:
        await opened.serve("meaning", "text-embedding")
        yield opened


async def embed(door: FrontDoor, **fields):
    return await door.call("alpha.key", "POST", PATH, json={"model": "meaning", **fields})


@pytest.mark.parametrize("asked", [{}, {"encoding_format": "float"}, {"encoding_format": None, "user": "x"}])
async def test_numbers(door: FrontDoor, asked):
    answer = await embed(door, input=["wind speed", "해"], **asked)
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [10.0, 0.25]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.25]},
        ],
        "model": "meaning",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    ((route, use),) = door.meter.uses
    assert (use.prompt_tokens, use.completion_tokens, use.ended) == (3, 0, True)
    assert (route.service.name, route.app_name) == ("meaning", "alpha.meaning.1")


async def test_base64_is_little_endian_floats(door: FrontDoor):
    (row,) = (await embed(door, input="wind", encoding_format="base64")).json()["data"]
    assert struct.unpack("<2f", base64.b64decode(row["embedding"])) == (4.0, 0.25)


@pytest.mark.parametrize(("given", "wanted"), [("wind", ("wind",)), (["a", "b"], ("a", "b"))])
async def test_one_text_or_many(door: FrontDoor, given, wanted):
    answer = await embed(door, input=given, dimensions=2)
    assert [row["embedding"][0] for row in answer.json()["data"]] == [float(len(each)) for each in wanted]
    ((_, asked),) = door.inference.embedded
    assert asked == ToEmbed(wanted, dimensions=2)


@pytest.mark.parametrize("given", [[1, 2, 3], [[1, 2], [3]]])
async def test_tokens_of_another_model_make_no_vectors(door: FrontDoor, given):
    answer = await embed(door, input=given)
    assert_openai_error(answer, 400, "invalid_value", param="input")
    assert "check_embedding_ctx_length=False" in answer.json()["error"]["message"]


async def test_a_model_that_writes_does_not_embed(door: FrontDoor):
    await door.serve("talk")
    answer = await embed(door, model="talk", input="x")
    assert_openai_error(answer, 400, "model_not_supported", param="model")
    assert_openai_error(await embed(door, model="none", input="x"), 404, "model_not_found", param="model")
