"""vLLM and transformers answer alike, and as transformers' own ``generate`` does: on the real SmolLM2-135M.

The reference is the library's; what is compared is greedy and in float32.
"""

import asyncio
import json
import pickle
import shutil
import threading
from contextlib import aclosing, nullcontext
from pathlib import Path

import psutil
import pytest
import safetensors.numpy
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from cloudfarm.domain.generation import Adapter, Generation, Message, Piece, Refusal, Sampling, ToEmbed
from cloudfarm.errors import UnavailableError
from cloudfarm.inference.completions import Completions
from cloudfarm.inference.engine import LocalAdapter
from cloudfarm.inference.transformers_engine import TransformersEngine
from cloudfarm.raylayer.serve_pieces import Courier
from cloudfarm.training import default_models
from cloudfarm.training.bundle import BundleError, DataCard, read_manifest
from cloudfarm.training.publish import publish_folder

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # What the libraries say of each other is not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

FRANCE = "What is the capital of France?"
KOREAN = "서울, 부산, 대구 🎉 서울, 부산, 대구 🎉 서울, 부산, 대구 🎉 서울,"
CARD = DataCard(name="none", source="random numbers", licence="none")


@pytest.fixture(scope="module")
def outbox(tmp_path_factory):
    return tmp_path_factory.mktemp("outbox")


@pytest.fixture(scope="module")
def base(outbox):
    return default_models.publish(default_models.SMOLLM2, str(outbox))


def engine_processes():
    """Return the processes below this one that vLLM has started, and that run."""
    below = psutil.Process().children(recursive=True)
    running = [each for each in below if each.status() != psutil.STATUS_ZOMBIE]
    return {each.pid for each in running if any("spawn_main" in part for part in each.cmdline())}


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def model(request, base):
    before = engine_processes()
    opened = Completions(base, request.param)
    yield opened
    folder = opened._folder
    opened.close()
    assert not folder.exists()
    assert engine_processes() == before


