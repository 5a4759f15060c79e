"""Embeddings of the real MiniLM: like texts are near each other, and none depends on the others of its batch."""

import math

import pytest

from cloudfarm.domain.generation import Generation, Refusal, Sampling
from cloudfarm.inference.embeddings import MAX_TEXTS, Embedder
from cloudfarm.training import default_models
from cloudfarm.training.bundle import BundleError


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return Embedder(default_models.publish(default_models.MINILM, str(tmp_path_factory.mktemp("outbox"))))


def near(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_like_texts_are_near_each_other(embedder):
    found = await embedder.embed(
        ["A man is eating food.", "Someone eats a meal.", "The wind turbine stands still."]
    )
    one, like, other = found.vectors
    assert near(one, like) > 0.6
    assert near(one, other) < 0.2
    assert all(math.isclose(near(each, each), 1, abs_tol=1e-5) for each in found.vectors)
    assert len(one) == 384


async def test_a_vector_does_not_depend_on_the_other_texts_or_their_order(embedder):
    texts = [f"sentence {'long ' * (place % 7)} {place}" for place in range(70)]
    together = await embedder.embed(texts)
    for place in (0, 33, 69):
        alone = await embedder.embed([texts[place]])
        assert together.vectors[place] == pytest.approx(alone.vectors[0], abs=1e-5)


async def test_tokens_are_counted_with_those_at_both_ends(embedder):
    assert (await embedder.embed(["hello"])).prompt_tokens == 3
    assert (await embedder.embed(["hello", "hello world"])).prompt_tokens == 7


async def test_what_cannot_be_embedded_is_refused(embedder):
    for texts in ([], [""], ["a", ""], ["a"] * (MAX_TEXTS + 1)):
        assert (await embedder.embed(texts)).param == "input"
    found = await embedder.embed(["short", "word " * 300])
    assert isinstance(found, Refusal)
    assert (found.code, found.param) == ("context_length_exceeded", "input")
    assert "input 1 has 302" in found.detail
    (answer,) = [each async for each in embedder.generate(Generation(Sampling(), prompt="x"))]
    assert answer.param == "model"


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
