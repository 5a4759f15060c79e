"""How good forecasts are: what waiting leases are told in a simulated farm, against when they then start.

The farm, its tenants and their leases are those of :mod:`cloudfarm.simulate.tenants`; what is told is told by the very
code of the live steward, which begins to learn when the simulation does. What stands told of a lease is noted when the
lease is first told anything, and of all that wait every five minutes. Beside it two other ways to foretell a start are
judged at the same moments: the queue walked as if every lease ran to its limit, and the latest start by time limits
that the queue itself tells (where it does: only the first in line are booked).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.lease import ExpectedStart, Lease
from cloudfarm.domain.quantities import GIB, MILLI
from cloudfarm.domain.quota import Amounts, Quota, QuotaTree
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.forecast import guesses
from cloudfarm.scheduler.foreseeing import foreseeing
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import next_look_ms
from cloudfarm.simulate.tenants import CPUS_PER_GPU, GIB_PER_GPU, Setup, check, farm, shares, workload
from cloudfarm.simulate.world import Story, World
from cloudfarm.steward.foresight import Foresight

EVERY_MS = 300_000
LATEST = re.compile(r"starts by (\d{4}-\d\d-\d\d \d\d:\d\d) UTC")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one waiting lease was told at a moment, and when it then started."""

    basis: str
    is_first: bool
    at_ms: int
    earliest_ms: int
    expected_ms: int
    latest_ms: int
    by_limits_ms: int | None
    """By the walk with limits taken as run times."""
    booked_ms: int | None
    """The latest start by time limits, as the queue told it."""
    started_ms: int = 0
    """Known when the simulation is over."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """The figures of some samples. Times are seconds; errors are of the expected start, absolute."""

    samples: int
    covered: float
    """The part of them that started between the earliest and the latest; 0.8 is stated."""
    too_early: float
    """That started before the earliest."""
    too_late: float
    wait_mean_s: float
    """From the moment on."""
    width_p50_s: float
    """Of the interval."""
    width_of_wait_p50: float
    """The interval as a multiple of that wait."""
    error_mean_s: float
    error_p50_s: float
    limits_error_mean_s: float
    """Of the walk with limits taken as run times."""
    limits_error_p50_s: float
    booked: int
    """Samples with a latest start told by the queue; what follows is of those only."""
    booked_error_mean_s: float
    booked_error_p50_s: float
    booked_kept: float
    """The part of them that started by it."""
    booked_expected_error_mean_s: float
    """Of the forecast, for the same samples."""


@dataclass(slots=True)
class Watch:
    """Notes what is told in a world."""

    setup: Setup
    tree: QuotaTree
    told: list[tuple[str, Sample]] = field(default_factory=list)
    """By lease; when it starts is not known yet."""
    _seen: set[tuple[str, int]] = field(default_factory=set)
    """Leases, and which of their segments they wait for."""
    _next_ms: int = EVERY_MS

    def look(self, world: World) -> None:
        """Note what stands told after a step, where it is new or time for it."""
        is_time = world.now_ms >= self._next_ms
        chosen = [
            lease
            for lease in world.leases.values()
            if lease.status is LeaseStatus.WAITING
            and lease.expected_start is not None
            and (is_time or (lease.id, lease.segment) not in self._seen)
        ]
        if is_time:
            self._next_ms = (world.now_ms // EVERY_MS + 1) * EVERY_MS
        if not chosen:
            return
        found = guesses(world.view(), self.setup.rules, self.tree)
        for lease in chosen:
            limit_ms = None if lease.id not in found else world.now_ms + round(found[lease.id].by_limits)
            if lease.expected_start is not None:
                is_first = (lease.id, lease.segment) not in self._seen
                sample = _sample(lease, lease.expected_start, world.now_ms, limit_ms, is_first=is_first)
                self.told.append((lease.id, sample))
            self._seen.add((lease.id, lease.segment))


def _sample(
    lease: Lease, told: ExpectedStart, now_ms: int, by_limits_ms: int | None, *, is_first: bool
) -> Sample:
    booked = LATEST.search(lease.message)
    booked_ms = None
    if booked is not None:
        moment = datetime.strptime(booked[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        booked_ms = round(moment.timestamp() * MILLI)
    return Sample(
        told.basis,
        is_first,
        now_ms,
        told.earliest_ms,
        told.expected_ms,
        told.latest_ms,
        by_limits_ms,
        booked_ms,
    )


def samples(setup: Setup) -> Sequence[Sample]:
    """Simulate one setup and return what was told in it.

    Raises:
        InvalidInputError: for a farm, a load or a length that cannot be.
    """
    check(setup)
    hosts, parts = farm(setup), shares(setup.hosts)
    gpus = setup.gpus
    tree = QuotaTree.of(
        Quota(
            tenant,
            guarantee=Amounts(
                MILLI * gpus * count, CPUS_PER_GPU * gpus * count, GIB_PER_GPU * gpus * GIB * count
            ),
            weight=count,
        )
        for tenant, count in parts.items()
    )
    watch = Watch(setup, tree)
    world = World(
        hosts,
        tree,
        foreseeing(fair(setup.rules, lambda _view: tree), setup.rules, lambda _view: tree),
        watch=watch.look,
        wake=partial(next_look_ms, rules=setup.rules, tree=tree),
        memory=setup.memory,
        foresight=Foresight(),
    )
    world.run(workload(setup, parts))
    return list(_with_starts(watch.told, world.stories))


def _with_starts(told: Iterable[tuple[str, Sample]], stories: Mapping[str, Story]) -> Iterable[Sample]:
    for lease_id, sample in told:
        started_ms = min(start_ms for start_ms, _ in stories[lease_id].segments if start_ms >= sample.at_ms)
        yield replace(sample, started_ms=started_ms)


def coverage(found: Sequence[Sample]) -> Coverage | None:
    """Return the figures of some samples; None if there are none."""
    if not found:
        return None
    started = np.array([each.started_ms for each in found])
    earliest = np.array([each.earliest_ms for each in found])
    latest = np.array([each.latest_ms for each in found])
    expected = np.array([each.expected_ms for each in found])
    waits = started - np.array([each.at_ms for each in found])
    width = latest - earliest
    limits = np.array(
        [each.started_ms - each.by_limits_ms for each in found if each.by_limits_ms is not None]
    )
    booked = [
        (each.started_ms, each.booked_ms, each.expected_ms) for each in found if each.booked_ms is not None
    ]
    start, bound, ours = np.array(booked, dtype=np.int64).reshape(-1, 3).T
    return Coverage(
        samples=len(found),
        covered=float(((earliest <= started) & (started <= latest)).mean()),
        too_early=float((started < earliest).mean()),
        too_late=float((started > latest).mean()),
        wait_mean_s=_mean_s(waits),
        width_p50_s=_median_s(width),
        width_of_wait_p50=float(np.median(width / np.maximum(waits, MILLI))),
        error_mean_s=_mean_s(np.abs(started - expected)),
        error_p50_s=_median_s(np.abs(started - expected)),
        limits_error_mean_s=_mean_s(np.abs(limits)),
        limits_error_p50_s=_median_s(np.abs(limits)),
        booked=len(booked),
        booked_error_mean_s=_mean_s(np.abs(start - bound)),
        booked_error_p50_s=_median_s(np.abs(start - bound)),
        booked_kept=float((start <= bound).mean()) if booked else 0.0,
        booked_expected_error_mean_s=_mean_s(np.abs(start - ours)),
    )


def _mean_s(values_ms: npt.NDArray[np.int64]) -> float:
    return float(values_ms.mean()) / MILLI if values_ms.size else 0.0


def _median_s(values_ms: npt.NDArray[np.int64]) -> float:
    return float(np.median(values_ms)) / MILLI if values_ms.size else 0.0


def report(found: Sequence[Sample]) -> Mapping[str, Coverage]:
    """Return the figures of what was told first, of all later moments, and of the first by what it stands on."""
    parts: dict[str, list[Sample]] = {"first": [], "later": []}
    for each in sorted(found, key=lambda sample: sample.basis):
        parts["first" if each.is_first else "later"].append(each)
        if each.is_first:
            parts.setdefault(f"first, {each.basis}", []).append(each)
    return {name: figures for name, part in parts.items() if (figures := coverage(part)) is not None}
