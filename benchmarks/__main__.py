"""Measure the farm against stock Ray and print one table: ``make bench`` runs ``python -m benchmarks``.

Every row is from one run on one machine: both sides in turns (A B A B), medians of several, the least and the most
beside them. The report is written to ``build/bench.json``. ``docs/benchmarks.md`` says what each row means.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import cold_start, databases, jobs, language, layers, nodes, serving
from benchmarks.figures import Machine, Row, print_table
from benchmarks.running_farm import running_farm

REPORT = Path("build") / "bench.json"
SECTIONS = ("nodes", "jobs", "serving", "layers", "store")
ON_DEMAND = ("language", "cold")
"""Measured only when named: `make bench-inference`."""


class Bench:
    """One run of the benchmark."""

    def __init__(self, quick: bool, sections: set[str]) -> None:
        self.quick = quick
        self.sections = sections
        self.machine = Machine()
        self.rows: list[Row] = []
        self.more: dict[str, Any] = {}
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line of progress with the seconds since the start."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def begins(self, section: str) -> bool:
        """Whether a section is wanted; notes how busy the machine is when it begins."""
        if section not in self.sections:
            return False
        self.machine.note_load(section)
        self.say(f"{section} (load average {os.getloadavg()[0]:.1f})")
        return True

    def run(self) -> None:
        """Measure everything that is wanted."""
        if self.sections & {"nodes", "jobs", "serving", *ON_DEMAND}:
            self.say("bringing a farm up")
            with running_farm() as farm:
                if self.begins("nodes"):
                    idle, self.more["idle_farm_mb"] = nodes.idle_memory(farm)
                    self.rows += nodes.measure(farm, 2 if self.quick else 5, self.say) + idle
                if self.begins("jobs"):
                    self.rows += jobs.measure(farm, 2 if self.quick else 5, self.say)
                if self.begins("serving"):
                    turns, requests = (3, 150) if self.quick else (5, 400)
                    rows, self.more["cpu_ms_per_request"] = serving.measure(farm, turns, requests, self.say)
                    self.rows += rows
                if self.begins("language"):
                    rows, more = language.measure(farm, 2 if self.quick else 5, self.say)
                    self.rows += rows
                    self.more.update(more)
                if self.begins("cold"):
                    turns = 2 if self.quick else 5
                    self.more["cold_start_s"] = cold_start.cold_starts(farm, turns, self.say)
                self.say("taking the farm down")
        if self.begins("layers"):
            self.more["front_door_ms"] = layers.measure(100 if self.quick else 400)
        if self.begins("store"):
            turns, leases = (2, 100) if self.quick else (3, 300)
            self.rows += databases.measure(turns, leases, self.say)
        self.machine.note_load("end")

    def report(self) -> None:
        """Print the table and write the report."""
        print_table(self.rows, self.machine)
        for title, parts in self.more.items():
            print(f"\n{title.replace('_', ' ')}:")
            print(json.dumps(parts, indent=1))
        report = {
            "machine": self.machine.to_json(),
            "quick": self.quick,
            "rows": [row.to_json() for row in self.rows],
            **self.more,
            "seconds": round(time.monotonic() - self.began, 1),
        }
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=1) + "\n")
        self.say(f"the report is in {REPORT}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs: under four minutes, wider spread")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS + ON_DEMAND,
        default=SECTIONS,
        metavar="SECTION",
        help=", ".join(SECTIONS + ON_DEMAND),
    )
    asked = parser.parse_args()
    # The farm is taken down also when the benchmark is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    bench = Bench(asked.quick, set(asked.only))
    bench.run()
    bench.report()


if __name__ == "__main__":
    main()
