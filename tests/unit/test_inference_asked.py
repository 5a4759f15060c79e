"""Requests to language models are checked before an engine sees them."""

import jinja2
import numpy as np
import pytest
import safetensors.numpy
import torch

from cloudfarm.domain.generation import Generation, Message, Refusal, Sampling
from cloudfarm.inference.asked import MAX_STOP_CHARACTERS, Prompts, check_sampling
from cloudfarm.inference.memory import (
    LEAST_CACHE_BYTES,
    OWN_BYTES,
    cpu_cache_bytes,
    float32_bytes,
    gpu_memory_fraction,
    memory_bytes,
    own_cache_bytes,
)
from cloudfarm.inference.transformers_engine import choose


class Letters:
    """A tokenizer whose tokens are letters."""

    chat_template = "{{ messages }}"

    def encode(self, text, add_special_tokens=True):
        return [0] * add_special_tokens + [ord(letter) for letter in text]

    def apply_chat_template(self, turns, *, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        if turns[0]["role"] == "user":
            return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)
        raise jinja2.TemplateError("the first turn must be the user's")


def prompts(tokenizer=None, context=20, cache=None):
    return Prompts(tokenizer or Letters(), context, 300, cache)


def ask(prompt, **sampling):
    return Generation(Sampling(**sampling), prompts=(prompt,))


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty"),
        ({"choices": 0}, "n"),
        ({"choices": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x" * (MAX_STOP_CHARACTERS + 1),)}, "stop"),
        ({"stop": ("x",) * 17}, "stop"),
    ],
)
def test_what_no_engine_takes_is_refused(sampling, param):
    assert check_sampling(Sampling(**sampling)).param == param


def test_the_rest_is_taken():
    assert check_sampling(Sampling()) is None
    edge = Sampling(1, 0.0, 1.0, -2.0, 2.0, ("x" * MAX_STOP_CHARACTERS,), -(2**63), 16, ignore_eos=True)
    assert check_sampling(edge) is None


def test_texts_tokens_and_conversations_become_tokens():
    assert prompts().encode(ask("ab")) == [[0, 97, 98]]
    assert prompts().encode(ask((5, 299))) == [[5, 299]]
    assert prompts().encode(Generation(Sampling(), prompts=("ab", (5,)))) == [[0, 97, 98], [5]]
    turns = (Message("user", "hi"),)
    assert prompts().encode(Generation(Sampling(), turns)) == [[ord(letter) for letter in "<user>hi"]]


def test_what_does_not_fit_into_the_context_is_refused():
    assert prompts().encode(ask("x" * 18)) == [[0] + [120] * 18]
    long = prompts().encode(ask("x" * 19))
    assert (long.code, long.param) == ("context_length_exceeded", "prompt")
    assert isinstance(prompts().encode(ask("x" * 9, max_tokens=10)), list)
    wide = prompts().encode(ask("x" * 9, max_tokens=11))
    assert (wide.code, wide.param) == ("context_length_exceeded", "max_tokens")
    one_of_them = prompts().encode(Generation(Sampling(), prompts=("a", "x" * 19)))
    assert (one_of_them.code, one_of_them.param) == ("context_length_exceeded", "prompt")
    assert "the 20 of the prompt 1" in one_of_them.detail
    assert prompts().room([1] * 9, Sampling()) == 11
    assert prompts().room([1] * 9, Sampling(max_tokens=3)) == 3


def test_what_the_engines_memory_can_never_hold_is_refused():
    assert prompts(cache=60).encode(ask("x" * 9, max_tokens=10, choices=3)) == [[0] + [120] * 9]
    wide = prompts(cache=60).encode(ask("x" * 9, max_tokens=10, choices=4))
    assert (wide.code, wide.param) == ("context_length_exceeded", "max_tokens")
    assert "maximum context length is 15 tokens with n=4" in wide.detail
    long = prompts(cache=60).encode(ask("x" * 9, choices=6))
    assert (long.code, long.param) == ("context_length_exceeded", "prompt")
    assert prompts(cache=60).room([1] * 9, Sampling(choices=4)) == 6
    assert prompts(cache=60).room([1] * 9, Sampling()) == 11


def test_a_prompt_is_something_that_the_model_knows():
    for prompt in ((), (300,), (-1,)):
        assert prompts().encode(ask(prompt)).param == "prompt"
    assert prompts().encode(Generation(Sampling())).param == "prompt"
    assert "its own tokenizer" in prompts().encode(ask((300,))).detail


def test_a_model_may_not_converse_or_not_so():
    plain = Letters()
    plain.chat_template = None
    turns = (Message("system", "be kind"),)
    assert "does not converse" in prompts(plain).encode(Generation(Sampling(), turns)).detail
    refused = prompts().encode(Generation(Sampling(), turns))
    assert isinstance(refused, Refusal)
    assert "the first turn must be the user's" in refused.detail


def test_choosing_follows_the_sampling():
    logits = torch.tensor([1.0, 3.0, 2.9, -5.0])
    assert choose(logits, Sampling(temperature=0), {}, None) == 1
    assert choose(logits, Sampling(temperature=0, presence_penalty=0.2), {1: 1}, None) == 2
    assert choose(logits, Sampling(temperature=0, frequency_penalty=0.2), {1: 2, 2: 1}, None) == 2
    assert choose(logits, Sampling(temperature=0, frequency_penalty=0.2), {1: 1, 2: 1}, None) == 1
    assert logits.tolist() == pytest.approx([1.0, 3.0, 2.9, -5.0])
    chance = torch.Generator().manual_seed(1)
    seen = [choose(logits, Sampling(), {}, chance) for _ in range(300)]
    assert {0, 1, 2} <= set(seen)
    assert {choose(logits, Sampling(top_p=0.4), {}, chance) for _ in range(50)} == {1}
    assert {choose(logits, Sampling(top_p=0.6), {}, chance) for _ in range(50)} == {1, 2}
    chance.manual_seed(1)
    assert [choose(logits, Sampling(), {}, chance) for _ in range(300)] == seen


def test_memory_is_the_lease_nodes(tmp_path, monkeypatch):
    whole = memory_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == whole
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory_bytes(tmp_path) == 1_000_000
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000")
    assert memory_bytes(tmp_path) == 2_000_000
    monkeypatch.delenv("CLOUDFARM_GPU_MEMORY_FRACTION", raising=False)
    assert gpu_memory_fraction() == 1
    monkeypatch.setenv("CLOUDFARM_GPU_MEMORY_FRACTION", "0.25")
    assert gpu_memory_fraction() == 0.25


def test_keys_and_values_get_what_is_left_of_the_leases_memory():
    gib, small = 1 << 30, 540 << 20
    assert own_cache_bytes(3 * gib, small) == 3 * gib - small - OWN_BYTES
    assert own_cache_bytes(gib, small) == LEAST_CACHE_BYTES


def test_vllm_gets_what_is_left_of_the_leases_memory_or_nothing(tmp_path):
    gib, small = 1 << 30, 540 << 20
    assert cpu_cache_bytes(3 * gib, small) is None
    assert cpu_cache_bytes(4 * gib, small) == (gib + gib // 2 - small) // 2
    assert cpu_cache_bytes(8 * gib, 6 * gib) is None
    assert cpu_cache_bytes(1000 * gib, small) == gib
    for name, rows in (("model-1.safetensors", 3), ("model-2.safetensors", 5)):
        arrays = {"w": np.zeros((rows, 7), np.float16), "b": np.zeros(1, np.float32)}
        safetensors.numpy.save_file(arrays, tmp_path / name)
    assert float32_bytes(tmp_path) == 4 * (8 * 7 + 2)
