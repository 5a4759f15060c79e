"""Measure how good the forecasts of starts are: ``python -m benchmarks.forecast``.

At several loads, a farm of 64 GPUs in simulated time: how many waiting leases start within the interval that they were
told (80 % is stated), how wide it is, and how far off the expected start is, beside two simple ways to foretell it. See
``cloudfarm.simulate.coverage``.
"""

import argparse
import json
import sys
from dataclasses import asdict

from cloudfarm.simulate.coverage import Coverage, report, samples
from cloudfarm.simulate.tenants import Setup

SEEDS = range(42, 52)
CASES = ((0.8, False), (1.0, False), (1.3, False), (1.0, True))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many of each load, at most 10")
    parser.add_argument("--hours", type=float, default=4.0, help="for so long leases arrive")
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    told = {}
    for load, burst in CASES:
        name = f"load {load}{', one tenant bursting' if burst else ''}"
        told[name] = report(
            [
                sample
                for seed in SEEDS[: args.seeds]
                for sample in samples(Setup(load=load, burst=burst, hours=args.hours, seed=seed))
            ]
        )
        if not args.as_json:
            print(f"{name}:", *(line(part, each) for part, each in told[name].items()), sep="\n", flush=True)
    if args.as_json:
        print(
            json.dumps({name: {part: asdict(each) for part, each in of.items()} for name, of in told.items()})
        )
    return 0


def line(part: str, of: Coverage) -> str:
    """Return a row for people."""
    return (
        f"  {part:20}{of.samples:6} told, wait {of.wait_mean_s:6.0f} s   within {100 * of.covered:3.0f} %"
        f" (early {100 * of.too_early:2.0f}, late {100 * of.too_late:2.0f})"
        f"   width {of.width_p50_s:6.0f} s = {of.width_of_wait_p50:.1f} waits"
        f"   off by {of.error_mean_s:5.0f} s, with limits as run times {of.limits_error_mean_s:5.0f} s;"
        f" of {of.booked} booked {of.booked_expected_error_mean_s:5.0f} s,"
        f" by the latest start {of.booked_error_mean_s:6.0f} s (kept {100 * of.booked_kept:3.0f} %)"
    )


if __name__ == "__main__":
    sys.exit(main())
