"""The batch job under plain local Ray, on the real small model: killed in the middle, and started again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from cloudfarm.training import default_models
from tests.local_ray import JOB_TIMEOUT_S, ROOT, kill_all, running_job
from tests.processes import until

pytestmark = pytest.mark.timeout(3 * JOB_TIMEOUT_S)

ROWS = 12
CAPITALS = ("France", "Japan", "Italy", "Spain")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    (folder / "in").mkdir()
    for file in range(2):
        ids = list(range(file * ROWS // 2, (file + 1) * ROWS // 2))
        prompts = [f"What is the capital of {CAPITALS[number % 4]}?" for number in ids]
        pyarrow.parquet.write_table(
            pa.table({"id": ids, "prompt": prompts}), folder / "in" / f"{file}.parquet"
        )
    return {
        "--model": default_models.publish(default_models.SMOLLM2, str(folder / "models")),
        "--data": str(folder / "in"),
        "--output": str(folder / "out"),
        "--part-rows": "2",
        "--max-tokens": "12",
        "--engine": "transformers",
    }


def parts(options):
    """Each output file with the time it was made."""
    found = Path(options["--output"]).glob("[!_.]*.parquet")
    return {path.name: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def outcome(options, tmp_path_factory):
    """Kill the job and all its processes when some parts are done, and start it again."""
    log = tmp_path_factory.mktemp("log") / "log"
    command = [word for pair in options.items() for word in pair]
    with running_job("jobs/batch_inference.py", *command, log=log) as process:
        until(lambda: len(parts(options)) >= 2, "two parts")
        kill_all(process.pid)
    before = parts(options)
    with running_job("jobs/batch_inference.py", *command, log=log) as process:
        assert process.wait(JOB_TIMEOUT_S) == 0, log.read_text(errors="replace")[-5000:]
    return before, log.read_text(encoding="utf-8", errors="replace")


def last_line(said):
    return json.loads([line for line in said.splitlines() if line.startswith('{"rows"')][-1])


def test_what_was_done_before_the_kill_is_not_done_again(options, outcome):
    before, said = outcome
    assert 2 <= len(before) < ROWS // 2
    after = parts(options)
    assert len(after) == ROWS // 2
    assert before.items() <= after.items()
    assert f"{2 * len(before)} of {ROWS} rows; 0.00 rows/s" in said
    assert last_line(said)["rows"] == last_line(said)["of_rows"] == ROWS
    assert last_line(said)["rows_per_s"] > 0


def test_every_row_is_answered_once_by_the_model(options, outcome):
    rows = pyarrow.dataset.dataset(options["--output"]).to_table().sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(ROWS))
    for row in rows:
        assert "Paris" in row["answer"] or "France" not in row["prompt"]
        assert 0 < row["completion_tokens"] <= 12
        assert row["prompt_tokens"] > 10
    assert len({row["answer"] for row in rows}) == len(CAPITALS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--data": "/nowhere"}, "/nowhere holds no Parquet file"),
        ({"--model": "/nowhere"}, "/nowhere does not exist"),
        ({"--prompt-column": "question"}, "has no column 'question'"),
        ({"--max-tokens": "13"}, "holds the output of another job"),
        ({"--part-rows": "0"}, "part_rows"),
    ],
)
def test_a_job_that_cannot_be_done_says_so_before_it_starts(options, outcome, change, says):
    command = [word for pair in (options | change).items() for word in pair]
    done = subprocess.run(
        [sys.executable, "jobs/batch_inference.py", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("batch_inference: ")
    assert says in done.stderr
