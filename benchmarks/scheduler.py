"""Measure the allocator on the public packing benchmark: ``python -m benchmarks.scheduler``.

Each of the four lists, ten seeds each, beside the published runs of FGD on the very same arrivals: what is allocated
of all GPUs when 130 % have been asked for, and what a decision costs. Exits with 1 if a run is below FGD's.

``--moves 0.01`` is another protocol: when a pod fits nowhere, others may be moved for it, at most so large a part of
those placed, and each once. It takes minutes.
"""

import argparse
import csv
import json
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from cloudfarm.simulate.openb import Replay, simulate

DATA = Path(__file__).parent / "data" / "openb" / "openb.zip"
LISTS = ("default", "cpu100", "gpushare40", "multigpu20")
SEEDS = range(42, 52)


@dataclass(frozen=True, slots=True)
class Row:
    """One list over several seeds."""

    name: str
    runs: Sequence[Replay]
    fgd: Sequence[float]
    """Published, in percent, by the same seeds."""

    @property
    def differences(self) -> list[float]:
        """Percentage points above FGD, seed by seed."""
        return [run.allocated_percent - fgd for run, fgd in zip(self.runs, self.fgd, strict=True)]


def measure(folder: Path, name: str, seeds: Sequence[int], moves: float = 0.0) -> Row:
    """Replay one list; with ``moves`` it is not the published protocol."""
    pods, arrivals = folder / f"openb_pod_list_{name}.csv", folder / f"arrivals_{name}.npz"
    nodes = folder / "openb_node_list_gpu_node.csv"
    return Row(
        name,
        [simulate(nodes, pods, seed, arrivals, moves) for seed in seeds],
        [published(folder / "published_allocation.csv", name, seed) for seed in seeds],
    )


def published(path: Path, name: str, seed: int) -> float:
    """Return what FGD was published to allocate at 130 % demand."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["workload"], row["seed"]) == (f"openb_pod_list_{name}", str(seed)) and "FGD" in row[
                "sc_policy"
            ]:
                return float(row["130"])
    raise LookupError(f"{path} has no run of FGD on {name} with seed {seed}")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds of each list")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--moves", type=float, default=0.0, help="part of the pods that may be moved")
    args = parser.parse_args()
    seeds = SEEDS[:2] if args.quick else SEEDS
    rows = []
    with tempfile.TemporaryDirectory(prefix="cf-openb-") as folder, zipfile.ZipFile(DATA) as data:
        data.extractall(folder)  # our own file
        for name in LISTS:
            rows.append(measure(Path(folder), name, seeds, args.moves))
            if not args.as_json:
                print(line(rows[-1]), flush=True)
    if args.as_json:
        print(json.dumps([as_dict(row) for row in rows], indent=1))
    return int(any(difference < 0 for row in rows for difference in row.differences))


def line(row: Row) -> str:
    """Return a row for people."""
    ours, numbers = [run.allocated_percent for run in row.runs], as_dict(row)
    return (
        f"{row.name:12}{mean(ours):7.2f} % (sd {stdev(ours):.2f})   FGD {mean(row.fgd):6.2f} %   "
        f"difference {min(row.differences):+.2f} to {max(row.differences):+.2f}   "
        f"failed {numbers['failed']:.0f}   {numbers['mean_us']:.0f} us mean, {numbers['p99_us']:.0f} us p99"
    ) + (f"   {numbers['moved']:.1f} moved" if numbers["moved"] else "")


def as_dict(row: Row) -> dict[str, object]:
    """Return a row for programs."""
    return {
        "list": row.name,
        "allocated_percent": [run.allocated_percent for run in row.runs],
        "fgd_percent": list(row.fgd),
        "failed": mean(run.failed for run in row.runs),
        "moved": mean(run.moved for run in row.runs),
        "mean_us": mean(run.mean_us for run in row.runs),
        "p99_us": mean(run.p99_us for run in row.runs),
    }


if __name__ == "__main__":
    sys.exit(main())
