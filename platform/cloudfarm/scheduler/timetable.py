"""When what falls free, in many futures at once: the farm in small parts, each with the time from which it is free.

A GPU is cut into :data:`PARTS` parts, a host's CPUs and its memory into :data:`SHARES`. Whatever is placed takes the
parts on which it can start first, so what comes later in line can only be where what came before leaves room (list
scheduling). What needs one GPU or a share of one also fills the gaps before whole GPUs are taken, if it is over by
then; its CPUs and memory are not looked at there. Times are milliseconds from now.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.lease import Ask, Slice
from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.run_times import Floats
from cloudfarm.scheduler.space import Space

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PARTS = 8
"""Of a GPU."""
SHARES = 32
"""Of a host's CPUs, and of its memory."""
NEVER = 1e15
NOBODY = -1
"""Owner of what no running lease has."""


@dataclass(slots=True)
class Timetable:
    """Parts and the times at which they fall free; those of one GPU, or of one host's CPUs, are sorted."""

    space: Space
    gpus: Floats
    """By future, GPU (host by host) and part."""
    owners: Ints
    """Likewise: the number of the running lease that has the part now."""
    beside: Floats
    """By future, host, CPUs or memory, and part."""
    gaps: Floats
    """By future, GPU and part: from when it is free before what was placed last on the whole GPU starts."""
    until: Floats
    """By future and GPU: when that starts."""
    sizes: Floats
    """By host: CPUs, and bytes of memory."""
    _used: dict[tuple[int, ...], float] = field(default_factory=dict)
    """Of a GPU, or of a host's CPUs or memory: how much is held, in parts."""

    @classmethod
    def of(cls, space: Space, futures: int) -> "Timetable":
        """Return the table of an empty farm. What is cordoned or silent never falls free."""
        hosts, width = len(space.hosts), space.width
        gpus = np.full((futures, hosts, width, PARTS), NEVER)
        beside = np.full((futures, hosts, 2, SHARES), NEVER)
        for row, host in enumerate(space.hosts):
            if host.reachable and not host.cordoned:
                gpus[:, row, : len(host.gpus)] = 0
                beside[:, row] = 0
        shape = futures, hosts * width, PARTS
        owners = np.full(shape, NOBODY, dtype=np.int64)
        gaps, until = np.full(shape, NEVER), np.zeros(shape[:2])
        sizes = np.array(
            [(max(1, host.cpus), max(1, host.memory_bytes)) for host in space.hosts], dtype=np.float64
        )
        return cls(space, gpus.reshape(shape), owners, beside, gaps, until, sizes)

    def hold(self, owner: int, slices: Sequence[Slice], until: Floats) -> None:
        """Note what a running lease has; all of them come first, then :meth:`ready`."""
        for piece in slices:
            row = self.space.rows.get(piece.host)
            if row is None:
                continue
            host = self.space.hosts[row]
            for index in piece.gpu_indices:
                column = self.space.columns[row].get(index)
                if column is not None:
                    gpu = row * self.space.width + column
                    parts = self._take((gpu,), piece.milli_gpus / len(piece.gpu_indices) / MILLI, PARTS)
                    self.gpus[:, gpu, parts] = np.maximum(self.gpus[:, gpu, parts], until[:, None])
                    self.owners[:, gpu, parts] = owner
            shares = piece.cpus / max(1, host.cpus), piece.memory_bytes / max(1, host.memory_bytes)
            for what, share in enumerate(shares):
                held = self.beside[:, row, what, self._take((row, what), share, SHARES)]
                np.maximum(held, until[:, None], out=held)

    def ready(self) -> None:
        """Bring everything into order."""
        self.gpus, self.owners = _sorted(self.gpus, self.owners)
        self.beside.sort(axis=-1)

    def place(self, ask: Ask, floor: Floats, runs: Floats, soon: Floats | None = None) -> Floats:
        """Place an ask where it starts first, whole, and return when; :data:`NEVER` if no host can hold it.

        Args:
            ask: to be placed.
            floor: before which it does not start, by future.
            runs: how long it then runs, by future.
            soon: by running lease: by when what it has can be had for this ask; last the same for ``NOBODY``.
        """
        search = _Search(self, ask, floor, soon)
        picks = [search.next() for _ in range(ask.shape.count)]
        start = search.start
        if (start >= NEVER).any():
            return start
        left = np.arange(len(floor))
        if ask.shape.count == ask.shape.gpus_per_slice == 1:
            gap, in_gap = self._gap(search, floor, runs)
            fills = in_gap < start
            start = np.where(fills, in_gap, start)
            self._fill(left[fills], gap[fills], search.parts, (start + runs)[fills])
            left = left[~fills]
        until = start + runs
        for host, columns in picks:
            self._put_gpus(
                left,
                host[left],
                columns[left],
                parts=search.parts,
                start=start[left],
                until=until[left],
                soon=soon,
            )
            self._put_beside(left, host[left], search.needs, until[left])
        return start

    def _gap(self, search: "_Search", floor: Floats, runs: Floats) -> tuple[Ints, Floats]:
        """Return the GPU on which something is over first that starts and ends before what is placed there."""
        from_ = np.maximum(self.gaps[..., search.parts - 1], floor[:, None])
        from_ = np.where(search.is_model & (from_ + runs[:, None] <= self.until), from_, NEVER)
        gpu = from_.argmin(axis=1)
        return gpu, from_[np.arange(len(floor)), gpu]

    def _fill(self, rows: Ints, gpu: Ints, parts: int, until: Floats) -> None:
        times = self.gaps[rows, gpu]
        times[:, :parts] = until[:, None]
        times.sort(axis=-1)
        self.gaps[rows, gpu] = times

    def _put_gpus(
        self,
        rows: Ints,
        host: Ints,
        columns: Ints,
        *,
        parts: int,
        start: Floats,
        until: Floats,
        soon: Floats | None,
    ) -> None:
        if not columns.size:
            return
        at = rows[:, None], host[:, None] * self.space.width + columns
        times, owners = self.gpus[at], self.owners[at]
        if soon is not None:
            had = np.minimum(times, soon[owners])
            times, owners = _sorted(had, owners)
        if parts == PARTS:
            self.gaps[at] = times
            self.until[at] = start[:, None]
        times[..., :parts] = until[:, None, None]
        owners[..., :parts] = NOBODY
        self.gpus[at], self.owners[at] = _sorted(times, owners)

    def _put_beside(self, rows: Ints, host: Ints, needs: Ints, until: Floats) -> None:
        times = self.beside[rows, host]
        times = np.where(np.arange(SHARES) < needs[host][..., None], until[:, None, None], times)
        times.sort(axis=-1)
        self.beside[rows, host] = times

    def _take(self, where: tuple[int, ...], share: float, of: int) -> slice:
        """Return the next parts of something, rounded so that the whole is right."""
        before = self._used.get(where, 0.0)
        self._used[where] = before + share * of
        return slice(min(of, round(before)), min(of, round(self._used[where])))


