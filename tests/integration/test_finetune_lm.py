"""The fine-tuning job under plain local Ray, on the real small model: a worker is killed, the run goes on.

The job's script runs unmodified, first with its worker killed after a checkpoint, then again under the same name, as
after a preemption that came between the last step and the publishing.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from cloudfarm.training import census, default_models
from cloudfarm.training.bundle import read_manifest
from cloudfarm.training.hf_folder import fetch_bundle
from tests.local_ray import JOB_TIMEOUT_S, ROOT, running_job, workers
from tests.processes import until

pytestmark = pytest.mark.timeout(3 * JOB_TIMEOUT_S)

STEPS = 6


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The job's options, with the real base model and the real data."""
    folder = tmp_path_factory.mktemp("tuning")
    base = default_models.publish(default_models.SMOLLM2, str(folder / "models"))
    census.prepare_census(folder / "data")
    return {"--base": base, "--data": str(folder / "data"), "--outbox": str(folder / "outbox")}


@pytest.fixture(scope="module")
def outcome(options, tmp_path_factory):
    """Run the job twice, its worker killed in the first; return what was said each time."""
    folder = tmp_path_factory.mktemp("run")
    small = {
        "--steps": STEPS,
        "--checkpoint-steps": 2,
        "--batch-size": 2,
        "--held-out": 5,
        "--run-name": "run",
    }
    command = [
        str(word)
        for pair in (options | small | {"--storage-path": folder / "store"}).items()
        for word in pair
    ]
    noted = folder / "store" / "run" / "checkpoint_manager_snapshot.json"
    said = []
    for run in ("first", "again"):
        log = folder / run
        with running_job("jobs/finetune_lm.py", *command, log=log) as process:
            if run == "first":
                until(
                    lambda: noted.exists() and "checkpoint_dir_name" in noted.read_text(encoding="utf-8"),
                    "the first checkpoint to be noted",
                )
                (victim,) = workers(process, "RayTrainWorker")
                victim.kill()
            assert process.wait(JOB_TIMEOUT_S) == 0, log.read_text(errors="replace")[-5000:]
        said.append(log.read_text(encoding="utf-8", errors="replace"))
    return said


def summary(said):
    return json.loads(next(line for line in said.splitlines() if line.startswith('{"base_')))


def test_a_killed_worker_costs_only_the_steps_since_the_checkpoint(outcome):
    resumed = [int(done) for done in re.findall(rf"resumed after (\d+) of {STEPS} steps", outcome[0])]
    assert resumed in ([2], [4])


def test_the_same_run_submitted_again_has_nothing_left_to_do_but_publish(outcome):
    assert f"resumed after {STEPS} of {STEPS} steps" in outcome[1]
    assert summary(outcome[1]) == summary(outcome[0])


def test_the_figures_are_of_base_and_tuned_model_on_the_same_pairs(outcome):
    said = summary(outcome[0])
    assert said["base_pairs"] == said["tuned_pairs"] == 5
    assert said["tuned_nll_nats_per_token"] < 0.8 * said["base_nll_nats_per_token"]


def test_the_adapter_is_a_bundle_for_its_base(outcome, options, tmp_path):
    where = summary(outcome[1])["model"]
    manifest = fetch_bundle(where, tmp_path / "adapter")  # refuses what may not be served
    assert manifest.kind == "lora-adapter"
    assert manifest.spec["base"] == read_manifest(options["--base"]).version
    assert manifest.data.name == "korean-regions"
    assert manifest.config["steps"] == STEPS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--base": "/nowhere"}, "/nowhere does not exist"),
        ({"--steps": "0"}, "steps"),
    ],
)
def test_a_run_that_cannot_succeed_says_so_before_it_starts(options, change, says):
    command = [word for pair in (options | change).items() for word in pair]
    done = subprocess.run(
        [sys.executable, "jobs/finetune_lm.py", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.startswith("finetune_lm: ")
