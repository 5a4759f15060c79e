"""What the power-aware term of placement costs and saves: ``python -m benchmarks.power``.

The public packing benchmark's ``default`` list under several weights: what is allocated at 130 % demand, and what the
nodes take while the demand grows, by the estimate of ``packing/power.py`` (a node on which nothing lies is off). All
weights place the same pods until the first one fails, so until then the watts can be compared.
"""

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.scheduler import DATA, SEEDS
from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing import Node
from cloudfarm.scheduler.packing.power import Power
from cloudfarm.simulate.openb import Choice, ReplayPolicy, as_arrays, replay
from cloudfarm.simulate.openb_trace import (
    Arrivals,
    Cluster,
    Ints,
    PodTuple,
    read_arrivals,
    read_nodes,
    read_pods,
)

WEIGHTS = 0.0, 0.1, 0.3, 1.0, 3.0
MARKS = 10, 25, 50, 75, 90
"""Arrived demand in percent of the GPUs."""


@dataclass(slots=True)
class Metered:
    """A policy whose watts are read at the marks."""

    policy: ReplayPolicy
    power: Power
    capacity: int
    watts: list[float] = field(default_factory=list)
    _arrived: int = 0

    @classmethod
    def of(cls, cluster: Cluster, order: Arrivals, weight: float) -> "Metered":
        """Return the farm's policy with a weight."""
        policy = ReplayPolicy(as_arrays(cluster, order), np.random.default_rng(0), weight)
        nodes = [
            Node(
                int(cluster.cpu[each]),
                int(cluster.mem[each]),
                (str(cluster.model[each]),) * int(cluster.ngpu[each]),
            )
            for each in np.argsort(order.rank, kind="stable")
        ]
        return cls(policy, Power.of(nodes), cluster.gpu_milli)

    def pick(self, pod: PodTuple, feasible_node_ids: Ints) -> Choice | None:
        """Place a pod, and read the watts if that passes a mark."""
        choice = self.policy.pick(pod, feasible_node_ids)
        self._arrived += pod[2] * pod[3]
        if len(self.watts) < len(MARKS) and 100 * self._arrived >= MARKS[len(self.watts)] * self.capacity:
            allocator = self.policy.allocator
            whole = (allocator.free_gpu == MILLI).sum(axis=1)
            self.watts.append(self.power.total(allocator.free_beside[0], whole))
        return choice


def measure(folder: Path, weight: float, seeds: Sequence[int]) -> str:
    """Return a row for people."""
    cluster, pods = (
        read_nodes(folder / "openb_node_list_gpu_node.csv"),
        read_pods(folder / "openb_pod_list_default.csv"),
    )
    runs, watts = [], []
    for seed in seeds:
        order = read_arrivals(folder / "arrivals_default.npz", seed, len(pods), len(cluster.ngpu))
        policy = Metered.of(cluster, order, weight)
        runs.append(replay(cluster, pods, order, policy))
        watts.append(policy.watts)
    kilowatts = "  ".join(f"{mean(each) / 1000:7.1f}" for each in zip(*watts, strict=True))
    return (
        f"weight {weight:<5}{mean(run.allocated_percent for run in runs):7.2f} %   kW at demand {kilowatts}   "
        f"{mean(run.mean_us for run in runs):.0f} us mean, {mean(run.p99_us for run in runs):.0f} us p99"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cf-openb-") as folder, zipfile.ZipFile(DATA) as data:
        data.extractall(folder)  # our own file
        print(f"{'':21}kW at a demand of {', '.join(map(str, MARKS))} %")
        for weight in WEIGHTS:
            print(measure(Path(folder), weight, SEEDS[:2] if args.quick else SEEDS), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
