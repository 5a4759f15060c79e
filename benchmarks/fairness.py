"""Measure fairness under the live queue, in simulated time: ``python -m benchmarks.fairness``.

The table of docs/scheduling.md: loads 0.8, 1.0 and 1.3, stationary and with one tenant asking for four times its
guarantee, ten seeds each; 8 hosts of 8 GPUs, four hours. What each figure is: ``cloudfarm.simulate.measures``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from statistics import mean

from cloudfarm.scheduler.rules import Rules
from cloudfarm.simulate.measures import LEAST_DELAY_S
from cloudfarm.simulate.tenants import HOUR_MS, Report, Setup, run

LOADS = 0.8, 1.0, 1.3
SEEDS = range(42, 52)
HOURS = 4
SECOND_MS = 1000

Reports = Sequence[Report]


def setups(rules: Rules) -> Iterator[Setup]:
    """Yield one setup for each column of the table."""
    for load in LOADS:
        for burst in (False, True):
            yield Setup(load=load, burst=burst, hours=HOURS, rules=rules)


def measure(setup: Setup, seeds: Sequence[int]) -> Iterator[Report]:
    """Run a setup under every seed, and say on standard error how long each took."""
    for seed in seeds:
        began_s = time.perf_counter()
        yield run(replace(setup, seed=seed))
        took_s = time.perf_counter() - began_s
        print(f"{name(setup)}, seed {seed}: {took_s:.1f} s", file=sys.stderr, flush=True)


def name(setup: Setup) -> str:
    """Return what a column is called."""
    return f"{setup.load}{' burst' if setup.burst else ''}"


def harms(reports: Reports) -> list[float]:
    """Return by how many seconds each tenant's mean wait is longer than alone."""
    return [
        each.wait_mean_s - each.private_wait_mean_s
        for report in reports
        for each in report.measures.tenants.values()
    ]


def notice_s(reports: Reports) -> float:
    """Return how long borrowers are told before they go."""
    return reports[0].setup.rules.preempt_notice_ms / SECOND_MS


def lost(report: Report) -> float:
    """Return the GPU-time that was lost by preemptions, as a part of what was used."""
    setup = report.setup
    used_gpu_s = report.measures.utilisation * setup.hosts * setup.gpus * setup.hours * HOUR_MS / SECOND_MS
    return report.measures.lost_gpu_s / used_gpu_s


def both(unit: str, numbers: Sequence[float], summary: Callable[[Sequence[float]], float]) -> str:
    """Return the mean of numbers and another summary of them."""
    return f"{mean(numbers):{unit}}, {summary(numbers):{unit}}"


ROWS: dict[str, Callable[[Reports], str]] = {
    "mean wait of a tenant, s": lambda reports: (
        f"{mean(each.wait_mean_s for report in reports for each in report.measures.tenants.values()):.0f}"
    ),
    "in its private farm, s": lambda reports: (
        f"{mean(each.private_wait_mean_s for report in reports for each in report.measures.tenants.values()):,.0f}"
    ),
    "tenants whose mean wait is > 1 s longer than there": lambda reports: (
        f"{sum(report.measures.wait_violations for report in reports)} of {len(harms(reports))}"
    ),
    "by how much, worst, s": lambda reports: f"{max(0.0, *harms(reports)):.0f}",
    "of them by more than the notice": lambda reports: (
        f"{sum(each > max(LEAST_DELAY_S, notice_s(reports)) for each in harms(reports))}"
    ),
    "worst extra of one lease, s": lambda reports: (
        f"{max(each.worst_extra_s for report in reports for each in report.measures.tenants.values()):,.0f}"
    ),
    "within-guarantee request to start, p99, worst seed, s": lambda reports: (
        f"{max(report.measures.within_p99_s for report in reports):.0f}"
    ),
    "reclaim after the deadline, p99: mean of seeds, worst seed, s": lambda reports: both(
        ".1f", [report.measures.after_deadline_p99_s for report in reports], max
    ),
    "preemptions; reclaims": lambda reports: (
        f"{sum(report.measures.preemptions for report in reports)}; "
        f"{sum(report.measures.reclaims for report in reports)}"
    ),
    "GPU-time lost, of what was used": lambda reports: f"{mean(map(lost, reports)):.2%}",
    "fair-share error: mean, p99": lambda reports: (
        f"{mean(report.measures.share_error_mean for report in reports):.1%}, "
        f"{mean(report.measures.share_error_p99 for report in reports):.0%}"
    ),
    "fair-share error, worst window": lambda reports: (
        f"{max(report.measures.share_error_worst for report in reports):.0%}"
    ),
    "unavoidable with whole leases: mean, p99, worst": lambda reports: (
        f"{mean(report.measures.unavoidable_mean for report in reports):.1%}, "
        f"{mean(report.measures.unavoidable_p99 for report in reports):.0%}, "
        f"{max(report.measures.unavoidable_worst for report in reports):.0%}"
    ),
    "guarantee shortfall, worst window": lambda reports: (
        f"{max(report.measures.shortfall_worst for report in reports):.0%}"
    ),
    "the same in the private farms": lambda reports: (
        f"{max(report.measures.private_shortfall_worst for report in reports):.0%}"
    ),
    "Jain index, worst seed": lambda reports: f"{min(report.measures.jain for report in reports):.3f}",
    "utilisation while leases arrive": lambda reports: (
        f"{mean(report.measures.utilisation for report in reports):.3f}"
    ),
    "GPU-time idle though a waiting lease would fit": lambda reports: (
        f"{mean(report.measures.idle_part for report in reports):.2%}"
    ),
}
"""Of several seeds: sums for counts, the worst for "worst", means otherwise."""


def table(columns: Sequence[Reports]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    heads = [name(reports[0].setup) for reports in columns]
    yield f"| load | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for label, cell in ROWS.items():
        yield f"| {label} | {' | '.join(cell(reports) for reports in columns)} |"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two seeds")
    parser.add_argument("--json", action="store_true", dest="as_json", help="every run, as one JSON list")
    parser.add_argument(
        "--spare-gpus", type=int, default=0, help="what borrowers leave free (Rules.spare_gpus)"
    )
    parser.add_argument("--notice-s", type=int, default=60, help="how long before borrowers are told to go")
    parser.add_argument("--min-run-s", type=int, default=300, help="how long a borrower runs at least")
    parser.add_argument("--moves", type=int, default=0, help="how many may move at once (Rules.moves)")
    args = parser.parse_args()
    seeds = SEEDS[:2] if args.quick else SEEDS
    rules = Rules(
        min_run_ms=args.min_run_s * SECOND_MS,
        preempt_notice_ms=args.notice_s * SECOND_MS,
        spare_gpus=args.spare_gpus,
        moves=args.moves,
    )
    columns = [list(measure(setup, seeds)) for setup in setups(rules)]
    if args.as_json:
        print(json.dumps([asdict(report) for reports in columns for report in reports], indent=1))
    else:
        print(*table(columns), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
