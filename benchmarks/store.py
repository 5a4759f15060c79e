"""What the store does in a second, on each database.

    python benchmarks/store.py sqlite:////tmp/bench.db postgresql://cloudfarm@/bench?host=/run/pg --json

The databases are migrated and filled; what is in them stays. Without a URL, SQLite in a temporary folder. A
unit of work adds one lease, or makes one status change as the steward makes it: check the epoch, read the
lease, store lease and event, commit. ``--writers`` such units are always under way, as the decisions of the
steward and the requests of the API are.
"""

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "platform"))

from cloudfarm.domain.status import LeaseStatus, transition
from cloudfarm.domain.tenant import Tenant
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.store import SqlStore, migrate
from cloudfarm.testing.factories import add, keep, look, make_lease

STEPS = (LeaseStatus.STARTING, LeaseStatus.ACTIVE, LeaseStatus.ENDING, LeaseStatus.ENDED)


async def per_second(writers: int, unit: Callable[[str], Awaitable[None]], names: Sequence[str]) -> float:
    """Run a unit of work for each name, ``writers`` at once, and return how many were done in a second."""
    left = iter(names)

    async def work() -> None:
        for name in left:
            await unit(name)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(writers)))
    return len(names) / (time.perf_counter() - begun)


async def change(store: Store, epoch: int, status: LeaseStatus, lease_id: str) -> None:
    """Make one status change as the steward makes it."""

    async def work(uow: UnitOfWork) -> None:
        await uow.check_epoch(epoch)
        await uow.apply(transition(await uow.leases.get(lease_id), status, now_ms=1))

    await keep(store, work)


async def measure(url: str, leases: int, writers: int) -> dict[str, float]:
    """Return what one database does."""
    await migrate(url)
    store = await SqlStore.open(url)
    run = secrets.token_hex(4)
    await add(store, tenants=[Tenant(run, "", 1)])
    epoch = await keep(store, lambda uow: uow.take_epoch())
    names = [f"{run}-{number}" for number in range(leases)]

    async def add_one(name: str) -> None:
        await add(store, leases=[make_lease(name, run)])

    async def read_one(name: str) -> None:
        await look(store, lambda uow: uow.leases.get(name))

    figures = {"leases_added_per_s": await per_second(writers, add_one, names)}
    begun = time.perf_counter()
    found = await look(store, lambda uow: uow.leases.list(open_only=True))
    figures["open_leases_read_per_s"] = len(found) / (time.perf_counter() - begun)
    figures["reads_of_one_per_s"] = await per_second(writers, read_one, names)
    rates = [await per_second(writers, partial(change, store, epoch, step), names) for step in STEPS]
    figures["transitions_per_s"] = len(rates) / sum(1 / rate for rate in rates)
    await store.close()
    return {name: round(figure, 1) for name, figure in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="*")
    parser.add_argument("--leases", type=int, default=500)
    parser.add_argument("--writers", type=int, default=[1, 16], nargs="+")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="cloudfarm-bench-") as folder:
        for url in asked.url or [f"sqlite:///{folder}/farm.db"]:
            for writers in asked.writers:
                figures = asyncio.run(measure(url, asked.leases, writers))
                results.append({"database": url.split(":", 1)[0], "writers": writers, **figures})
    if asked.json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
