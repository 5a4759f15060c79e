"""Fine-tuning on a tiny model with made-up weights: what is measured, and that a resumed run is the same run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
import ray.train
import ray.train.torch
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cloudfarm.errors import InvalidInputError
from cloudfarm.training.bundle import DataCard, read_manifest
from cloudfarm.training.language import FineTuningConfig, check, publish_adapter, train
from cloudfarm.training.pairs import Batch, answer_loss, encode, figures, measure
from cloudfarm.training.publish import publish_folder
from cloudfarm.training.runs import ResumeError

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [
    {"kind": kind, "prompt": f"{letter} {number}?", "answer": answer}
    for number in range(8)
    for letter, kind, answer in (("a", "number", f"{number} people"), ("b", "absent", "not stated"))
]


def tiny_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, **dict.fromkeys(["eos_token", "pad_token"], "<|end|>")
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            eos_token_id=256,
            pad_token_id=256,
            bos_token_id=None,
        )
    )


@pytest.fixture(scope="module")
def examples():
    return encode(tiny_tokenizer(), ROWS, "S")


@pytest.fixture(scope="module")
def learnt(examples):
    """The tiny model after it has learnt some of the answers by heart, and not others."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = answer_loss(model, Batch.of(examples[:10], CPU))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_an_example_is_the_conversation_and_the_answer_with_its_end(examples):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(examples[0].prompt) == "<system>S<|end|><user>a 0?<|end|><assistant>"
    assert tokenizer.decode(examples[0].answer) == "0 people<|end|>"
    (bare,) = encode(tokenizer, ROWS[:1], "")
    assert tokenizer.decode(bare.prompt) == "<user>a 0?<|end|><assistant>"


def test_a_match_is_what_greedy_decoding_writes(learnt, examples):
    matched = {}
    for example in examples:
        with torch.no_grad():
            written = learnt.generate(
                torch.tensor([example.prompt]),
                attention_mask=torch.ones(1, len(example.prompt), dtype=torch.long),
                max_new_tokens=len(example.answer),
                do_sample=False,
            )[0, len(example.prompt) :].tolist()
        matched[example] = tuple(written) == example.answer
    assert 0 < sum(matched.values()) < len(examples)
    kinds = ["absent", "number"]
    sums = measure(learnt, examples, kinds, 5, CPU)
    for row, kind in enumerate(kinds):
        of_kind = [match for example, match in matched.items() if example.kind == kind]
        assert sums[row, 2:].tolist() == [sum(of_kind), len(of_kind)]
    said = figures(sums, kinds)
    assert said["exact_match"] == sum(matched.values()) / len(examples)
    assert said["exact_match_absent"] == sums[0, 2] / 8


def test_the_likelihood_is_the_models_own_and_padding_changes_nothing(learnt, examples):
    nats = tokens = 0.0
    for example in examples:  # one by one, without padding, all logits
        with torch.no_grad():
            logits = learnt(torch.tensor([example.prompt + example.answer])).logits[0].log_softmax(-1)
        ends = len(example.prompt) - 1
        nats -= sum(float(logits[ends + place, token]) for place, token in enumerate(example.answer))
        tokens += len(example.answer)
    said = figures(measure(learnt, examples, ["absent", "number"], 16, CPU), ["absent", "number"])
    assert said["nll_nats_per_token"] == pytest.approx(nats / tokens, rel=1e-4)


def test_measuring_leaves_the_model_as_it_was_and_parts_add_up(learnt, examples):
    learnt.train()
    kinds = ["absent", "number"]
    whole = measure(learnt, examples, kinds, 4, CPU)
    assert learnt.training
    parts = measure(learnt, examples[::2], kinds, 3, CPU) + measure(learnt, examples[1::2], kinds, 3, CPU)
    assert torch.allclose(whole, parts, rtol=1e-5)


# A run, with Ray Train's part played here


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model's bundle, and a data set."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    base = publish_folder(
        "tiny",
        folder / "tiny",
        kind="causal-lm",
        spec={"context_tokens": 128, "architecture": "LlamaForCausalLM", "licence": "none"},
        metrics={},
        card=DataCard(name="none", source="made up", licence="none"),
        config={},
        outbox=str(folder / "models"),
    )
    for part in ("train", "held-out"):
        at = folder / "data" / f"part={part}" / "language=en"
        at.mkdir(parents=True)
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), at / "part-0.parquet")
    return base, str(folder / "data")


