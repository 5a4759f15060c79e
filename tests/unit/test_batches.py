"""Batch inference without Ray: every row once, whatever was killed, and never into another job's output."""

import itertools
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.domain.generation import Message, Piece, Refusal
from cloudfarm.errors import InvalidInputError, NotFoundError
from cloudfarm.inference import batches
from cloudfarm.inference.batch_plan import BatchConfig, plan
from cloudfarm.inference.batches import Answerer, claim
from cloudfarm.training.bundle import DataCard, read_manifest
from cloudfarm.training.publish import publish_model

MODEL_SPEC = {"context_tokens": 256, "architecture": "Echo", "licence": "none"}


class EchoEngine:
    """Answers with the prompt in two pieces, and refuses what is too long for it."""

    def __init__(self):
        self.asked = []
        self.closed = False

    def close(self):
        self.closed = True

    async def generate(self, request):
        self.asked.append(request)
        text = request.messages[-1].content
        if len(text) > 100:
            yield Refusal("too long", "messages", "context_length_exceeded")
            return
        yield Piece(0, "echo ", 1, 7)
        yield Piece(0, text, 2, 0, "stop")


def put(outbox, name, kind="causal-lm", value=1.0, base=""):
    return publish_model(
        name,
        {"weight": np.full(2, value, dtype=np.float32)},
        kind=kind,
        spec={"base": base, "base_name": "echo", "rank": 8} if base else MODEL_SPEC,
        config={},
        metrics={},
        card=DataCard(name="none", source="made up", licence="none"),
        outbox=str(outbox),
    )


@pytest.fixture
def engine(monkeypatch):
    engine = EchoEngine()

    def opened(model_uri, chosen):
        assert read_manifest(model_uri).name == "echo"
        return engine

    monkeypatch.setattr(batches, "Completions", opened)
    return engine


@pytest.fixture
def config(tmp_path):
    """Seven rows in two files, one of them in a folder and of two row groups."""
    (tmp_path / "in" / "x").mkdir(parents=True)
    table = pa.table({"id": list(range(7)), "prompt": [f"p{number}" for number in range(7)]})
    pyarrow.parquet.write_table(table.slice(0, 2), tmp_path / "in" / "a.parquet")
    pyarrow.parquet.write_table(table.slice(2), tmp_path / "in" / "x" / "b.parquet", row_group_size=3)
    model = put(tmp_path / "models", "echo")
    return BatchConfig(model=model, data=f"{tmp_path}/in", output=f"{tmp_path}/out", part_rows=2)


def answered(config):
    return pyarrow.dataset.dataset(config.output).to_table().sort_by("id").to_pylist()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15)), min_size=1, max_size=3), st.integers(1, 12)
)
def test_the_parts_hold_every_row_once_and_their_names_differ(files, part_rows):
    with tempfile.TemporaryDirectory() as folder:
        for number, (rows, group) in enumerate(files):
            table = pa.table({"prompt": ["p"] * rows})
            pyarrow.parquet.write_table(table, f"{folder}/{number}.parquet", row_group_size=group)
        config = BatchConfig(model="m", data=folder, output="o", part_rows=part_rows)
        parts = plan(config)
        assert plan(config) == parts
        held = [(p.file, p.group, row) for p in parts for row in range(p.start, p.start + p.rows)]
        expected = [
            (f"{number}.parquet", index, row)
            for number, (rows, group) in enumerate(files)
            for index, start in enumerate(range(0, rows, group))
            for row in range(min(group, rows - start))
        ]
    assert held == expected
    assert max(part.rows for part in parts) <= part_rows
    assert len({part.name for part in parts}) == len(parts)


async def test_the_output_is_the_input_with_answers(config, engine):
    worker = Answerer(config.model_dump(mode="json"))
    done = [await worker(asdict(part)) for part in claim(config, plan(config))]
    assert sum(each["rows"] for each in done) == 7
    assert sum(each["tokens"] for each in done) == 7 * 3
    assert not engine.closed
    del worker
    assert engine.closed
    assert answered(config) == [
        {
            "id": number,
            "prompt": f"p{number}",
            "answer": f"echo p{number}",
            "finish_reason": "stop",
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "refusal": None,
        }
        for number in range(7)
    ]


