"""The training job under plain local Ray: a worker is killed, the run goes on, its model predicts.

One Ray session of its own serves all tests; the job's script runs in it unmodified, first with a worker
killed after the first checkpoint, then again under the same name, as after a preemption.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import pytest

from cloudfarm.inference.forecasts import Forecaster
from cloudfarm.training import datasets, windows
from cloudfarm.training.bundle import read_bundle
from cloudfarm.training.windpower import TrainingConfig
from tests.local_ray import JOB_TIMEOUT_S, ROOT

pytestmark = pytest.mark.timeout(3 * JOB_TIMEOUT_S)

EPOCHS = 6
OPTIONS = ["--workers", "2", "--selection-start", "2015-05-10", "--validation-start", "2015-05-20"]
DRIVER = """
import json, os, runpy, sys
import ray
from ray import serve
from services.forecasts import app
ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=os.environ["RAY_TMPDIR"])
runs, *options = sys.argv[1:]
for epochs in runs.split(","):
    sys.argv = ["jobs/train_forecaster.py", "--epochs", epochs, *options]
    runpy.run_path(sys.argv[0], run_name="__main__")
serve.start(proxy_location="Disabled")
outbox = options[options.index("--outbox") + 1]
handle = serve.run(app({"model_uri": f"{outbox}/windpower-forecaster"}), name="forecasts", route_prefix=None)
card = handle.describe.remote().result()
answers = [handle.handle.remote(payload).result() for payload in (card["example_input"], {"observations": 3})]
print(json.dumps({"served": answers}))
serve.shutdown()
ray.shutdown()
"""


def la_haute_borne_csv():
    """Fifty days of two invented turbines in the real file's form: mean-reverting wind, a cubic curve."""
    random = np.random.default_rng(0)
    count = 50 * 144
    out = io.StringIO()
    out.write("Wind_turbine_name,Date_time,Ba_avg,P_avg,Ws_avg,Va_avg,Ot_avg,Ya_avg,Wa_avg\n")
    times = np.datetime64("2015-04-10T00:00:00") + 600 * np.arange(count).astype("timedelta64[s]")
    for turbine in ("R80711", "R80721"):
        speed = np.empty(count)
        speed[0] = 6
        for step in range(1, count):
            speed[step] = max(0, speed[step - 1] + 0.15 * (6 - speed[step - 1]) + random.normal(0, 0.8))
        power = np.clip(2.5 * speed**3, 0, 2050)
        for moment, wind, kw in zip(times, speed, power, strict=True):
            out.write(f"{turbine},{moment}+02:00,-1,{kw:.2f},{wind:.2f},0.1,12.5,200,210\n")
    return out.getvalue().encode()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "turbines"
    folder.mkdir()
    datasets._write(folder, datasets.read_la_haute_borne(la_haute_borne_csv()))
    return folder


def wait_for(find, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if found := find():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited in vain; the driver's exit code is {process.poll()}")


@pytest.fixture(scope="module")
def outcome(data, tmp_path_factory):
    """Run the job twice, a worker killed in the first, and serve the model; return folder and log."""
    folder = tmp_path_factory.mktemp("run")
    ray_folder = tempfile.mkdtemp(prefix="cfC-", dir="/tmp")  # a socket's path has to be short
    command = [sys.executable, "-c", DRIVER, f"{EPOCHS},{EPOCHS + 1}", *OPTIONS, "--data", str(data)]
    command += [
        "--run-name",
        "run",
        "--storage-path",
        str(folder / "store"),
        "--outbox",
        str(folder / "outbox"),
    ]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_TMPDIR": ray_folder,
    }
    environment.pop("RAY_ADDRESS", None)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        # A checkpoint on the disk counts once the controller has noted it; it looks every two seconds.
        noted = folder / "store" / "run" / "checkpoint_manager_snapshot.json"
        wait_for(
            lambda: noted.exists() and "checkpoint_dir_name" in noted.read_text(encoding="utf-8"), process
        )
        started = psutil.Process(process.pid).children(recursive=True)
        victims = [child for child in started if "RayTrainWorker" in "".join(child.cmdline()[:1])]
        assert len(victims) == 2
        victims[0].kill()
        code = process.wait(JOB_TIMEOUT_S)
        said = log.read_text(encoding="utf-8", errors="replace")
        assert code == 0, said[-5000:]
        return folder, said
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.wait()
        shutil.rmtree(ray_folder, ignore_errors=True)


