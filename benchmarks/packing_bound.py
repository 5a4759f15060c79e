"""What moving could reach at most on the public packing benchmark: ``python -m benchmarks.packing_bound``.

GPUs are cut by the cutting-stock linear program of ``packing/prices.py``: fractions of GPUs count as such, and CPUs,
memory, models, nodes and gangs are left out, so no real packing needs fewer GPUs. For each list, in percent of the GPUs
at 130 % demand:

* ``perfect``: every pod is placed that fits once all pods placed before it were moved for it, as often as one likes;
* ``bound``: whatever is placed, if only those pods are that arrive before the farm's allocator refuses its first. What
  comes later may be picked out at will. By weak duality: what is added to them is worth, at the program's prices, no
  more than the GPUs that they leave; so it is filled up with what is largest for its price.
"""

import argparse
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.scheduler import DATA, LISTS, SEEDS
from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing.prices import Floats, best_filling
from cloudfarm.simulate.openb import AT_PERCENT, ReplayPolicy, Truth, as_arrays
from cloudfarm.simulate.openb_trace import Arrivals, Cluster, PodTuple, read_arrivals, read_nodes, read_pods

EPSILON = 1e-6


def prices_of(sizes: Counter[int]) -> Floats:
    """Return the price in GPUs of every size: the dual of cutting these sizes out of GPUs."""
    return best_filling({size: number for size, number in sizes.items() if number}) / MILLI


def needed(sizes: Counter[int]) -> float:
    """Return how many GPUs these sizes need at least."""
    prices = prices_of(sizes)
    return sum(number * float(prices[size]) for size, number in sizes.items())


def perfect(cluster: Cluster, pods: list[PodTuple], arrivals: Arrivals) -> float:
    """Return what a packer allocates that may move everything for every pod."""
    sizes: Counter[int] = Counter()
    at_mark: list[int] = []
    arrived = allocated = 0
    left = 0.0  # so many GPUs are free at least
    for position in arrivals.order.tolist():
        num, milli = pods[position][2:4]
        arrived += num * milli
        if num:
            sizes[milli] += num
            left -= num
            if left < 0:
                left = int(cluster.ngpu.sum()) - needed(sizes)
            if left < -EPSILON:
                sizes[milli] -= num
                left = 0.0
            else:
                allocated += num * milli
        if round(100 * arrived / cluster.gpu_milli) == AT_PERCENT:
            at_mark.append(allocated)
    return 100 * mean(at_mark) / cluster.gpu_milli


def bound(cluster: Cluster, pods: list[PodTuple], arrivals: Arrivals) -> tuple[float, float]:
    """Return the demand at which the farm refuses its first pod, and the bound that follows."""
    policy = ReplayPolicy(as_arrays(cluster, arrivals), np.random.default_rng(0))
    truth, sizes, order = Truth(cluster), Counter[int](), arrivals.order.tolist()
    first = len(order)
    for number, position in enumerate(order):
        pod = pods[position]
        feasible = truth.feasible(pod)
        choice = policy.pick(pod, feasible)
        if choice is None:
            first = number
            break
        truth.place(pod, choice, feasible)
        sizes[pod[3]] += pod[2]
    forced = sum(size * number for size, number in sizes.items())
    prices = prices_of(sizes)
    left = int(cluster.ngpu.sum()) - needed(sizes)
    later = Counter[int]()
    for position in order[first:]:
        later[pods[position][3]] += pods[position][2]
    added = 0.0
    for size in sorted(filter(None, later), key=lambda size: float(prices[size]) / size):
        price = float(prices[size])
        number = later[size] if price < EPSILON else min(later[size], max(0.0, left) / price)
        left -= number * price
        added += number * size
    demand = sum(pods[position][2] * pods[position][3] for position in order[: first + 1])
    return 100 * demand / cluster.gpu_milli, 100 * (forced + added) / cluster.gpu_milli


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds of each list")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cf-openb-") as name, zipfile.ZipFile(DATA) as data:
        data.extractall(name)  # our own file
        folder = Path(name)
        cluster = read_nodes(folder / "openb_node_list_gpu_node.csv")
        for each in LISTS:
            pods = read_pods(folder / f"openb_pod_list_{each}.csv")
            seeds = SEEDS[:2] if args.quick else SEEDS
            file = folder / f"arrivals_{each}.npz"
            orders = [read_arrivals(file, seed, len(pods), len(cluster.ngpu)) for seed in seeds]
            best = [perfect(cluster, pods, order) for order in orders]
            firsts, bounds = zip(*(bound(cluster, pods, order) for order in orders), strict=True)
            print(
                f"{each:12}first refused at {mean(firsts):.2f} % demand   perfect {mean(best):.2f} %   "
                f"bound {mean(bounds):.2f} % (at most {max(bounds):.2f})",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
