"""What no packing can exceed on the public benchmark, however often it moves: ``python -m benchmarks.packing_bound``.

GPUs are cut by the cutting-stock linear program (``packing/prices.py``): fractions of GPUs count, and CPUs, memory,
models, nodes and gangs are left out, so no real packing needs fewer GPUs. Two figures for each list and seed, in percent
of the GPUs at 130 % demand:

* perfect: every pod is placed that fits when all placed before may be moved for it, as often as one likes;
* forced: the pods that arrive before our own allocator refuses its first one are placed; the rest is filled with the
  best choice of those that come later, as if they could be picked out.
"""

import argparse
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from statistics import mean

from benchmarks.scheduler import DATA, LISTS, SEEDS
from cloudfarm.scheduler.packing.prices import best_filling
from cloudfarm.simulate.openb import AT_PERCENT
from cloudfarm.simulate.openb_trace import Arrivals, Cluster, PodTuple, read_arrivals, read_nodes, read_pods

WHOLE = 1000


def gpus_for(shares: Counter[int]) -> float:
    """Return how many GPUs shares of these sizes need at least."""
    if not shares:
        return 0.0
    worth = best_filling(dict(shares))
    return sum(number * float(worth[size]) for size, number in shares.items()) / WHOLE


def perfect(cluster: Cluster, pods: list[PodTuple], arrivals: Arrivals) -> float:
    """Return what a packer allocates that may move everything for every pod."""
    capacity = int(cluster.ngpu.sum())
    shares: Counter[int] = Counter()
    whole = allocated = arrived = 0
    sure = 0.0  # by this many GPUs the need is below the capacity, so that it need not be computed anew
    at_mark = []
    for position in arrivals.order.tolist():
        _, _, num, milli, _, _ = pods[position]
        arrived += num * milli
        if num:
            if milli < WHOLE:
                shares[milli] += 1
            else:
                whole += num
            sure -= num
            if sure < 0:
                sure = capacity - whole - gpus_for(shares)
            if sure < -1e-6:
                if milli < WHOLE:
                    shares[milli] -= 1
                else:
                    whole -= num
                sure = 0.0
            else:
                allocated += num * milli
        if round(100 * arrived / cluster.gpu_milli) == AT_PERCENT:
            at_mark.append(allocated)
    return 100 * mean(at_mark) / cluster.gpu_milli


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
            found = []
            for seed in SEEDS[:2] if args.quick else SEEDS:
                order = read_arrivals(
                    folder / f"arrivals_{each}.npz", seed, len(pods), len(cluster.ngpu)
                )
                found.append(perfect(cluster, pods, order))
            print(f"{each:12} perfect {mean(found):.2f} ({min(found):.2f} to {max(found):.2f})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
