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
TRIVIAL = "print(1)"
SECONDS = 5
SHORT = f"import time; time.sleep({SECONDS}); print(1)"
"""Long enough that its log is followed while it runs."""
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
    with farm.lease(**LIKE_A_JOB) as lease:
        through_front_door(farm, lease["id"], TRIVIAL)  # the first of each finds cold caches
        straight_to_ray(farm, lease["id"], TRIVIAL)
        trivial = in_turns(farm, lease["id"], TRIVIAL, runs, say)
        short = in_turns(farm, lease["id"], SHORT, max(2, runs // 2), say)
    parts = {
        "total": "`ray job submit` of {}",
        "to_ray": "  of it: command begun -> Ray has the job",
        "in_ray": "  of it: Ray has the job -> it has ended",
        "to_end": "  of it: job ended -> command ended",
    }
    return [
        row(name.format(what), series, part)
        for what, series in (("a trivial job", trivial), (f"a job that sleeps {SECONDS} s", short))
        for part, name in parts.items()
    ]


def row(name: str, series: tuple[list[JobTimes], list[JobTimes]], part: str) -> Row:
    """Return one part of the time as a row of this section."""
    ours, stock = ([getattr(times, part) for times in side] for side in series)
    return Row(3, name, "s", Series.of(ours), Series.of(stock))


def in_turns(
    farm: BenchFarm, lease: str, code: str, runs: int, say: Callable[[str], None]
) -> tuple[list[JobTimes], list[JobTimes]]:
    """Run a job both ways, again and again."""
    ours, stock = [], []
    for turn in range(runs):
        ours.append(through_front_door(farm, lease, code))
        stock.append(straight_to_ray(farm, lease, code))
        say(f"  run {turn + 1}: front door {ours[-1].total:.2f} s, stock {stock[-1].total:.2f} s")
    return ours, stock


def through_front_door(farm: BenchFarm, lease: str, code: str) -> JobTimes:
    """Submit as a tenant does."""
    name = f"bench_{secrets.token_hex(4)}"
    env = {
        **clean_env(),
        "RAY_API_SERVER_ADDRESS": farm.local.url,
        "RAY_JOB_HEADERS": json.dumps({"Authorization": farm.tenant.authorization}),
    }
    return timed(farm, name, ["--metadata-json", json.dumps({"lease": lease})], env, code)


def straight_to_ray(farm: BenchFarm, lease: str, code: str) -> JobTimes:
    """Submit as whoever has the cluster's own token can."""
    name = f"bench_{secrets.token_hex(4)}"
    env = {
        **clean_env(),
        "RAY_API_SERVER_ADDRESS": farm.dashboard_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(farm.local.paths.ray_token_file),
    }
    return timed(farm, name, ["--entrypoint-label-selector", json.dumps({"lease": lease})], env, code)


def timed(farm: BenchFarm, name: str, options: list[str], env: dict[str, str], code: str) -> JobTimes:
    """Run the command and take its time apart."""
    command = [RAY, "job", "submit", "--submission-id", name, *options, "--", "python", "-c", code]
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