@pytest.mark.parametrize("killed_after", range(5))
async def test_what_is_done_is_not_done_again_and_what_is_not_is_done(config, engine, killed_after):
    first = Answerer(config.model_dump(mode="json"))
    for part in itertools.islice(claim(config, plan(config)), killed_after):
        await first(asdict(part))
    (Path(config.output) / ".a-00000-00000000.parquet.1f.part").write_bytes(b"half")  # the killed one's
    asked = len(engine.asked)
    missing = claim(config, plan(config))
    assert len(missing) == len(plan(config)) - killed_after
    second = Answerer(config.model_dump(mode="json"))
    for part in missing:
        await second(asdict(part))
    assert [row["id"] for row in answered(config)] == list(range(7))
    assert len(engine.asked) - asked == sum(part.rows for part in missing)
    assert claim(config, plan(config)) == []


async def test_a_part_that_fails_leaves_no_file_that_looks_done(config, engine):
    worker = Answerer(config.model_dump(mode="json"))
    parts = claim(config, plan(config))

    class Full:
        """A disk with room for half a file."""

        def open_output_stream(self, path):
            Path(path).write_bytes(b"half")
            raise OSError("no room")

    worker._filesystem = Full()
    with pytest.raises(OSError, match="no room"):
        await worker(asdict(parts[0]))
    assert claim(config, plan(config)) == parts


async def test_a_refused_row_is_written_down_and_the_others_are_answered(config, engine, tmp_path):
    table = pa.table({"id": [0, 1], "prompt": ["x" * 101, "y"], "answer": ["expected", "too"]})
    (tmp_path / "long").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "long" / "a.parquet")
    config = config.model_copy(update={"data": f"{tmp_path}/long"})
    (part,) = claim(config, plan(config))
    done = await Answerer(config.model_dump(mode="json"))(asdict(part))
    assert done == {"rows": 2, "refused": 1, "tokens": 3}
    refused, fine = answered(config)
    assert (refused["answer"], refused["refusal"], refused["given_answer"]) == (None, "too long", "expected")
    assert (fine["answer"], fine["refusal"], fine["given_answer"]) == ("echo y", None, "too")


async def test_the_engine_is_asked_as_the_settings_say(config, engine, tmp_path):
    adapter = put(tmp_path / "models", "tuned", "lora-adapter", base=read_manifest(config.model).version)
    config = config.model_copy(
        update={"system": "be brief", "adapter": adapter, "max_tokens": 5, "temperature": 0.5, "seed": 3}
        | {"json_schema": "{}"}
    )
    await Answerer(config.model_dump(mode="json"))(asdict(claim(config, plan(config))[0]))
    for request, text in zip(engine.asked, ("p0", "p1"), strict=True):
        assert request.messages == (Message("system", "be brief"), Message("user", text))
        assert request.adapter.uri == adapter
        assert request.adapter.id == read_manifest(adapter).version
        sampling = request.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (5, 0.5, 3)
        assert sampling.json_schema == "{}"


async def test_a_row_without_a_prompt_is_refused_and_the_others_are_answered(config, engine, tmp_path):
    (tmp_path / "null").mkdir()
    table = pa.table({"id": [0, 1], "prompt": ["y", None]})
    pyarrow.parquet.write_table(table, tmp_path / "null" / "a.parquet")
    config = config.model_copy(update={"data": f"{tmp_path}/null"})
    (part,) = claim(config, plan(config))
    done = await Answerer(config.model_dump(mode="json"))(asdict(part))
    assert done == {"rows": 2, "refused": 1, "tokens": 3}
    assert [row["refusal"] for row in answered(config)] == [None, "there is no prompt (null)"]


async def test_no_column_of_the_input_is_lost_or_doubled(config, engine, tmp_path):
    table = pa.table({"id": [0], "prompt": ["y"], "answer": ["a"], "given_answer": ["g"], "refusal": ["r"]})
    (tmp_path / "given").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "given" / "a.parquet")
    config = config.model_copy(update={"data": f"{tmp_path}/given"})
    (part,) = claim(config, plan(config))
    await Answerer(config.model_dump(mode="json"))(asdict(part))
    (row,) = answered(config)
    names = ("answer", "given_answer", "given_given_answer", "refusal", "given_refusal")
    assert [row[name] for name in names] == ["echo y", "g", "a", None, "r"]


def test_a_changed_file_of_as_many_rows_is_another_input_and_a_copy_is_not(config, tmp_path):
    parts = claim(config, plan(config))
    file = tmp_path / "in" / "a.parquet"
    os.utime(file, ns=(1, 1))
    assert claim(config, plan(config)) == parts
    table = pyarrow.parquet.read_table(file)
    changed = table.set_column(1, "prompt", pa.array(["q0", "q1"]))
    pyarrow.parquet.write_table(changed, file)
    with pytest.raises(InvalidInputError, match="holds the output of another job"):
        claim(config, plan(config))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"seed": 2**63}, "seed is"),
        ({"json_schema": "{"}, "the schema is no JSON"),
        ({"json_schema": "[]"}, "the schema is no object"),
        ({"max_tokens": 256}, "max_tokens is 256: prompt and answer have 256 tokens together at most"),
    ],
)
def test_settings_that_no_row_could_be_answered_with_are_refused_before_the_output_is_claimed(
    config, change, why
):
    with pytest.raises(InvalidInputError, match=why):
        claim(config.model_copy(update=change), plan(config))
    assert not Path(config.output).exists()