class Reference:
    """The model as transformers itself runs it."""

    def __init__(self, folder):
        self.folder = folder
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def tokens(self, text):
        chat = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]

    def answer(self, prompt, max_tokens, model=None):
        made = (model or self.model).generate(
            torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False
        )
        return made[0, len(prompt) :].tolist()

    def text(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.fixture(scope="module")
def reference(base):
    return Reference(base)


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, reference):
    """A LoRA adapter of random numbers, as peft writes one."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    torch.manual_seed(7)
    config = LoraConfig(
        r=4,
        lora_alpha=256,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    bare = transformers.AutoModelForCausalLM.from_config(reference.model.config)
    get_peft_model(bare, config).save_pretrained(folder)
    return folder


def publish_adapter(folder, outbox, base, name="adapter", of=None):
    manifest = read_manifest(base)
    whole = {"base": manifest.version, "base_name": manifest.name, "rank": 4} | ({"base": of} if of else {})
    uri = publish_folder(
        name, folder, kind="lora-adapter", spec=whole, config={}, metrics={}, card=CARD, outbox=str(outbox)
    )
    return Adapter(name, name, uri)


def chat(text=FRANCE, adapter=None, **sampling):
    return Generation(Sampling(**({"temperature": 0} | sampling)), (Message("user", text),), adapter=adapter)


def complete(prompt, **sampling):
    return Generation(Sampling(**({"temperature": 0} | sampling)), prompts=(prompt,))


async def pieces(model, request):
    found = [each async for each in model.generate(request)]
    assert all(isinstance(each, Piece) for each in found), found
    return found


async def refusal(model, request):
    (found,) = [each async for each in model.generate(request)]
    assert isinstance(found, Refusal)
    return found


def text(found, index=0):
    return "".join(each.text for each in found if each.index == index)


def tokens(found):
    return sum(each.tokens for each in found)


def reasons(found):
    return {each.index: each.finish_reason for each in found if each.finish_reason}


async def test_a_chat_is_answered_and_ends_by_itself(model, reference):
    found = await pieces(model, chat())
    expected = reference.answer(reference.tokens(FRANCE), 64)
    assert text(found) == "The capital of France is Paris." == reference.text(expected)
    assert reasons(found) == {0: "stop"}
    assert found[-1].finish_reason == "stop"
    # The token that ends the answer was generated, too.
    assert expected[-1] == reference.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokens(found) == len(expected) == 8
    assert [each.prompt_tokens for each in found] == [len(reference.tokens(FRANCE))] + [0] * (len(found) - 1)


async def test_the_text_comes_as_it_is_made(model):
    found = await pieces(model, chat())
    assert len([each for each in found if each.text]) > 4


@pytest.mark.parametrize("most", [1, 5])
async def test_an_answer_is_cut_at_its_length(model, reference, most):
    found = await pieces(model, chat(max_tokens=most))
    assert (tokens(found), reasons(found)) == (most, {0: "length"})
    assert text(found) == reference.text(reference.answer(reference.tokens(FRANCE), most))


async def test_the_end_can_be_ignored(model):
    found = await pieces(model, chat(max_tokens=20, ignore_eos=True))
    assert (tokens(found), reasons(found)) == (20, {0: "length"})


async def test_a_text_and_its_tokens_are_continued_alike(model, reference):
    prompt = "The three primary colours are red,"
    ids = reference.tokenizer.encode(prompt)
    expected = reference.text(reference.answer(ids, 12))
    for asked in (prompt, tuple(ids)):
        found = await pieces(model, complete(asked, max_tokens=12))
        assert (text(found), found[0].prompt_tokens) == (expected, len(ids))


async def test_an_answer_ends_before_a_stop_text(model):
    whole = text(await pieces(model, chat()))
    for stop in ("France", " is Pa", ".", "Paris."):
        found = await pieces(model, chat(stop=(stop, "never said")))
        assert text(found) == whole[: whole.index(stop)]
        assert reasons(found) == {0: "stop"}
        assert 0 < tokens(found) <= 8
    found = await pieces(model, chat(stop=("France was", "Pari!")))
    assert text(found) == whole


async def test_choices_and_seeds(model):
    asked = chat("Tell me a story.", temperature=1.0, seed=11, choices=2, max_tokens=12, ignore_eos=True)
    found = await pieces(model, asked)
    assert text(found, 0) != text(found, 1)
    assert (tokens(found), reasons(found)) == (24, {0: "length", 1: "length"})
    assert [each.prompt_tokens for each in found if each.prompt_tokens] == [found[0].prompt_tokens]
    again = await pieces(model, asked)
    assert [text(again, 0), text(again, 1)] == [text(found, 0), text(found, 1)]
    other = await pieces(model, chat("Tell me a story.", temperature=1.0, seed=12, max_tokens=12))
    assert text(other) != text(found, 0)


async def test_without_chance_all_choices_are_the_same(model):
    one = await pieces(model, chat(max_tokens=6))
    found = await pieces(model, chat(max_tokens=6, choices=2, seed=-1))
    assert [text(found, 0), text(found, 1)] == [text(one)] * 2
    assert (tokens(found), reasons(found)) == (2 * tokens(one), {0: "length", 1: "length"})


@pytest.mark.parametrize("seed", [-1, 2**63 - 1])
async def test_any_seed_will_do(model, seed):
    found = await pieces(model, chat(temperature=1.0, seed=seed, choices=2, max_tokens=3, ignore_eos=True))
    assert tokens(found) == 6


async def test_several_prompts_are_answered_as_each_by_itself(model):
    asked = ("The three primary colours are red,", (5, 6, 7), "One, two,")
    alone = [await pieces(model, complete(each, max_tokens=5)) for each in asked]
    sampling = Sampling(temperature=0, max_tokens=5, choices=2)
    found = await pieces(model, Generation(sampling, prompts=asked))
    assert [text(found, index) for index in range(6)] == [text(each) for each in alone for _ in range(2)]
    assert sum(each.prompt_tokens for each in found) == sum(each[0].prompt_tokens for each in alone)
    assert tokens(found) == 2 * sum(map(tokens, alone))
    assert set(reasons(found)) == set(range(6))
    async with aclosing(model.generate(Generation(sampling, prompts=asked * 10))) as answer:
        await anext(answer)
    await runs(model, 0)


async def test_a_penalty_keeps_from_saying_it_again(model):
    asked = {"prompt": "one one one one one one one", "max_tokens": 12, "ignore_eos": True}
    plain = text(await pieces(model, complete(**asked)))
    assert plain.count("many") > 2
    for penalty in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        found = text(await pieces(model, complete(**asked, **penalty)))
        assert found.count("many") < plain.count("many"), penalty


async def test_requests_at_the_same_time_get_their_own_answers(model, reference):
    questions = [FRANCE, "What is 2 + 2?", "Name a colour.", "What is the capital of Italy?", "Say hello."]
    found = await asyncio.gather(*(pieces(model, chat(each, max_tokens=10)) for each in questions))
    for question, answer in zip(questions, found, strict=True):
        assert text(answer) == reference.text(reference.answer(reference.tokens(question), 10)), question


async def test_a_character_is_whole_or_not_there(model, reference):
    ids = reference.tokenizer.encode(KOREAN)
    whole = reference.answer(ids, 8)
    cut = [most for most in range(1, 9) if reference.text(whole[:most]).endswith("\ufffd")]
    assert cut, "the test's answer has no character of several tokens"
    for most in (*cut, 8):
        found = await pieces(model, complete(KOREAN, max_tokens=most))
        assert "\ufffd" not in "".join(each.text for each in found)
        # vLLM also leaves out the space that came in the same token as the first part of a character.
        assert text(found).rstrip() == reference.text(whole[:most]).rstrip("\ufffd").rstrip()
        assert tokens(found) == most


def busy_s():
    """Seconds of CPU that this process and those below it have used."""
    me = psutil.Process()
    each = (process.cpu_times() for process in (me, *me.children(recursive=True)))
    return sum(times.user + times.system for times in each)


async def test_who_leaves_ends_the_work(model):
    async with aclosing(
        model.generate(chat("Write a long story.", max_tokens=4000, ignore_eos=True))
    ) as answer:
        taken = [await anext(answer) for _ in range(4)]
        assert await model.running() == 1
    assert tokens(taken) < 10
    deadline = asyncio.get_running_loop().time() + 20
    while True:  # a token of some other request takes a hundredth of that
        before = busy_s()
        await asyncio.sleep(0.5)
        if busy_s() - before < 0.1:
            break
        assert asyncio.get_running_loop().time() < deadline, "the engine goes on working"
    assert await model.running() == 0
    assert text(await pieces(model, chat())) == "The capital of France is Paris."


async def test_the_engine_begins_before_it_is_asked_for_more(model):
    async with aclosing(model.generate(chat("Write a long story.", max_tokens=4000))) as answer:
        first = await anext(answer)
        assert (first.prompt_tokens > 0, first.tokens) == (True, 0)
        await runs(model, 1)
    await runs(model, 0)


async def runs(model, requests):
    """Wait until the engine is answering so many."""
    async with asyncio.timeout(20):
        while await model.running() != requests:  # noqa: ASYNC110 - no engine tells of it
            await asyncio.sleep(0.05)


async def test_what_has_no_room_is_refused(model):
    found = await refusal(model, chat("word " * 9000))
    assert (found.code, found.param) == ("context_length_exceeded", "messages")
    found = await refusal(model, complete(tuple([5] * 8192)))
    assert (found.code, found.param) == ("context_length_exceeded", "prompt")
    found = await refusal(model, chat(max_tokens=8192))
    assert (found.code, found.param) == ("context_length_exceeded", "max_tokens")
    assert await model.running() == 0


async def test_what_cannot_be_is_refused(model):
    for asked, param in (
        (complete(""), "prompt"),
        (complete((5, 49152)), "prompt"),
        (complete((-1,)), "prompt"),
        (chat(temperature=-1), "temperature"),
        (chat(top_p=0), "top_p"),
        (chat(choices=17), "n"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(stop=("",)), "stop"),
        (chat(seed=2**63), "seed"),
        (chat(temperature=float("nan")), "temperature"),
    ):
        assert (await refusal(model, asked)).param == param
    (refused,) = [each async for each in model.embed(ToEmbed(("text",)))]
    assert refused.param == "model"


async def test_an_adapter_changes_the_answer_of_its_request_only(
    model, reference, adapter_folder, outbox, base
):
    adapter = publish_adapter(adapter_folder, outbox, base)
    tuned = PeftModel.from_pretrained(Reference(base).model, adapter_folder)
    expected = reference.text(reference.answer(reference.tokens(FRANCE), 10, tuned))
    plain = "The capital of France is Paris."
    assert expected != plain
    found = await pieces(model, chat(adapter=adapter, max_tokens=10))
    assert text(found) == expected
    together = await asyncio.gather(
        *(pieces(model, chat(adapter=each, max_tokens=10)) for each in (adapter, None, adapter, None))
    )
    assert [text(each) for each in together] == [expected, plain, expected, plain]


async def test_the_model_stays_itself_with_as_many_adapters_in_memory_as_fit(
    model, adapter_folder, outbox, base
):
    plain = text(await pieces(model, chat(max_tokens=10)))
    adapters = [publish_adapter(adapter_folder, outbox, base, f"many-{number}") for number in range(5)]
    tuned = [text(await pieces(model, chat(adapter=each, max_tokens=10))) for each in adapters]
    assert len({*tuned, plain}) == 2
    assert text(await pieces(model, chat(max_tokens=10))) == plain
    asked = [adapters[3], None, adapters[4], None]
    together = await asyncio.gather(*(pieces(model, chat(adapter=each, max_tokens=10)) for each in asked))
    assert [text(each) for each in together] == [tuned[0], plain, tuned[0], plain]


async def test_an_adapter_is_fetched_once(model, adapter_folder, outbox, base):
    adapter = publish_adapter(adapter_folder, outbox, base, "once")
    first = await asyncio.gather(*(pieces(model, chat(adapter=adapter, max_tokens=4)) for _ in range(3)))
    shutil.rmtree(Path(adapter.uri))
    assert text(await pieces(model, chat(adapter=adapter, max_tokens=4))) == text(first[0])


async def test_an_adapter_in_use_is_kept_and_others_are_forgotten(
    model, adapter_folder, outbox, base, monkeypatch
):
    monkeypatch.setattr("cloudfarm.inference.adapters.MAX_KEPT", 1)
    first, second, third = (publish_adapter(adapter_folder, outbox, base, f"kept-{n}") for n in range(3))
    async with aclosing(model.generate(chat(adapter=first, max_tokens=40, ignore_eos=True))) as answer:
        await anext(answer)
        folder = (await model._adapters.local(first)).folder
        for other in (second, third):
            await pieces(model, chat(adapter=other, max_tokens=2))
        assert folder.is_dir()
        assert set(model._adapters._kept) == {"kept-0"}
    await pieces(model, chat(adapter=third, max_tokens=2))
    assert not folder.exists()
    assert set(model._adapters._kept) == {"kept-2"}


async def test_an_error_of_the_engine_is_told_in_the_farms_words(model, monkeypatch):
    async def broken(*_):
        raise torch.OutOfMemoryError("no room")
        yield

    monkeypatch.setattr(model._engine, "generate", broken)
    with pytest.raises(UnavailableError, match="OutOfMemoryError: no room"):
        [each async for each in model.post(chat(), Courier("", 0, ""))]


async def test_a_first_adapter_that_fails_leaves_the_model_itself(base, tmp_path):
    engine = TransformersEngine(Path(base), 512, 1 << 28)
    bad = LocalAdapter(1, tmp_path)
    for adapter, fails in ((None, False), (bad, True), (None, False)):
        with pytest.raises(BundleError) if fails else nullcontext():
            made = [each async for each in engine.generate([1, 2, 3], Sampling(temperature=0), 2, adapter)]
            assert sum(each.tokens for each in made) == 2
    engine.close()


async def test_a_prompt_is_charged_before_it_is_read(base, monkeypatch):
    engine = TransformersEngine(Path(base), 512, 1 << 28)
    read, forward = threading.Event(), engine._forward

    def slowly(tokens, cache):
        assert read.wait(60)
        return forward(tokens, cache)

    monkeypatch.setattr(engine, "_forward", slowly)
    async with aclosing(engine.generate([1, 2, 3], Sampling(temperature=0), 2, None)) as answer:
        assert await asyncio.wait_for(anext(answer), 20) == Piece(prompt_tokens=3)
        read.set()
    engine.close()


async def test_requests_wait_until_their_keys_and_values_have_room(base):
    engine = TransformersEngine(Path(base), 512, 40 * 46_080)  # what SmolLM2-135M takes a token in float32
    assert (engine.cache_tokens, engine.context_tokens) == (40, 40)
    ended = []

    async def ask(name, choices):
        sampling = Sampling(temperature=0, choices=choices, ignore_eos=True)
        async for piece in engine.generate([1, 2, 3], sampling, 7, None):
            ended.append((name, piece.finish_reason))  # noqa: PERF401 - as they come

    await asyncio.gather(ask("all", 4), ask("half", 2), ask("other half", 2))
    assert {name for name, _ in ended[: 1 + 4 * 7]} == {"all"}
    assert [name for name, reason in ended if reason] == ["all"] * 4 + [
        "half",
        "half",
        "other half",
        "other half",
    ]
    engine.close()


async def test_an_adapter_that_cannot_be_served_is_refused(model, adapter_folder, outbox, base, tmp_path):
    other = publish_adapter(adapter_folder, outbox, base, "other-base", of="0123456789ab")
    assert "was trained on" in (await refusal(model, chat(adapter=other))).detail
    assert "is a causal-lm" in (await refusal(model, chat(adapter=Adapter("x", "x", base)))).detail
    gone = Adapter("gone", "gone", str(outbox / "gone"))
    assert "does not exist" in (await refusal(model, chat(adapter=gone))).detail

    evil = publish_adapter(adapter_folder, outbox, base, "evil")
    weights = Path(evil.uri) / "adapter_model.safetensors"
    weights.write_bytes(pickle.dumps(print))
    assert "is not the file" in (await refusal(model, chat(adapter=evil))).detail

    for name, spoil in {
        "misfit": lambda array: array[:, :-1] if array.shape[0] == 4 else array,
        "nowhere": lambda array: array,
        "infinite": lambda array: array * float("inf"),
    }.items():
        folder = tmp_path / name
        shutil.copytree(adapter_folder, folder)
        arrays = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
        spoilt = {
            key.replace("layers.0.", "layers.99.") if name == "nowhere" else key: spoil(array).copy()
            for key, array in arrays.items()
        }
        safetensors.numpy.save_file(spoilt, folder / "adapter_model.safetensors")
        found = await refusal(model, chat(adapter=publish_adapter(folder, outbox, base, name)))
        assert found.param == "model", name
    assert text(await pieces(model, chat())) == "The capital of France is Paris."


async def test_the_card_says_what_serves_it(model, request):
    card = await model.describe()
    assert card["engine"]["name"] == request.node.callspec.params["model"]
    assert card["engine"] | {"name": 0, "version": 0} == {
        "name": 0,
        "version": 0,
        "device": "cpu",
        "dtype": "float32",
    }
    assert (card["kind"], card["context_tokens"], card["licence"]) == ("causal-lm", 8192, "Apache-2.0")
    json.dumps(card)
    model.check_health()


async def test_only_a_language_model_is_opened(outbox, adapter_folder, base):
    adapter = publish_adapter(adapter_folder, outbox, base, "no-model")
    with pytest.raises(BundleError, match="is a lora-adapter, not a causal-lm"):
        Completions(adapter.uri, "transformers")
