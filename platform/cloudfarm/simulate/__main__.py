"""``python -m cloudfarm.simulate tenants --hosts 8 --gpus 8 --load 1.0 --burst --seed 42 --json``."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from cloudfarm.errors import CloudfarmError
from cloudfarm.scheduler.rules import Rules
from cloudfarm.simulate import tenants


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cloudfarm.simulate")
    commands = parser.add_subparsers(dest="command", required=True)
    many = commands.add_parser("tenants", help="many tenants share a farm: waits, shares, what is taken back")
    default, rules = tenants.Setup(), Rules()
    many.add_argument("--hosts", type=int, default=default.hosts)
    many.add_argument("--gpus", type=int, default=default.gpus, help="of each host")
    many.add_argument(
        "--load", type=float, default=default.load, help="GPU-time asked for, as a part of the farm's"
    )
    many.add_argument("--burst", action="store_true", help="one tenant asks for four times its guarantee")
    many.add_argument("--hours", type=float, default=default.hours, help="for so long leases arrive")
    many.add_argument("--seed", type=int, default=default.seed)
    many.add_argument("--min-run-s", type=int, default=rules.min_run_ms // 1000)
    many.add_argument("--notice-s", type=int, default=rules.preempt_notice_ms // 1000)
    many.add_argument("--json", action="store_true")
    asked = parser.parse_args(words)
    setup = tenants.Setup(
        asked.hosts,
        asked.gpus,
        asked.load,
        asked.burst,
        asked.hours,
        asked.seed,
        Rules(min_run_ms=1000 * asked.min_run_s, preempt_notice_ms=1000 * asked.notice_s),
    )
    try:
        report = tenants.run(setup)
    except CloudfarmError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    told = report.as_json()
    sys.stdout.write((json.dumps(told) if asked.json else "\n".join(_lines(told))) + "\n")
    return 0


def _lines(told: Mapping[str, object], indent: str = "") -> Sequence[str]:
    lines: list[str] = []
    for name, value in told.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            lines.append(
                f"{indent}{name:24} {value:.4g}" if isinstance(value, float) else f"{indent}{name:24} {value}"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
