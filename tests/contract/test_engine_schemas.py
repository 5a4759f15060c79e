"""An engine that is held to a JSON schema answers by it, and no schema harms what else it answers: on SmolLM2-135M."""

import asyncio
import json

import pytest

from cloudfarm.inference.completions import Completions
from cloudfarm.training import default_models

from .test_engines import chat, pieces, pytestmark, reasons, refusal, runs, text, tokens

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return default_models.publish(default_models.SMOLLM2, str(tmp_path_factory.mktemp("outbox")))


@pytest.fixture(scope="module")
def model(base):
    opened = Completions(base, "vllm")
    yield opened
    opened.close()


PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "country": {"enum": ["France", "대한민국"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["city", "country", "people"],
    "additionalProperties": False,
}


def by_schema(schema, **sampling):
    given = schema if isinstance(schema, str) else json.dumps(schema)
    return chat("Tell me of a place.", json_schema=given, **sampling)


async def test_an_answer_follows_its_schema(model):
    asked = [by_schema(PLACE, temperature=1.5, seed=seed, choices=2, max_tokens=100) for seed in range(3)]
    plain = chat()
    *found, beside = await asyncio.gather(*(pieces(model, each) for each in (*asked, plain)))
    for answer in found:
        for index in range(2):
            place = json.loads(text(answer, index))
            assert place.keys() == {"city", "country", "people"}
            assert len(place["city"]) <= 12
            assert place["country"] in ("France", "대한민국")
            assert 0 <= place["people"] <= 99
        assert reasons(answer) == {0: "stop", 1: "stop"}
    assert text(beside) == "The capital of France is Paris."
    asked = by_schema({"type": "object"}, max_tokens=300, temperature=0.7, seed=1)
    assert text(await pieces(model, asked)).startswith("{")
    cut = await pieces(model, by_schema(PLACE, max_tokens=3))
    assert (tokens(cut), reasons(cut)) == (3, {0: "length"})


async def test_an_engine_that_cannot_be_held_to_it_says_so(base):
    opened = Completions(base, "transformers")
    found = await refusal(opened, by_schema(PLACE))
    assert (found.code, found.param) == ("unsupported_parameter", "response_format")
    opened.close()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"type": "integer", "multipleOf": 7},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "(["},
        {"type": "object", "properties": 5},
        json.dumps({"a": 0}).replace("0", "[" * 200 + "]" * 200),
    ],
)
async def test_a_schema_that_cannot_be_followed_is_refused(model, schema):
    found = await refusal(model, by_schema(schema))
    assert found.param == "response_format"
    assert text(await pieces(model, chat())) == "The capital of France is Paris."


HUGE = {
    "a long text": {"type": "string", "maxLength": 10**9},
    "a long pattern": {"type": "string", "pattern": "^((a{1000}){1000}){1000}$"},
    "many items": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 10**8, "maxItems": 10**9},
    "many members": {"type": "object", "properties": {f"m{n}": {"type": "string"} for n in range(1500)}},
    "itself": {"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]},
}


@pytest.mark.parametrize("schema", HUGE.values(), ids=HUGE.keys())
async def test_a_schema_that_is_meant_to_harm_does_not_harm_others(model, schema):
    async with asyncio.timeout(60):
        asked = model.generate(by_schema(schema, max_tokens=20))
        harmful = asyncio.create_task(anext(asked))
        assert text(await pieces(model, chat())) == "The capital of France is Paris."
        await harmful
        async for _ in asked:
            pass
    await runs(model, 0)
    assert text(await pieces(model, chat())) == "The capital of France is Paris."
