"""Requests to a service: through the front door with an API key, and straight to Serve's own proxy.

The same model on leases of the same shape: (a) a service of the farm, (b) a stock Serve application with a route of
its own (one hop: proxy, model), (c) the same behind a thin FastAPI ingress on the head (two hops, as through the
front door, but nobody asks for a key). Measured in turns by a load generator in a process of its own, over loopback.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import model
from benchmarks.figures import Row, Series, percentile
from benchmarks.load import KEY_ENV
from benchmarks.running_farm import TENANT, BenchFarm, clean_env, run
from cloudfarm.raylayer.launcher import procs

SERVICE = "wind"
SHAPE = {"gpus": "0.25", "cpus": 2, "memory": "3GiB"}
FARM, MODEL, INGRESS = "front door", "stock, one hop", "stock, two hops"
TITLES = {
    "Serve's proxy": "ray::ProxyActor",
    "front door": "ray::ServeReplica:front-door:",
    "thin ingress": "ray::ServeReplica:stock.ingress:",
    "the farm's model": f"ray::ServeReplica:{TENANT}.{SERVICE}.",
    "the stock model": "ray::ServeReplica:stock.model:",
}


@dataclass(slots=True)
class Measured:
    """What was seen of one target with so many clients, one entry a turn."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    """CPU milliseconds a request, by process."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send requests."""

    url: str
    env: dict[str, str]


def measure(
    farm: BenchFarm, turns: int, requests: int, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Return the rows of a service, and the CPU milliseconds that a request takes in each process."""
    body = farm.base / "request.json"
    body.write_text(json.dumps(model.example_request()))
    with targets(farm) as found:
        one = {name: Measured() for name in found}
        eight = {name: Measured() for name in found}
        pids = processes(farm)
        for turn in range(turns + 1):
            for name, target in found.items():
                for clients, measured in ((1, one[name]), (8, eight[name])):
                    into = measured if turn else Measured()
                    send(target, body, into, pids, requests=requests, clients=clients)
            if turn:  # the first finds cold caches
                seen = ", ".join(f"{name} {measured.p50[-1]:.1f} ms" for name, measured in one.items())
                say(f"  turn {turn}: {seen}")
    rows = []
    for stock, label in ((MODEL, "v straight to Serve"), (INGRESS, "v a thin ingress on Serve")):
        rows += [
            row(f"1 client, p50, {label}", "ms", one[FARM].p50, one[stock].p50),
            row(f"1 client, p99, {label}", "ms", one[FARM].p99, one[stock].p99),
            row(
                f"8 clients, requests a second, {label}",
                "1/s",
                eight[FARM].rate,
                eight[stock].rate,
                lower_is_better=False,
            ),
            row(f"8 clients, p50, {label}", "ms", eight[FARM].p50, eight[stock].p50),
            row(f"8 clients, p99, {label}", "ms", eight[FARM].p99, eight[stock].p99),
        ]
    cpu = {
        name: {part: Series.of(values).median for part, values in one[name].cpu_ms.items()} for name in found
    }
    return rows, cpu


def row(name: str, unit: str, ours: list[float], stock: list[float], *, lower_is_better: bool = True) -> Row:
    """Return a row of this section."""
    return Row(4, name, unit, Series.of(ours), Series.of(stock), lower_is_better)


@contextmanager
def targets(farm: BenchFarm) -> Iterator[dict[str, Target]]:
    """Deploy the model as a service of the farm and as stock applications, and end them afterwards."""
    uri, manifest = model.make_bundle(farm.base / "outbox")
    version = asyncio.run(model.register(farm.local.settings, TENANT, uri, manifest))
    farm.tenant.post("/v1/services", {"model": version.ref, "name": SERVICE, **SHAPE})
    with farm.lease(**SHAPE) as lease:
        deploy = "from benchmarks.stock_app import main; main()"
        address, port = farm.local.settings.bind_address, farm.local.settings.port + 1
        command = [sys.executable, "-c", deploy, uri, lease["id"], address, str(port)]
        run(command, farm.ray_env)
        service = farm.wait(f"/v1/services/{SERVICE}", "RUNNING")
        key = farm.tenant.post("/v1/keys", {"user": "caller", "services": [SERVICE]})["secret"]
        yield {
            FARM: Target(farm.local.url + service["predict"], {KEY_ENV: key}),
            MODEL: Target(f"http://{address}:{port}{model.STOCK_ROUTE}", {}),
            INGRESS: Target(f"http://{address}:{port}{model.STOCK_INGRESS_ROUTE}/", {}),
        }
        farm.tenant.delete(f"/v1/services/{SERVICE}")


def processes(farm: BenchFarm) -> dict[str, int]:
    """Return the pids of this farm's processes that a request passes."""
    titles = {pid: procs.title(pid) for pid in farm.every_pid()}
    found = {
        name: pid
        for name, start in TITLES.items()
        for pid, title in titles.items()
        if title.startswith(start)
    }
    assert found.keys() == TITLES.keys(), f"not found: {TITLES.keys() - found.keys()}"
    return found


def send(
    target: Target, body: Path, measured: Measured, pids: dict[str, int], *, requests: int, clients: int
) -> None:
    """Send requests from a process of the generator's own and note what was seen."""
    command = [
        sys.executable, "-m", "benchmarks.load", target.url, "--body", str(body),
        "--requests", str(requests), "--clients", str(clients),
    ]  # fmt: skip
    before = {name: procs.cpu_seconds(pid) for name, pid in pids.items()}
    seen = json.loads(run(command, {**clean_env(), **target.env}))
    used = {name: procs.cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    assert seen["wrong"] == 0, f"{seen['wrong']} wrong answers from {target.url}"
    measured.p50.append(percentile(seen["latency_ms"], 0.5))
    measured.p99.append(percentile(seen["latency_ms"], 0.99))
    measured.rate.append(requests / seen["seconds"])
    for name, seconds in {**used, "load generator": seen["generator_cpu_s"]}.items():
        measured.cpu_ms.setdefault(name, []).append(seconds * 1000 / requests)