def _sorted(times: Floats, owners: Ints) -> tuple[Floats, Ints]:
    """Return the parts of some GPUs in the order of their times."""
    order = times.argsort(axis=-1, kind="stable")
    first, second = np.ogrid[: order.shape[0], : order.shape[1]]
    at = first[..., None], second[..., None], order
    return times[at], owners[at]


class _Search:
    """The search for the places of the slices of one ask, one after the other."""

    def __init__(self, table: Timetable, ask: Ask, floor: Floats, soon: Floats | None) -> None:
        self.table, self.ask, self.floor = table, ask, floor
        self.start = floor
        """Of the whole ask, as far as it is placed."""
        self.parts = max(1, round(min(ask.shape.milli_gpus, MILLI) * PARTS / MILLI))
        self.needs = self._needs()
        self._every = np.arange(len(floor))
        space = table.space
        times = table.gpus
        if soon is not None:
            times = np.sort(np.minimum(times, soon[table.owners]), axis=-1)
        self._times = times.reshape(len(floor), len(space.hosts), space.width, PARTS)
        self._grid = self._times[..., self.parts - 1]
        self.is_model: Bools | bool = True
        """By GPU: whether it is of the model that is asked for."""
        if ask.gpu_model is not None:
            models = space.models.get(
                ask.gpu_model, np.zeros((len(space.hosts), space.width), dtype=np.bool_)
            )
            self._grid = np.where(models, self._grid, NEVER)
            self.is_model = models.reshape(-1)
        self._beside = self._beside_from()
        if ask.shape.count > 1:
            self._grid = self._grid.copy()
            self._slices = np.ones((len(floor), len(space.hosts)), dtype=np.int64)
            self._on_gpu = np.ones(self._grid.shape, dtype=np.int64)

    def next(self) -> tuple[Ints, Ints]:
        """Return the host of the next slice and the columns of its GPUs, by future."""
        wanted = self.ask.shape.gpus_per_slice
        if wanted == 1:
            by_gpu = np.maximum(self._grid, self._beside[..., None]).reshape(len(self.floor), -1)
            gpu = by_gpu.argmin(axis=1)
            starts, host = by_gpu[self._every, gpu], gpu // self.table.space.width
            columns = (gpu % self.table.space.width)[:, None]
        else:
            by_host = self._beside
            if wanted > self.table.space.width:
                by_host = np.full_like(by_host, NEVER)
            elif wanted:
                by_host = np.maximum(by_host, np.partition(self._grid, wanted - 1, axis=-1)[..., wanted - 1])
            host = by_host.argmin(axis=1)
            starts = by_host[self._every, host]
            columns = np.argsort(self._grid[self._every, host], axis=-1, kind="stable")[:, :wanted]
        self.start = starts  # no slice finds room sooner than the one before it
        if self.ask.shape.count > 1:
            self._mark(host, columns)
        return host, columns

    def _mark(self, host: Ints, columns: Ints) -> None:
        """Leave the places of a slice to it."""
        self._slices[self._every, host] += 1
        self._beside = self._beside_from(self._slices)
        at = self._every[:, None], host[:, None], columns
        last = self.parts * (self._on_gpu[at] + 1) - 1
        is_full = self.ask.distinct_gpus | (last >= PARTS)
        self._on_gpu[at] += 1
        self._grid[at] = np.where(is_full, NEVER, self._times[*at, np.minimum(last, PARTS - 1)])

    def _needs(self) -> Ints:
        """Return how many parts of its CPUs and its memory a slice takes of each host."""
        shares = np.array([self.ask.cpus, self.ask.memory_bytes]) / self.table.sizes
        least = 0 if self.ask.shape.gpus_per_slice else np.minimum(1, np.ceil(shares))
        needs: Ints = np.where(shares > 1, SHARES + 1, np.maximum(least, np.rint(shares * SHARES))).astype(
            np.int64
        )
        return needs

    def _beside_from(self, slices: Ints | None = None) -> Floats:
        """Return from when the CPUs and the memory of each host are enough for so many slices there, or for one."""
        needs = self.needs[None] if slices is None else slices[..., None] * self.needs
        futures, hosts, what = np.ogrid[: len(self.floor), : len(self.needs), :2]
        times = self.table.beside[futures, hosts, what, np.clip(needs - 1, 0, SHARES - 1)]
        times = np.where(needs > SHARES, NEVER, np.where(needs > 0, times, 0))
        from_: Floats = np.maximum(times.max(axis=-1), self.floor[:, None])
        return from_
