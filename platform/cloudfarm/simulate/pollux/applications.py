"""What was measured of each kind of job, and how fast a job of it goes.

A job of an application advances in *progress*: steps at the application's first batch size, or as many others as are
worth the same to the model. It gains progress at the rate

    gain / seconds of a step,    gain = (v + s) / (v / (b / b0) + s)

with the gradient's squared norm s and variance v as measured in that epoch at batch size b, and b0 the first batch
size (Qiao et al., OSDI 2021, section 3: goodput as throughput times statistical efficiency). Where a batch size, or
a batch per GPU, lies between two that were measured, the values are interpolated linearly.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cloudfarm.errors import InvalidInputError
from cloudfarm.simulate.pollux.files import ArtifactFiles, Floats, fault
from cloudfarm.simulate.pollux.scattered import Integers, interpolate

Counts = tuple[int, ...]
"""How many GPUs a job has on each of its hosts, in the order in which they were taken."""
Point = tuple[int, int, int]
"""Hosts, GPUs, batch per GPU."""

LOCAL_BATCH_LIMITS: Mapping[str, int] = {"yolov3": 8}
"""By application: the largest batch on one GPU, where the artifact sets it below the largest measured one."""
CORNERS: Mapping[tuple[str, Point], tuple[Point, ...]] = {
    ("cifar10", (5, 12, 341)): ((4, 12, 363), (6, 12, 363), (6, 12, 257)),
    ("deepspeech2", (5, 12, 53)): ((4, 12, 57), (6, 12, 57), (4, 12, 40)),
    ("imagenet", (7, 24, 134)): ((8, 24, 115), (6, 24, 115), (6, 24, 163)),
}
"""Between which points was interpolated where four lie on one circle and either diagonal makes a triangulation.

By application and place. The published figures have the choice of the library that made them (Qhull); these are all
the places in the published workloads where ours would be the other one.
"""
MOST_HOSTS = 16
"""More hosts than this were not measured and count as so many."""
MOST_GPUS_PER_HOST = 4
"""The hosts on which was measured had four GPUs."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How a batch is divided."""

    gpus: int
    local: int
    """Samples that one GPU takes at once."""
    accumulated: int
    """Further passes before the gradients are exchanged."""

    @property
    def samples(self) -> int:
        """Samples in one step of the whole job."""
        return self.gpus * self.local * (self.accumulated + 1)


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured while training at one batch size; one value for each epoch."""

    progress: Floats
    """Progress at the end of the epoch, in steps at the first batch size."""
    squared_norm: Floats
    variance: Floats


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a step and of the exchange of gradients within it, by the batch per GPU."""

    local: Floats
    seconds: Floats
    """One row for each batch per GPU: the whole step, the exchange."""

    def at(self, local: int) -> Floats | None:
        """Return both between the two nearest measurements, or None outside of them."""
        if not self.local[0] <= local <= self.local[-1]:
            return None
        if len(self.local) == 1:
            only: Floats = self.seconds[0]
            return only
        high = max(1, int(np.searchsorted(self.local, local)))
        low = high - 1
        slope = (self.seconds[high] - self.seconds[low]) / (self.local[high] - self.local[low])
        result: Floats = slope * (local - self.local[low]) + self.seconds[low]
        return result


