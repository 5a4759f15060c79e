"""What became of leases, in the past or in a replay of it, as figures and curves that can be laid side by side.

All figures are of one window of time. A lease that has not started, or is not done, when the window ends counts as
having waited, or taken, until then: so the same leases are compared, whatever became of them.

*Wait*: from when a lease could have started to its first start, or to when it was given up. *Completion*: from then to
its end, of leases whose run time is known. Both are of leases that arrived in the window. *Utilisation*: GPU-time held,
as a part of the farm's. *Idle though wanted*: GPU-time that nobody held while as much was waited for, whatever kept the
waiting ones (a gang larger than what is free, a limit, room kept for another), as a part of the farm's.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.quantities import MILLI

HOUR_MS = 3_600_000

Numbers = npt.NDArray[np.float64]
Moments = npt.NDArray[np.int64]
Piece = tuple[int, int, int]
"""From when to when, and how many milli-GPUs."""


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when the farm is looked at."""

    from_ms: int
    until_ms: int

    def cut(self, segments: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return what of some segments lies within."""
        cut = ((max(start, self.from_ms), min(end, self.until_ms)) for start, end in segments)
        return tuple((start, end) for start, end in cut if start < end)

    def has(self, at_ms: int) -> bool:
        """Whether something that ended at a moment ended within."""
        return self.from_ms < at_ms <= self.until_ms


@dataclass(frozen=True, slots=True)
class Course:
    """What became of one lease within a window."""

    id: str
    tenant: str
    milli_gpus: int
    asked_ms: int
    """From when it could have started."""
    segments: tuple[tuple[int, int], ...]
    """From when to when it ran."""
    over_ms: int | None
    """When it ended or was given up; None if it was still there when the window ended."""
    is_new: bool
    """Whether it arrived within the window."""
    is_known: bool
    """Whether its run time is known."""
    preempted: int = 0
    """How often it was stopped and had to wait anew."""
    lost_ms: int = 0
    """What it did twice because of that."""

    def gaps(self, until_ms: int) -> Iterator[tuple[int, int]]:
        """Yield from when to when it waited: before its first start, and between its segments."""
        at_ms = self.asked_ms
        for start, end in self.segments:
            if at_ms < start:
                yield at_ms, start
            at_ms = end
        if at_ms < self.left_ms(until_ms):
            yield at_ms, self.left_ms(until_ms)

    def left_ms(self, until_ms: int) -> int:
        """Return when it was over, or when the window was."""
        return until_ms if self.over_ms is None else self.over_ms

    def wait_s(self, until_ms: int) -> float:
        """Return how long it waited to start at all."""
        end_ms = self.segments[0][0] if self.segments else self.left_ms(until_ms)
        return max(0, end_ms - self.asked_ms) / MILLI

    def took_s(self, until_ms: int) -> float:
        """Return how long it took from its arrival to its end."""
        return max(0, self.left_ms(until_ms) - self.asked_ms) / MILLI


@dataclass(frozen=True, slots=True)
class Curve:
    """Milli-GPUs held and waited for: each value holds from its moment to the next one."""

    times_ms: Moments
    """The last one is the window's end."""
    held: Numbers
    waited_for: Numbers

    @property
    def lengths_ms(self) -> Numbers:
        """How long each value holds."""
        return np.diff(self.times_ms).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Figures:
    """See the module's docstring."""

    leases: int
    """That arrived in the window."""
    not_started: int
    """Of them."""
    wait_mean_s: float
    wait_p50_s: float
    wait_p95_s: float
    took_mean_s: float
    took_p50_s: float
    took_p95_s: float
    gpu_hours: float
    utilisation: float
    preemptions: int
    lost_gpu_hours: float
    idle_wanted: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a farm's leases under some hosts, quotas and policy."""

    name: str
    """``past``, ``replay`` or ``what-if``."""
    title: str
    milli_gpus: int
    """Of all its hosts."""
    window: Window
    courses: tuple[Course, ...]

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants, by name."""
        return tuple(sorted({course.tenant for course in self.courses}))

    def of(self, tenant: str | None) -> Sequence[Course]:
        """Return a tenant's courses, or everybody's."""
        return [course for course in self.courses if tenant in (None, course.tenant)]

    def waits_s(self, tenant: str | None = None) -> Sequence[float]:
        """Return how long each lease waited that has started."""
        return [
            course.wait_s(self.window.until_ms)
            for course in self.of(tenant)
            if course.is_new and course.segments
        ]

    def curve(self, tenant: str | None = None) -> Curve:
        """Return what was held and waited for over time, by a tenant or by all, at the same moments for each."""
        window = self.window
        gaps = {course.id: window.cut(course.gaps(window.until_ms)) for course in self.courses}
        edges = {window.from_ms, window.until_ms}
        for course in self.courses:
            edges.update(edge for piece in (*course.segments, *gaps[course.id]) for edge in piece)
        times_ms = np.array(sorted(edges), dtype=np.int64)
        own = self.of(tenant)
        held = [(*piece, course.milli_gpus) for course in own for piece in course.segments]
        waited_for = [(*piece, course.milli_gpus) for course in own for piece in gaps[course.id]]
        return Curve(times_ms, _levels(times_ms, held), _levels(times_ms, waited_for))

    def figures(self, tenant: str | None = None) -> Figures:
        """Return the figures of a tenant, or of the whole farm."""
        until_ms = self.window.until_ms
        courses = self.of(tenant)
        new = [course for course in courses if course.is_new]
        waits = [course.wait_s(until_ms) for course in new]
        took = [course.took_s(until_ms) for course in new if course.is_known]
        whole, own = self.curve(), self.curve(tenant)
        idle = np.minimum(np.maximum(self.milli_gpus - whole.held, 0), own.waited_for)
        farm_ms = max(1, self.milli_gpus) * (until_ms - self.window.from_ms)
        held_ms = float(own.held @ own.lengths_ms)
        return Figures(
            leases=len(new),
            not_started=sum(not course.segments for course in new),
            wait_mean_s=_mean(waits),
            wait_p50_s=_at(waits, 50),
            wait_p95_s=_at(waits, 95),
            took_mean_s=_mean(took),
            took_p50_s=_at(took, 50),
            took_p95_s=_at(took, 95),
            gpu_hours=held_ms / MILLI / HOUR_MS,
            utilisation=held_ms / farm_ms,
            preemptions=sum(course.preempted for course in courses),
            lost_gpu_hours=sum(course.lost_ms * course.milli_gpus for course in courses) / MILLI / HOUR_MS,
            idle_wanted=float(idle @ own.lengths_ms) / farm_ms,
        )


def _levels(times_ms: Moments, pieces: Sequence[Piece]) -> Numbers:
    """Return the sum of all pieces after each moment but the last."""
    changes = np.zeros(len(times_ms))
    for start_ms, end_ms, milli_gpus in pieces:
        changes[np.searchsorted(times_ms, start_ms)] += milli_gpus
        changes[np.searchsorted(times_ms, end_ms)] -= milli_gpus
    return np.cumsum(changes)[:-1]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _at(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0
