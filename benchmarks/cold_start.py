"""From nothing to the first token: what a request to a sleeping service waits for."""

import time
from contextlib import closing
from datetime import datetime
from typing import Any

from benchmarks.figures import Series
from benchmarks.language import Say, publish, service
from benchmarks.running_farm import BenchFarm, until
from benchmarks.sides import Endpoint
from cloudfarm.training.default_models import SMOLLM2

SLEEPER = "sleeper"
IDLE_MINUTES = 0.1


def cold_starts(farm: BenchFarm, turns: int, say: Say) -> dict[str, Any]:
    """Return what a request to a sleeping service waits for, in seconds."""
    publish(farm, "python -m cloudfarm.training.default_models smollm2", say)
    parts: dict[str, list[float]] = {}
    with (
        service(farm, SMOLLM2.name, SLEEPER, min_replicas=0, max_replicas=1, idle_minutes=IDLE_MINUTES),
        closing(Endpoint.of_farm(farm, SLEEPER)) as ours,
    ):
        for turn in range(turns):
            sleep(farm)
            began_s = time.time()
            found = ours.answers(["Once upon a time"], 1)
            first_s = began_s + found["first_ms"][0] / 1000
            for part, seconds in split(farm, began_s, first_s).items():
                parts.setdefault(part, []).append(seconds)
            say(f"  cold start {turn + 1}: {first_s - began_s:.1f} s")
    return {part: Series.of(runs).to_json() for part, runs in parts.items()}


def sleep(farm: BenchFarm) -> None:
    """Wait until a service sleeps and holds no lease."""

    def asleep() -> bool:
        found = farm.tenant.get(f"/v1/services/{SLEEPER}")
        return found["status"] == "IDLE" and not found["leases"]

    until(asleep, f"{SLEEPER} to fall asleep")


def split(farm: BenchFarm, began_s: float, first_s: float) -> dict[str, float]:
    """Cut the time from a request to its first token where the farm noted what had come about."""
    (lease_id,) = farm.tenant.get(f"/v1/services/{SLEEPER}")["leases"]
    lease = farm.tenant.get(f"/v1/leases/{lease_id}")
    running = next(event for event in farm.tenant.get("/v1/events") if event["kind"] == "revision.running")
    moments = [
        began_s,
        *(datetime.fromisoformat(lease[moment]).timestamp() for moment in ("created", "granted", "started")),
        datetime.fromisoformat(running["at"]).timestamp(),
        first_s,
    ]
    names = ("request -> lease asked for", "lease", "node", "replica and model load", "to the first token")
    found = {name: moments[at + 1] - moments[at] for at, name in enumerate(names)}
    return {**found, "all": first_s - began_s}