def summaries(said):
    return [json.loads(line) for line in said.splitlines() if line.startswith('{"validation_mae_kw"')]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "/nowhere"], "is not a Parquet data set"),
        (["--data", "{data}", "--validation-start", "2016-01-01"], "no whole window in the fitting period"),
        (["--data", "{data}", "--epochs", "0"], "epochs"),
    ],
)
def test_a_run_that_cannot_succeed_says_so_before_it_starts(data, options, says):
    command = [sys.executable, "jobs/train_forecaster.py", *(option.format(data=data) for option in options)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("train_forecaster: ")
    assert says in done.stderr


def resumptions(said):
    """Each start from a checkpoint: the epochs done, and the next epoch that the same worker reports."""
    lines = said.splitlines()
    for number, line in enumerate(lines):
        if found := re.search(r"(\(RayTrainWorker pid=\d+\)).* resumed after (\d+) of", line):
            later = next(text for text in lines[number:] if found[1] in text and "'epoch': " in text)
            yield int(found[2]), float(later.split("'epoch': ")[1].split("}")[0])


def test_a_killed_worker_costs_no_finished_epoch(outcome):
    done, following = next(resumptions(outcome[1]))
    assert 1 <= done < EPOCHS
    assert following == done + 1
    assert summaries(outcome[1])[0]["epochs"] == EPOCHS


def test_the_same_run_submitted_again_goes_on_where_it_was(outcome):
    assert list(resumptions(outcome[1]))[-1] == (EPOCHS, EPOCHS + 1)
    assert summaries(outcome[1])[1]["epochs"] == EPOCHS + 1


def test_the_figures_are_those_of_the_held_out_rows(outcome, data):
    """Persistence is computed here anew, and the model is run again through what serves it."""
    folder, said = outcome
    summary = summaries(said)[-1]
    config = TrainingConfig(data=str(data), selection_start="2015-05-10", validation_start="2015-05-20")
    series = windows.load(str(data))
    ends = series.window_ends(config.lookback, config.horizon, config.periods()[2])
    truth = series.targets_kw(ends, config.horizon)
    assert summary["rows"] == len(ends) == 2 * (10 * 144 - config.lookback - config.horizon + 1)
    persistence = np.abs(series.persistence_kw(ends, config.horizon) - truth)[:, -1].mean()
    assert summary["persistence_mae_kw"] == pytest.approx(persistence, abs=0.01)
    service = Forecaster(str(folder / "outbox" / "windpower-forecaster"))
    served = []
    for end in ends:
        answer = asyncio.run(service.handle({"observations": series.readings(int(end), config.lookback)}))
        served.append(answer["forecast"][-1]["power_kw"])
    assert summary["validation_mae_kw"] == pytest.approx(np.abs(served - truth[:, -1]).mean(), abs=0.05)
    assert summary["validation_mae_kw"] < 0.9 * persistence


def test_the_published_bundle_is_whole_and_answers_its_own_example(outcome):
    folder, said = outcome
    where = summaries(said)[-1]["model"]
    manifest = read_bundle(where).manifest
    assert where == str(folder / "outbox" / "windpower-forecaster")
    assert manifest.data.licence == "Etalab Open Licence 2.0"
    assert manifest.config["epochs"] == EPOCHS + 1
    assert round(manifest.metrics["validation_mae_kw"], 2) == summaries(said)[-1]["validation_mae_kw"]
    answer = asyncio.run(Forecaster(where).handle(manifest.example_input))
    assert [step["minutes_ahead"] for step in answer["forecast"]] == [10, 20, 30, 40, 50, 60]


def test_serve_answers_and_a_refusal_comes_through_the_handle_as_data(outcome):
    folder, said = outcome
    line = next(line for line in said.splitlines() if line.startswith('{"served"'))
    answer, refusal = json.loads(line)["served"]
    manifest = read_bundle(str(folder / "outbox" / "windpower-forecaster")).manifest
    assert answer == asyncio.run(Forecaster(summaries(said)[-1]["model"]).handle(manifest.example_input))
    assert refusal["error"]["status"] == 422
    assert refusal["error"]["detail"].startswith("observations: ")