@pytest.mark.parametrize("below", ["", "/out", "/x/out"])
def test_an_output_in_the_input_is_refused(config, below):
    with pytest.raises(InvalidInputError, match="is in the input"):
        plan(config.model_copy(update={"output": config.data + below}))
    assert plan(config.model_copy(update={"output": config.data + "put"}))


def test_folders_and_hidden_names_are_not_of_the_data(config, tmp_path):
    parts = plan(config)
    (tmp_path / "in" / "folder.parquet").mkdir()
    for hidden in ("_temporary", ".cache"):
        (tmp_path / "in" / hidden).mkdir()
        (tmp_path / "in" / hidden / "a.parquet").write_bytes(b"no Parquet")
        (tmp_path / "in" / f"{hidden}.parquet").write_bytes(b"no Parquet")
    assert plan(config) == parts


@pytest.mark.parametrize("values", [[1], [None], [b"x"], [["a"]]])
def test_a_column_that_is_no_text_is_refused(config, tmp_path, values):
    pyarrow.parquet.write_table(pa.table({"prompt": values}), tmp_path / "in" / "z.parquet")
    with pytest.raises(InvalidInputError, match=r"'prompt' of .*z\.parquet is .*, not text"):
        plan(config)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_form_of_text_will_do(config, tmp_path, kind):
    pyarrow.parquet.write_table(
        pa.table({"prompt": pa.array(["a"]).cast(kind)}), tmp_path / "in" / "z.parquet"
    )
    assert "z.parquet" in {part.file for part in plan(config)}


@pytest.mark.parametrize("change", ["max_tokens", "system", "model", "input"])
def test_the_output_of_another_job_is_left_alone(config, tmp_path, change):
    claim(config, plan(config))
    before = (Path(config.output) / "_job.json").read_bytes()
    if change == "input":
        table = pa.table({"prompt": ["more"]})
        pyarrow.parquet.write_table(table, tmp_path / "in" / "c.parquet")
    elif change == "model":
        put(tmp_path / "models", "echo", value=2.0)
    else:
        config = config.model_copy(update={change: {"max_tokens": 9, "system": "x"}[change]})
    with pytest.raises(InvalidInputError, match="holds the output of another job"):
        claim(config, plan(config))
    assert (Path(config.output) / "_job.json").read_bytes() == before
    assert list(json.loads(before)["rows"].values()) == [2, 2, 1, 2]


def test_a_job_that_cannot_be_done_is_refused(config, tmp_path):
    with pytest.raises(InvalidInputError, match="holds no Parquet file"):
        plan(config.model_copy(update={"data": f"{tmp_path}/nowhere"}))
    with pytest.raises(InvalidInputError, match="holds no Parquet file"):
        plan(config.model_copy(update={"data": f"{tmp_path}/in/a.parquet"}))
    with pytest.raises(InvalidInputError, match=r"a\.parquet has no column 'question'"):
        plan(config.model_copy(update={"prompt_column": "question"}))
    with pytest.raises(NotFoundError):
        claim(config.model_copy(update={"model": f"{tmp_path}/nothing"}), plan(config))
    forecaster = put(tmp_path / "models", "wind", "windpower-forecaster")
    with pytest.raises(InvalidInputError, match="of kind windpower-forecaster, not causal-lm"):
        claim(config.model_copy(update={"model": forecaster}), plan(config))
    for other in (put(tmp_path / "models", "tuned", "lora-adapter", base="0" * 12), config.model):
        with pytest.raises(InvalidInputError, match="no lora-adapter of the model"):
            claim(config.model_copy(update={"adapter": other}), plan(config))
    assert not Path(config.output).exists()
    (tmp_path / "in" / "z.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InvalidInputError, match=r"z\.parquet is no Parquet file"):
        plan(config)
    (tmp_path / "in" / "z.parquet").unlink()
    pyarrow.parquet.write_table(pa.table({"prompt": ["p"]}), tmp_path / "in" / "x--b.parquet")
    with pytest.raises(InvalidInputError, match="files of one name"):
        plan(config)