class Train:
    """Ray Train as one worker sees it: it keeps the reports, and the checkpoints that come with them."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.reports, self.notice_after = folder, [], None
        self.checkpoint = None
        self.asked = 0
        place = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        for name, value in {
            "get_context": lambda: place,
            "get_checkpoint": lambda: self.checkpoint,
            "get_preemption_info": self.preemption,
            "report": self.report,
        }.items():
            monkeypatch.setattr(ray.train, name, value)
        monkeypatch.setattr(ray.train.torch, "get_device", lambda: CPU)
        monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model: model)

    def preemption(self):
        self.asked += 1
        return None if self.notice_after is None or self.asked < self.notice_after else "notice"

    def report(self, metrics, checkpoint):
        kept = self.folder / f"{len(self.reports)}"
        with checkpoint.as_directory() as folder:
            Path(folder).rename(kept)
            Path(folder).mkdir()  # its owner removes it
        self.reports.append((metrics, ray.train.Checkpoint.from_directory(kept)))

    def adapter(self, report):
        return load_file(Path(self.reports[report][1].path) / "adapter_model.safetensors")

    def result(self):
        metrics, checkpoint = self.reports[-1]
        return SimpleNamespace(metrics=metrics, checkpoint=checkpoint)


@pytest.fixture
def trains(tmp_path, monkeypatch):
    def again():
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return Train(folder, monkeypatch)

    return again


def config(folders, **changes):
    base, data = folders
    settings = {"steps": 7, "checkpoint_steps": 3, "batch_size": 3, "learning_rate": 0.1, "held_out": 6}
    return FineTuningConfig(base=base, data=data, **(settings | changes))


def test_a_run_that_is_gone_on_with_ends_as_if_it_had_never_stopped(folders, trains):
    settings = config(folders).model_dump(mode="json")
    whole = trains()
    train(settings)
    assert [metrics["steps"] for metrics, _ in whole.reports] == [3, 6, 7]
    resumed = trains()
    resumed.checkpoint = whole.reports[0][1]
    train(settings)
    assert [metrics["steps"] for metrics, _ in resumed.reports] == [6, 7]
    assert resumed.reports[-1][0] == pytest.approx(whole.reports[-1][0])
    for name, weights in whole.adapter(-1).items():
        assert torch.equal(weights, resumed.adapter(-1)[name])
        assert not torch.equal(weights, whole.adapter(0)[name])


def test_a_notice_of_preemption_is_answered_with_one_checkpoint(folders, trains):
    told = trains()
    told.notice_after = 2
    train(config(folders).model_dump(mode="json"))
    assert [metrics["steps"] for metrics, _ in told.reports] == [2, 3, 6, 7]


def test_the_figures_of_the_base_are_those_of_the_bare_model(folders, trains):
    ran = trains()
    train(config(folders).model_dump(mode="json"))
    said = ran.reports[-1][0]
    held_out = encode(tiny_tokenizer(), ROWS, "")[::3]
    kinds = ["absent", "number"]
    expected = figures(measure(tiny_model(), held_out, kinds, 4, CPU), kinds)
    assert said["base_nll_nats_per_token"] == pytest.approx(expected["nll_nats_per_token"], rel=1e-4)
    assert said["tuned_nll_nats_per_token"] < said["base_nll_nats_per_token"]
    assert said["base_pairs"] == said["tuned_pairs"] == len(held_out) == 6


def test_a_checkpoint_of_another_run_is_refused(folders, trains):
    ran = trains()
    train(config(folders).model_dump(mode="json"))
    for other in (
        {"rank": 4},
        {"batch_size": 2},
        {"language": "en", "system": "S"},
        {"held_out": 3},
        {"steps": 8},
        {"learning_rate": 0.2},
        {"seed": 1},
    ):
        another = trains()
        another.checkpoint = ran.reports[0][1]
        with pytest.raises(ResumeError, match="another --run-name"):
            train(config(folders, **other).model_dump(mode="json"))


@pytest.mark.parametrize("part", ["train", "held-out"])
def test_a_checkpoint_of_other_pairs_in_the_same_place_is_refused(folders, trains, tmp_path, part):
    data = tmp_path / "data"
    shutil.copytree(folders[1], data)
    ran = trains()
    train(config((folders[0], str(data))).model_dump(mode="json"))
    changed = [{**row, "answer": row["answer"][::-1]} for row in ROWS]
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(changed), data / f"part={part}" / "language=en" / "part-0.parquet"
    )
    another = trains()
    another.checkpoint = ran.reports[0][1]
    with pytest.raises(ResumeError, match="other data"):
        train(config((folders[0], str(data))).model_dump(mode="json"))


def test_what_the_figures_do_not_depend_on_may_change(folders, trains, tmp_path):
    ran = trains()
    train(config(folders).model_dump(mode="json"))
    base = shutil.copytree(folders[0], tmp_path / "moved")
    another = trains()
    another.checkpoint = ran.reports[0][1]
    changed = config((str(base), folders[1]), model_name="other", checkpoint_steps=2)
    train(changed.model_dump(mode="json"))
    assert another.reports[-1][0] == pytest.approx(ran.reports[-1][0])


def test_the_adapter_is_published_with_its_base_and_no_path_of_this_host(folders, trains, tmp_path):
    ran = trains()
    settings = config(folders, model_name="tuned")
    train(settings.model_dump(mode="json"))
    base = read_manifest(folders[0])
    said = publish_adapter(ran.result(), settings, base, str(tmp_path / "outbox"))
    manifest = read_manifest(said["model"])
    assert manifest.kind == "lora-adapter"
    assert manifest.spec == {"base": base.version, "base_name": "tiny", "rank": 8}
    assert sorted(manifest.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert manifest.metrics["tuned_exact_match"] == said["tuned_exact_match"]
    written = json.loads((Path(said["model"]) / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "tiny"


def test_a_base_that_is_no_language_model_is_refused_before_the_run(folders, tmp_path):
    base, _ = folders
    assert check(config(folders)) == read_manifest(base)
    other = publish_folder(
        "other",
        Path(base).parent.parent / "tiny",
        kind="text-embedding",
        spec={"dimensions": 32, "max_tokens": 128, "licence": "none"},
        metrics={},
        card=DataCard(name="none", source="made up", licence="none"),
        config={},
        outbox=str(tmp_path),
    )
    with pytest.raises(InvalidInputError, match="of kind text-embedding, not causal-lm"):
        check(config((other, folders[1])))
