"""A trivial job by the stock `ray job submit`: through the front door, and straight to Ray's dashboard.

Both run on the same ready lease node, in turns. The wall time of the command is taken apart by what Ray wrote down
of the job: until it was submitted to Ray, until it had ended there, until the command had ended.
"""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.figures import Row, Series
from benchmarks.running_farm import BenchFarm, clean_env, run

RAY = "ray"
ENTRYPOINT = ("python", "-c", "print(1)")
LIKE_A_JOB = {"gpus": "0.5", "cpus": 2, "memory": "3GiB"}


@dataclass(frozen=True, slots=True)
class JobTimes:
    """One `ray job submit`, in seconds."""

    total: float
    to_ray: float
    """From the command's start until Ray had the job."""
    in_ray: float
    to_end: float
    """From the job's end in Ray until the command's end."""


def measure(farm: BenchFarm, runs: int, say: Callable[[str], None]) -> list[Row]:
    """Return the rows of a job."""
    ours, stock = [], []
    with farm.lease(**LIKE_A_JOB) as lease:
        for turn in range(runs + 1):
            first = through_front_door(farm, lease["id"])
            second = straight_to_ray(farm, lease["id"])
            if turn:  # the first of each finds cold caches
                ours.append(first)
                stock.append(second)
            say(f"  run {turn or 'cold'}: front door {first.total:.2f} s, stock {second.total:.2f} s")

    def row(name: str, part: str) -> Row:
        values = [[getattr(times, part) for times in series] for series in (ours, stock)]
        return Row(3, name, "s", Series.of(values[0]), Series.of(values[1]))

    return [
        row("`ray job submit` of a trivial job", "total"),
        row("  of it: command begun -> Ray has the job", "to_ray"),
        row("  of it: Ray has the job -> it has ended", "in_ray"),
        row("  of it: job ended -> command ended", "to_end"),
    ]


def through_front_door(farm: BenchFarm, lease: str) -> JobTimes:
    """Submit as a tenant does."""
    name = f"bench_{secrets.token_hex(4)}"
    env = {
        **clean_env(),
        "RAY_API_SERVER_ADDRESS": farm.local.url,
        "RAY_JOB_HEADERS": json.dumps({"Authorization": farm.tenant.authorization}),
    }
    return timed(farm, name, ["--metadata-json", json.dumps({"lease": lease})], env)


def straight_to_ray(farm: BenchFarm, lease: str) -> JobTimes:
    """Submit as whoever has the cluster's own token can."""
    name = f"bench_{secrets.token_hex(4)}"
    env = {
        **clean_env(),
        "RAY_API_SERVER_ADDRESS": farm.dashboard_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(farm.local.paths.ray_token_file),
    }
    return timed(farm, name, ["--entrypoint-label-selector", json.dumps({"lease": lease})], env)


def timed(farm: BenchFarm, name: str, options: list[str], env: dict[str, str]) -> JobTimes:
    """Run the command and take its time apart."""
    command = [RAY, "job", "submit", "--submission-id", name, *options, "--", *ENTRYPOINT]
    begun = time.time()
    output = run(command, {**env, "RAY_USAGE_STATS_ENABLED": "0"})
    ended = time.time()
    assert "\n1\n" in output, f"the job's output is not in the command's: {output}"
    job = record_of(farm, name)
    return JobTimes(
        total=ended - begun,
        to_ray=job["start_time"] / 1000 - begun,
        in_ray=(job["end_time"] - job["start_time"]) / 1000,
        to_end=ended - job["end_time"] / 1000,
    )


def record_of(farm: BenchFarm, name: str) -> dict[str, Any]:
    """Return what Ray itself wrote down of a job."""
    headers = {"Authorization": f"Bearer {farm.local.paths.ray_token_file.read_text().strip()}"}
    jobs = httpx.get(f"{farm.dashboard_url}/api/jobs/", headers=headers, timeout=30).raise_for_status().json()
    return next(
        job for job in jobs if name in (job["submission_id"], (job.get("metadata") or {}).get("job_name"))
    )
