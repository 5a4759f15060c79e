"""Embeddings of the real MiniLM: like texts are near each other, and none depends on the others of its batch."""

import asyncio
import math

import pytest
import torch

from cloudfarm.domain.generation import Generation, Piece, Refusal, Sampling, ToEmbed
from cloudfarm.errors import UnavailableError
from cloudfarm.inference.embeddings import MAX_TEXTS, Embedder
from cloudfarm.training import default_models
from cloudfarm.training.bundle import BundleError


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return Embedder(default_models.publish(default_models.MINILM, str(tmp_path_factory.mktemp("outbox"))))


async def embedded(embedder, texts, dimensions=None):
    """Return what comes last; the size comes first."""
    *before, last = [each async for each in embedder.embed(ToEmbed(tuple(texts), dimensions))]
    assert before == ([] if isinstance(last, Refusal) else [Piece(prompt_tokens=last.prompt_tokens)])
    return last


def near(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_like_texts_are_near_each_other(embedder):
    found = await embedded(
        embedder, ["A man is eating food.", "Someone eats a meal.", "The wind turbine stands still."]
    )
    one, like, other = found.vectors
    assert near(one, like) > 0.6
    assert near(one, other) < 0.2
    assert all(math.isclose(near(each, each), 1, abs_tol=1e-5) for each in found.vectors)
    assert len(one) == 384


async def test_a_vector_does_not_depend_on_the_other_texts_or_their_order(embedder):
    texts = [f"sentence {'long ' * (place % 7)} {place}" for place in range(70)]
    together = await embedded(embedder, texts)
    for place in (0, 33, 69):
        alone = await embedded(embedder, [texts[place]])
        assert together.vectors[place] == pytest.approx(alone.vectors[0], abs=1e-5)


async def test_tokens_are_counted_with_those_at_both_ends(embedder):
    assert (await embedded(embedder, ["hello"])).prompt_tokens == 3
    assert (await embedded(embedder, ["hello", "hello world"])).prompt_tokens == 7


async def test_the_models_own_number_of_dimensions_may_be_asked_for(embedder):
    assert len((await embedded(embedder, ["x"], 384)).vectors[0]) == 384
    found = await embedded(embedder, ["x"], 256)
    assert (found.param, "384" in found.detail) == ("dimensions", True)


async def test_what_cannot_be_embedded_is_refused(embedder):
    for texts in ([], [""], ["a", ""], ["a"] * (MAX_TEXTS + 1)):
        assert (await embedded(embedder, texts)).param == "input"
    found = await embedded(embedder, ["short", "word " * 300])
    assert isinstance(found, Refusal)
    assert (found.code, found.param) == ("context_length_exceeded", "input")
    assert "input 1 has 302" in found.detail
    (answer,) = [each async for each in embedder.generate(Generation(Sampling(), prompts=("x",)))]
    assert answer.param == "model"


async def test_a_large_request_lets_others_have_their_turn_and_ends_when_it_is_left(embedder):
    large = embedder.embed(ToEmbed(tuple(f"sentence {place} " + "long " * 200 for place in range(MAX_TEXTS))))
    tokens = await anext(large)
    assert tokens.prompt_tokens > 200 * MAX_TEXTS
    rest = asyncio.create_task(anext(large))
    await asyncio.sleep(0)  # its first batch is on its way
    await embedded(embedder, ["small"])
    assert not rest.done()
    rest.cancel()
    await asyncio.wait([rest])
    await large.aclose()
    assert await asyncio.wait_for(embedded(embedder, ["small"]), 10)


async def test_an_error_of_a_library_is_told_in_the_farms_words(embedder, monkeypatch):
    def broken(_tokens):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(embedder, "_vectors", broken)
    with pytest.raises(UnavailableError, match="OutOfMemoryError: no room"):
        await embedded(embedder, ["x"])


async def test_the_card(embedder):
    card = await embedder.describe()
    assert (card["model"], card["kind"], card["dimensions"]) == ("all-minilm-l6-v2", "text-embedding", 384)
    assert card["engine"]["name"] == "transformers"


async def test_only_an_embedding_model_is_opened(tmp_path):
    spec = {"context_tokens": 256, "architecture": "BertModel", "licence": "Apache-2.0"}
    where = default_models.publish(
        default_models.MINILM._replace(kind="causal-lm", spec=spec), str(tmp_path / "out")
    )
    with pytest.raises(BundleError, match="is a causal-lm, not a text-embedding"):
        Embedder(where)
