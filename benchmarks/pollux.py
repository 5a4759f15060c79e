"""Replay the workloads of Pollux's artifact under Tiresias: ``python -m benchmarks.pollux``.

Prints the mean completion time of workload-6, 3469.69 s as published, and with ``--all`` those of all 32 workloads;
beside each the published mean, and how many jobs complete at another second than published. Exits with 1 if any does.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudfarm.simulate.pollux.files import ArtifactFiles
from cloudfarm.simulate.pollux.replay import Outcome, replay
from cloudfarm.simulate.pollux.tiresias import Tiresias

DATA = Path(__file__).parent / "data" / "pollux" / "osdi21-artifact.zip"
WORKLOAD = "workloads/workload-6.csv"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One workload, replayed and as published."""

    workload: str
    outcome: Outcome
    published_s: dict[str, int]
    """By job: seconds from submission to completion."""
    took_s: float

    @property
    def published_mean_s(self) -> float:
        """The published mean completion time in seconds."""
        return sum(self.published_s.values()) / len(self.published_s)

    @property
    def differing(self) -> list[str]:
        """The jobs that complete at another second than published, or of which nothing was published."""
        return [
            job.submission.name
            for job in self.outcome.jobs
            if self.published_s.get(job.submission.name) != job.completion_s
        ]


def every_workload(files: ArtifactFiles) -> list[str]:
    """Return all workloads of which results were published."""
    return files.names("workloads/*.csv") + files.names("workloads-[012].?/*.csv")


def compare(files: ArtifactFiles, workloads: list[str]) -> Iterator[Comparison]:
    """Replay workloads under Tiresias, each beside its published completion times."""
    for workload in workloads:
        began = time.perf_counter()
        outcome = replay(files, workload, Tiresias())
        took_s = time.perf_counter() - began
        folder, _, name = workload.partition("/")
        load = folder.partition("-")[2] or "1.0"
        summary = json.loads(files.text(f"results-jobload/tiresias-{load}/summary.json"))
        yield Comparison(workload, outcome, summary["jcts"][name.removesuffix(".csv")], took_s)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pollux", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=DATA, help="the artifact's simulator folder, or a zip of it"
    )
    parser.add_argument("--all", action="store_true", help="all 32 workloads instead of workload-6")
    parser.add_argument("--json", action="store_true", help="one JSON object for each workload")
    asked = parser.parse_args()
    files = ArtifactFiles(asked.data)
    if not asked.json:
        print(
            f"{'mean completion, s':28} {'here':>10} {'published':>10} {'jobs':>5} {'other':>6} {'took, s':>8}"
        )
    differing = 0
    for each in compare(files, every_workload(files) if asked.all else [WORKLOAD]):
        differing += len(each.differing)
        if asked.json:
            row = {
                "workload": each.workload,
                "mean_completion_s": each.outcome.mean_completion_s,
                "published_s": each.published_mean_s,
                "jobs": len(each.outcome.jobs),
                "differing": each.differing,
                "rounds": each.outcome.rounds,
                "events": each.outcome.events,
                "took_s": round(each.took_s, 3),
            }
            print(json.dumps(row))
        else:
            print(
                f"{each.workload:28} {each.outcome.mean_completion_s:10.2f} {each.published_mean_s:10.2f} "
                f"{len(each.outcome.jobs):5} {len(each.differing):6} {each.took_s:8.2f}"
            )
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
