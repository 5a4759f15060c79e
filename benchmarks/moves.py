"""What moving jobs to make room wins on a farm, and what it costs: ``python -m benchmarks.moves``.

The made-up workload of ``cloudfarm simulate tenants`` under the live queue: the minutes in which a lease, from its
arrival to its end, did not run or did again what it had done, of all leases and of those of four GPUs or more; how many
were moved and preempted; and the GPU-hours that were lost.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np

from cloudfarm.domain.quantities import GIB, MILLI
from cloudfarm.domain.quota import Amounts, Quota, QuotaTree
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.simulate.tenants import CPUS_PER_GPU, GIB_PER_GPU, Setup, farm, shares, workload
from cloudfarm.simulate.world import World
from cloudfarm.steward.view import Decisions, FarmView, Preempt

SEEDS = range(42, 52)
LARGE = 4 * MILLI
MINUTE_MS, HOUR_MS = 60_000, 3_600_000


def measure(setup: Setup) -> Sequence[float]:
    """Return one simulation's figures."""
    hosts, parts = farm(setup), shares(setup.hosts)
    gpus = {tenant: setup.gpus * count for tenant, count in parts.items()}
    tree = QuotaTree.of(
        Quota(
            tenant,
            guarantee=Amounts(MILLI * of, CPUS_PER_GPU * of, GIB_PER_GPU * GIB * of),
            weight=parts[tenant],
        )
        for tenant, of in gpus.items()
    )
    admit = fair(setup.rules, lambda _: tree)
    moved = preempted = 0

    def counted(view: FarmView) -> Decisions:
        nonlocal moved, preempted
        decisions = admit(view)
        going = [each for each in decisions if isinstance(each, Preempt)]
        moved += sum(bool(each.room) for each in going)
        preempted += sum(not each.room for each in going)
        return decisions

    world = World(hosts, tree, counted, wake=partial(next_look_ms, rules=setup.rules, tree=tree))
    world.run(workload(setup, parts))
    stories = list(world.stories.values())
    idle = np.array([each.idle_ms for each in stories]) / MINUTE_MS
    millis = np.array([each.work.ask.shape.total_milli_gpus for each in stories])
    lost = np.array([each.lost_ms for each in stories]) @ millis / MILLI / HOUR_MS
    large = idle[millis >= LARGE]
    return idle.mean(), large.mean(), float(np.percentile(large, 95)), moved, preempted, lost


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds")
    args = parser.parse_args()
    for load in (0.8, 1.0):
        for moves in (0, 2, 4):
            rules = Rules(moves=moves)
            setups = [Setup(load=load, hours=6, seed=seed, rules=rules) for seed in SEEDS]
            rows = [measure(setup) for setup in (setups[:2] if args.quick else setups)]
            mean, large, worst, moved, preempted, lost = np.array(rows).mean(axis=0)
            print(
                f"load {load}  moves {moves}   {mean:.2f} min, of 4 GPUs or more {large:.1f} (p95 {worst:.0f})   "
                f"{moved:.1f} moved, {preempted:.1f} preempted, {lost:.2f} GPU-hours lost",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