@dataclass(frozen=True)
class Application:
    """A kind of job, as measured."""

    name: str
    runs: dict[int, Run]
    """By batch size, ascending."""
    placed: dict[Counts, StepTimes]
    """By placement, as its least rotation."""
    points: Integers
    """Hosts, GPUs, batch per GPU: the means over placements, and measurements on more hosts."""
    point_seconds: Floats
    """For each point: the whole step, the exchange."""
    largest_local: int
    """Samples that one GPU takes at once, at most."""
    _rates: dict[tuple[Counts, int], Floats] = field(default_factory=dict, repr=False)

    @cached_property
    def batches(self) -> list[int]:
        """The measured batch sizes, ascending."""
        return list(self.runs)

    @cached_property
    def epochs(self) -> int:
        """Epochs until a job is complete: as many as every run has."""
        return min(len(run.progress) for run in self.runs.values())

    @cached_property
    def epoch_ends(self) -> Floats:
        """Progress at the end of each epoch: that of the run which had least."""
        ends: Floats = np.min([run.progress[: self.epochs] for run in self.runs.values()], axis=0)
        return ends

    def batching(self, samples: int, gpus: int) -> Batching:
        """Divide a wanted batch over GPUs, in several passes if it does not fit into their memory."""
        local = _ceil(samples, gpus)
        accumulated = _ceil(local, self.largest_local) - 1
        if gpus == 1 and samples > self.batches[0]:
            accumulated = max(1, accumulated)  # one pass on one GPU tells nothing of the gradient's variance
        passes = accumulated + 1
        return Batching(gpus, min(_ceil(local, passes), self.batches[-1] // (gpus * passes)), accumulated)

    def rates(self, placement: Counts, samples: int) -> Floats:
        """Return the progress that a job makes in a second, for each epoch.

        Args:
            placement: its GPUs on each host.
            samples: the batch size that it wants.

        Raises:
            InvalidInputError: nothing was measured that would tell.
        """
        key = (placement, samples)
        if key not in self._rates:
            batching = self.batching(samples, sum(placement))
            step_s, exchange_s = self.step_seconds(placement, batching.local)
            squared_norm, variance = self._gradients(batching.samples)
            scale = batching.samples / self.batches[0]
            with np.errstate(divide="ignore", invalid="ignore"):  # what comes of it is refused below
                gain = (variance + squared_norm) / (variance / scale + squared_norm)
                rates = gain / np.float64(step_s + (step_s - exchange_s) * batching.accumulated)
            if not (np.isfinite(rates) & (rates > 0)).all():
                raise InvalidInputError(f"{self.name}: by what was measured on {placement} it never gets on")
            self._rates[key] = rates
        return self._rates[key]

    def step_seconds(self, placement: Counts, local: int) -> tuple[float, float]:
        """Return the seconds of a step (without accumulation) and of the exchange within it.

        Raises:
            InvalidInputError: nothing was measured that would tell.
        """
        if max(placement) > MOST_GPUS_PER_HOST:
            raise InvalidInputError(
                f"{self.name}: no host with more than {MOST_GPUS_PER_HOST} GPUs was measured"
            )
        times = self.placed.get(least_rotation(placement))
        if times is None:
            found: Floats | None = self._between((min(len(placement), MOST_HOSTS), sum(placement), local))
        else:
            found = times.at(local)
        if found is None:
            raise InvalidInputError(f"{self.name}: {local} samples a GPU were not measured on {placement}")
        return float(found[0]), float(found[1])

    def _between(self, place: Point) -> Floats:
        points, seconds = self.points, self.point_seconds
        if (corners := CORNERS.get((self.name, place))) is not None:
            chosen = (points[:, None] == np.array(corners)).all(axis=2).any(axis=1)
            points, seconds = points[chosen], seconds[chosen]
        return interpolate(points, seconds, place)

    def _gradients(self, samples: int) -> tuple[Floats, Floats]:
        index = bisect_left(self.batches, samples)
        if index == len(self.batches) or samples < self.batches[0]:
            raise InvalidInputError(
                f"{self.name}: a batch of {samples} is outside {self.batches[0]} to {self.batches[-1]}"
            )
        upper = self.batches[index]
        above = self.runs[upper]
        if upper == samples:
            return above.squared_norm[: self.epochs], above.variance[: self.epochs]
        lower = self.batches[index - 1]
        below = self.runs[lower]

        def between(low: Floats, high: Floats) -> Floats:
            weighted = (samples - lower) * high[: self.epochs] + (upper - samples) * low[: self.epochs]
            result: Floats = weighted / (upper - lower)
            return result

        return between(below.squared_norm, above.squared_norm), between(below.variance, above.variance)


def read_application(files: ArtifactFiles, name: str) -> Application:
    """Read what was measured of an application from ``traces/<name>/``.

    Raises:
        InvalidInputError: a file is malformed; says which, and the line.
        NotFoundError: there is no such application.
    """
    folder = f"traces/{name}"
    placed, points, seconds, largest = _read_placements(files, f"{folder}/placements.csv")
    more_points, more_seconds = _read_scalability(files, f"{folder}/scalability.csv")
    return Application(
        name=name,
        runs=_read_runs(files, folder),
        placed=placed,
        points=np.vstack([points, more_points]),
        point_seconds=np.vstack([seconds, more_seconds]),
        largest_local=LOCAL_BATCH_LIMITS.get(name, largest),
    )


def least_rotation(placement: Counts) -> Counts:
    """Return the least of a placement's rotations: the ring over which gradients travel has no beginning."""
    return min(placement[start:] + placement[:start] for start in range(len(placement)))


def _read_runs(files: ArtifactFiles, folder: str) -> dict[int, Run]:
    runs: dict[int, Run] = {}
    for name in files.names(f"{folder}/validation-*.csv"):
        digits = name.rpartition("-")[2].removesuffix(".csv")
        if not digits.isdecimal() or int(digits) < 1:
            raise InvalidInputError(f"{name}: {digits!r} is no batch size", file=name)
        table = files.table(name, ["progress", "grad_sqr", "grad_var"])
        run = Run(table.numbers("progress"), table.numbers("grad_sqr"), table.numbers("grad_var"))
        for index, (line, _) in enumerate(table.rows[1:]):
            if run.progress[index + 1] <= run.progress[index]:
                raise fault(name, line, "progress does not rise")
        runs[int(digits)] = run
    if not runs:
        raise InvalidInputError(f"{folder} has no validation-<batch size>.csv")
    return dict(sorted(runs.items()))


def _read_placements(
    files: ArtifactFiles, name: str
) -> tuple[dict[Counts, StepTimes], Integers, Floats, int]:
    table = files.table(name, ["placement", "local_bsz", "step_time", "sync_time"])
    locals_ = table.integers("local_bsz")
    seconds = np.column_stack([table.numbers("step_time"), table.numbers("sync_time")])
    rows_by_placement: dict[Counts, dict[int, int]] = {}
    rows_by_point: dict[Point, list[int]] = {}
    for row, (line, fields) in enumerate(table.rows):
        digits = fields["placement"]
        if not digits.isdecimal() or "0" in digits:
            raise fault(name, line, f"placement {digits!r} is not the GPUs on each host, a digit each")
        placement = tuple(map(int, digits))
        rows = rows_by_placement.setdefault(placement, {})
        if locals_[row] in rows:
            raise fault(
                name, line, f"placement {digits} with {locals_[row]} samples a GPU stands there twice"
            )
        rows[locals_[row]] = row
        rows_by_point.setdefault((len(placement), sum(placement), locals_[row]), []).append(row)
    placed = {
        placement: StepTimes(
            np.array(sorted(rows), dtype=np.float64), seconds[[rows[local] for local in sorted(rows)]]
        )
        for placement, rows in rows_by_placement.items()
    }
    points = sorted(rows_by_point)
    means = np.array([seconds[rows_by_point[point]].mean(axis=0) for point in points])
    return placed, np.array(points, dtype=np.int64), means, max(locals_)


def _read_scalability(files: ArtifactFiles, name: str) -> tuple[Integers, Floats]:
    table = files.table(name, ["num_nodes", "num_replicas", "local_bsz", "step_time", "sync_time"])
    points = [table.integers(column) for column in ("num_nodes", "num_replicas", "local_bsz")]
    seconds = [table.numbers(column) for column in ("step_time", "sync_time")]
    return np.array(points, dtype=np.int64).T, np.column_stack(seconds)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
