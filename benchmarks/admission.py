"""How fast leases are admitted through the real store while thousands wait: ``python -m benchmarks.admission``.

The real steward (look, decide by quotas, act) on SQLite and on PostgreSQL with their commits safe on the disk; only
hosts, Ray and Serve are the fakes of ``cloudfarm.testing``. The farm is openb's, 1,213 hosts with 6,212 GPUs, and 40
tenants are promised a fortieth each. All time inside steps counts, whatever it is spent on; what tenants do does not.

``fill``    The farm is empty; so many of openb's pods wait as fit, and 10,000 more. Granted a second: until everything
            that fits is granted and committed, and all others are told why they wait. Active a second: until all that
            was granted is active, some steps later.
``beside``  One GPU of each host is taken, and 10,000 leases wait that each want a whole host. Step after step 1,000
            small ones arrive that fit beside; in each step those before them are started and found active as well.
"""

import argparse
import asyncio
import csv
import io
import json
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.figures import Series
from benchmarks.postgres import running_postgres
from cloudfarm.domain.lease import Ask, Grade, Lease, LeaseKind, Slice
from cloudfarm.domain.quantities import GIB, MILLI, Shape
from cloudfarm.domain.quota import NOTHING, Amounts, Quota
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.store import SqlStore, migrate
from cloudfarm.testing.factories import add, keep, look
from cloudfarm.testing.fake_farm import make_host
from cloudfarm.testing.farm import MemoryFarm

DATA = Path(__file__).parent / "data" / "openb" / "openb.zip"
DATABASES = ("sqlite", "postgresql")
TENANTS = [f"t{number:02}" for number in range(40)]
FITTING = 10_000
"""More pods than fit; what of them does not waits with the others."""
ARRIVALS, ROUNDS = 1_000, 8
SHARES = (250, 500, 1000)
HOUR_MS = 3_600_000
TICK_MS = 1_000

Figures = dict[str, float]


def openb(name: str) -> list[dict[str, str]]:
    """Return the rows of one of openb's lists."""
    with zipfile.ZipFile(DATA) as data:
        return list(csv.DictReader(io.StringIO(data.read(f"openb_{name}.csv").decode())))


