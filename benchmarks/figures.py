"""Figures: several runs of one thing, two things side by side, and the table of them."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Series:
    """The same thing measured several times."""

    runs: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[float]) -> "Series":
        """Keep the runs in the order in which they were made."""
        return cls(tuple(round(run, 4) for run in runs))

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.runs)

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(min(self.runs))}-{_short(max(self.runs))})"

    def to_json(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {"median": self.median, "min": min(self.runs), "max": max(self.runs), "runs": self.runs}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ours beside stock Ray's, or ours alone."""

    section: int
    name: str
    unit: str
    ours: Series
    stock: Series | None = None
    lower_is_better: bool = True
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over stock's, of the medians."""
        return None if self.stock is None else round(self.ours.median / self.stock.median, 3)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over stock's of each pair, where both were measured as often, in turns."""
        if self.stock is None or len(self.ours.runs) != len(self.stock.runs):
            return ()
        return tuple(
            round(ours / stock, 3) for ours, stock in zip(self.ours.runs, self.stock.runs, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {
            "section": self.section,
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours.to_json(),
            "stock": None if self.stock is None else self.stock.to_json(),
            "ratio": self.ratio,
            "ratios": self.ratios,
            "lower_is_better": self.lower_is_better,
            "note": self.note,
        }


@dataclass(slots=True)
class Machine:
    """Where and when it was measured, and how busy the machine was with other things as well."""

    cpus: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    memory_gb: float = field(default_factory=lambda: round(psutil.virtual_memory().total / 1e9, 1))
    python: str = field(default_factory=platform.python_version)
    ray: str = field(default_factory=lambda: version("ray"))
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    load_average: dict[str, float] = field(default_factory=dict)
    """Processes that ran or waited to run, over the last minute, at the start of each section and at the end."""

    def note_load(self, when: str) -> None:
        """Remember the load average of now."""
        self.load_average[when] = round(os.getloadavg()[0], 2)

    def to_json(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return asdict(self)


def print_table(rows: Sequence[Row], machine: Machine) -> None:
    """Print every row, and what is to be known of the machine."""
    loads = ", ".join(f"{when} {load}" for when, load in machine.load_average.items())
    print(f"\n{machine.began}  {machine.cpus} CPUs, {machine.memory_gb} GB, Ray {machine.ray}")
    print(f"load average: {loads}\n")
    print(f"{'median (min-max)':58} {'unit':9} {'farm':>24} {'stock Ray':>24} {'ratio':>7}")
    section = 0
    for row in rows:
        if row.section != section:
            section = row.section
            print("-" * 126)
        stock = "" if row.stock is None else str(row.stock)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        label = f"{row.section}  {row.name}"
        print(f"{label:58} {row.unit:9} {row.ours!s:>24} {stock:>24} {ratio:>7}")
        if row.note:
            print(f"     {row.note}")


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval in which the median of what was drawn from lies, in 95 of 100 cases, whatever it is.

    It is the one between two order statistics that the sign test gives, by the normal approximation of the binomial
    distribution (Conover, Practical Nonparametric Statistics, 3.2).
    """
    ordered, count = sorted(values), len(values)
    left_out = max(0, int(count / 2 - 0.98 * count**0.5))
    return ordered[left_out], ordered[count - 1 - left_out]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least so large a share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def _short(value: float) -> str:
    if value >= 100:  # noqa: PLR2004 - three digits say enough
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004
