"""A driver script in a Ray session of its own, as on a machine without a farm."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
JOB_TIMEOUT_S = 280
"""For a job of this size on a machine that others use, too."""
_DRIVER = """
import os, runpy, sys
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=os.environ["RAY_TMPDIR"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
ray.shutdown()
"""


@contextlib.contextmanager
def running_job(script: str, *options: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``script`` unmodified on local Ray; on leaving, whatever is left of it is killed."""
    ray_folder = tempfile.mkdtemp(prefix="cfC-", dir="/tmp")  # a socket's path has to be short
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_TMPDIR": ray_folder,
        "TMPDIR": ray_folder,  # what a killed process copied there goes with it
    }
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", _DRIVER, script, *options]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        kill_all(process.pid)
        process.wait()
        shutil.rmtree(ray_folder, ignore_errors=True)


def kill_all(pid: int) -> None:
    """Kill a process and all that it started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for each in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def workers(process: subprocess.Popen[bytes], title: str) -> list[psutil.Process]:
    """Return the Ray workers of a job whose process title holds ``title``."""
    started = psutil.Process(process.pid).children(recursive=True)
    return [child for child in started if title in "".join(child.cmdline()[:1])]