@dataclass(slots=True)
class Bench:
    """Openb's farm over one new database."""

    farm: MemoryFarm
    seed: int
    seconds: float = 0.0
    """Spent in steps."""
    cpu_seconds: float = 0.0
    """Of this process, in steps: where others use the machine, too, this says more. A PostgreSQL's own is not in it."""

    @classmethod
    async def begin(cls, url: str, seed: int) -> "Bench":
        """Make the database and the farm; let the steward take over."""
        await migrate(url)
        farm = MemoryFarm(store=await SqlStore.open(url), limit_milli_gpus=10**9)
        whole = NOTHING
        for row in openb("node_list_gpu_node"):
            gpus, cpus, memory = int(row["gpu"]), int(row["cpu_milli"]) // MILLI, int(row["memory_mib"])
            host = make_host(row["sn"], gpus, model=row["model"], cpus=cpus, memory_bytes=memory * 1024**2)
            if gpus:
                farm.hosts.hosts[host.id] = host
                whole += Amounts(MILLI * gpus, cpus, host.memory_bytes)
        each = Amounts(*(part // len(TENANTS) for part in (whole.milli_gpus, whole.cpus, whole.memory_bytes)))
        await add(farm.store, tenants=[Tenant(name, "", 1) for name in TENANTS])
        quotas = [Quota(name, None, each) for name in TENANTS]
        await keep(farm.store, lambda uow: uow.quotas.replace_all(quotas))
        await farm.steward.take_over()
        return cls(farm, seed)

    def leases(self, name: str, asks: Iterable[Ask]) -> list[Lease]:
        """Return a waiting lease for each ask, of one tenant after the other."""
        made = [
            Lease(f"{name}-{number:05}", "", "kim", name, LeaseKind.MANUAL, ask, self.farm.clock.now_ms())
            for number, ask in enumerate(asks)
        ]
        return [replace(lease, tenant=TENANTS[number % len(TENANTS)]) for number, lease in enumerate(made)]

    async def step(self) -> float:
        """Take one step and wait until all of it is done; return how many seconds that took."""
        self.farm.clock.advance(TICK_MS)
        began, cpu_began = time.perf_counter(), time.process_time()
        await self.farm.steward.step()
        await self.farm.steward.actor.finish()
        took = time.perf_counter() - began
        self.seconds += took
        self.cpu_seconds += time.process_time() - cpu_began
        return took

    async def counted(self) -> dict[LeaseStatus, int]:
        """Return how many open leases there are in each status."""
        found = await look(self.farm.store, lambda uow: uow.leases.list(open_only=True))
        counts = dict.fromkeys(LeaseStatus, 0)
        for lease in found:
            counts[lease.status] += 1
        return counts


def pods(count: int, seed: int) -> Iterator[Ask]:
    """Yield asks of openb's pods, drawn at random, with time limits of one to 48 hours."""
    rng = np.random.default_rng(seed)
    rows = openb("pod_list_default")
    for position in rng.integers(len(rows), size=count):
        row = rows[position]
        yield Ask(
            Shape(1, int(row["num_gpu"]) * int(row["gpu_milli"])),
            cpus=-(-int(row["cpu_milli"]) // MILLI),
            memory_bytes=int(row["memory_mib"]) * 1024**2,
            duration_ms=int(rng.integers(1, 49)) * HOUR_MS,
        )


async def fill(bench: Bench, waiting: int) -> Figures:
    """Fill the empty farm."""
    queue = bench.leases("pod", pods(waiting + FITTING, bench.seed))
    await add(bench.farm.store, leases=queue)
    granted, granted_s, granted_cpu_s, counts = 0, 0.0, 0.0, {LeaseStatus.WAITING: 0}
    for _ in range(50):
        await bench.step()
        counts = await bench.counted()
        if len(queue) - counts[LeaseStatus.WAITING] > granted:
            granted = len(queue) - counts[LeaseStatus.WAITING]
            granted_s, granted_cpu_s = bench.seconds, bench.cpu_seconds
        elif counts[LeaseStatus.ACTIVE] == granted:
            break
    return {
        "granted": granted,
        "left_waiting": counts[LeaseStatus.WAITING],
        "granted_per_s": granted / granted_s,
        "granted_per_cpu_s": granted / granted_cpu_s,
        "active_per_s": granted / bench.seconds,
        "active_per_cpu_s": granted / bench.cpu_seconds,
    }


async def beside(bench: Bench, waiting: int) -> Figures:
    """Let small leases come, a thousand a step, while large ones wait for whole hosts."""
    farm = bench.farm
    hosts = list(farm.hosts.hosts.values())
    now_ms = farm.clock.now_ms()
    asks = [Ask(Shape(1, MILLI), 1, GIB, (48 + number % 48) * HOUR_MS) for number in range(len(hosts))]
    taken = []
    for host, lease in zip(hosts, bench.leases("taken", asks), strict=True):
        piece = Slice(lease.id, 0, host.id, (0,), MILLI, 1, GIB)
        labels = {"lease": lease.id}
        await farm.hosts.start_node(
            piece, tenant=lease.tenant, epoch=farm.steward.epoch, labels=labels, env={}
        )
        taken.append(
            replace(
                lease,
                status=LeaseStatus.ACTIVE,
                slices=(replace(piece, node_id=f"ray-{piece.name}", isolation="fake"),),
                grade=Grade.SIMULATED,
                granted_ms=now_ms,
                started_ms=now_ms,
                ends_ms=now_ms + lease.ask.duration_ms,
                segment=1,
            )
        )
    most = max(len(host.gpus) for host in hosts)
    whole = Ask(Shape(1, most * MILLI), cpus=most, memory_bytes=most * GIB, duration_ms=24 * HOUR_MS)
    await add(farm.store, leases=taken)
    await add(farm.store, leases=bench.leases("large", [whole] * waiting))
    await bench.step()  # which tells all of them why they wait
    bench.cpu_seconds = 0.0
    idle = [await bench.step() for _ in range(3)]
    idle_cpu_s, bench.cpu_seconds = bench.cpu_seconds / len(idle), 0.0
    rng = np.random.default_rng(bench.seed)
    steps = []
    for number in range(ROUNDS):
        small = [
            Ask(Shape(1, int(milli)), 1, GIB, int(hours) * HOUR_MS)
            for milli, hours in zip(rng.choice(SHARES, ARRIVALS), rng.integers(1, 25, ARRIVALS), strict=True)
        ]
        await add(farm.store, leases=bench.leases(f"small{number}", small))
        steps.append(await bench.step())
    counts = await bench.counted()
    granted = waiting + ROUNDS * ARRIVALS - counts[LeaseStatus.WAITING]
    return {
        "granted": granted,
        "left_waiting": counts[LeaseStatus.WAITING],
        "granted_per_s": granted / sum(steps),
        "granted_per_cpu_s": granted / bench.cpu_seconds,
        "step_with_arrivals_s": median(steps),
        "step_without_s": median(idle),
        "step_without_cpu_s": idle_cpu_s,
    }


SCENES = {"fill": fill, "beside": beside}


async def measure(url: str, scene: str, waiting: int, seed: int) -> Figures:
    """Return what one database does in one scene."""
    bench = await Bench.begin(url, seed)
    try:
        return await SCENES[scene](bench, waiting)
    finally:
        await bench.farm.store.close()


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=SCENES)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    # The server is stopped also when the benchmark is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    runs: dict[tuple[str, str], list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="cf-bench-admit-") as folder, running_postgres() as server:
        make: dict[str, Callable[[str], str]] = {
            "sqlite": lambda name: f"sqlite:///{folder}/{name}.db",
            "postgresql": server.create,
        }
        for run in range(args.runs):
            for scene in args.scenes:
                for database in args.databases:  # in turns: a shared machine's speed drifts
                    url = make[database](f"{scene}{run}")
                    figures = asyncio.run(measure(url, scene, args.waiting, seed=42 + run))
                    runs.setdefault((scene, database), []).append(figures)
    report = {
        " ".join(key): {name: Series.of([run[name] for run in each]) for name in each[0]}
        for key, each in runs.items()
    }
    if args.as_json:
        plain = {key: {name: series.to_json() for name, series in of.items()} for key, of in report.items()}
        print(json.dumps(plain, indent=1))
        return
    for key, figures in report.items():
        for name, series in figures.items():
            print(f"{key:18} {name:22} {series}")


if __name__ == "__main__":
    main()
