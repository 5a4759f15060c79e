"""What is free where: one row of numbers a host, and all slices of a lease placed in it or none.

A state is an array ``[host, column]``: milli-GPUs left of each GPU, then CPUs, then memory in MiB. States are plain
arrays, so that the future can stack many of them and ask all at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, Slice
from cloudfarm.domain.quantities import MILLI

State = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int32]
MIB = 1024**2
_FULL = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Space:
    """The hosts of a farm, in an order that never changes."""

    hosts: tuple[Host, ...]
    width: int
    """GPUs of the host that has most."""
    models: Mapping[str, npt.NDArray[np.bool_]]
    """By model: which GPUs are of it, by host and column."""
    rows: Mapping[str, int]
    """By host id."""
    columns: tuple[Mapping[int, int], ...]
    """By host: the column of each GPU index."""

    @classmethod
    def of(cls, hosts: Iterable[Host]) -> "Space":
        """Return the space of some hosts, smallest first: what is small and near the front fills up and stays full."""
        found = tuple(sorted(hosts, key=lambda host: (len(host.gpus), host.id)))
        width = max([1, *(len(host.gpus) for host in found)])
        models: dict[str, npt.NDArray[np.bool_]] = {}
        for row, host in enumerate(found):
            for column, gpu in enumerate(host.gpus):
                if gpu.model not in models:
                    models[gpu.model] = np.zeros((len(found), width), dtype=np.bool_)
                models[gpu.model][row, column] = True
        return cls(
            found,
            width,
            models,
            {host.id: row for row, host in enumerate(found)},
            tuple({gpu.index: column for column, gpu in enumerate(host.gpus)} for host in found),
        )

    def empty(self, *, even_closed: bool = False) -> State:
        """Return the state with nothing placed. Cordoned and silent hosts offer nothing, unless ``even_closed``."""
        state = np.zeros((len(self.hosts), self.width + 2), dtype=np.int32)
        for row, host in enumerate(self.hosts):
            if even_closed or (host.reachable and not host.cordoned):
                state[row, : len(host.gpus)] = MILLI
                state[row, self.width] = host.cpus
                state[row, self.width + 1] = host.memory_bytes // MIB
        return state

    def take(self, state: State, slices: Iterable[Slice]) -> None:
        """Take slices out of a state, or of several; those on hosts that it does not know are left aside."""
        self._change(state, slices, -1)

    def give(self, state: State, slices: Iterable[Slice]) -> None:
        """Put slices back into a state, or into several."""
        self._change(state, slices, 1)

    def _change(self, state: State, slices: Iterable[Slice], sign: int) -> None:
        for piece in slices:
            row = self.rows.get(piece.host)
            if row is None:
                continue
            for index in piece.gpu_indices:
                column = self.columns[row].get(index)
                if column is not None:
                    state[..., row, column] += sign * (piece.milli_gpus // len(piece.gpu_indices))
            state[..., row, self.width] += sign * piece.cpus
            state[..., row, self.width + 1] += sign * -(-piece.memory_bytes // MIB)

    def slots(self, state: State, ask: Ask) -> Counts:
        """Return how many slices of an ask each host could take, in one state or in many (the last axis is gone).

        All slices of an ask are alike and lie on one host each, so an ask fits if and only if the sum is its count.
        """
        gpus = self._gpus(state, ask)
        per_gpu, wanted = min(ask.shape.milli_gpus, MILLI), ask.shape.gpus_per_slice
        if not wanted:
            slots = np.full(state.shape[:-1], ask.shape.count, dtype=np.int32)
        elif per_gpu < MILLI and not ask.distinct_gpus:
            slots = (np.maximum(gpus, 0) // per_gpu).sum(axis=-1, dtype=np.int32)
        else:
            slots = (gpus >= per_gpu).sum(axis=-1, dtype=np.int32) // wanted
        if ask.cpus:
            slots = np.minimum(slots, state[..., self.width] // ask.cpus)
        if ask.memory_bytes:
            slots = np.minimum(slots, state[..., self.width + 1] // -(-ask.memory_bytes // MIB))
        return np.clip(slots, 0, ask.shape.count)

    def _gpus(self, state: State, ask: Ask) -> State:
        gpus = state[..., : self.width]
        if ask.gpu_model is None:
            return gpus
        return np.where(self.models.get(ask.gpu_model, np.False_), gpus, 0)

    def fits(self, state: State, ask: Ask) -> bool:
        """Whether an ask could be placed in a state."""
        return int(self.slots(state, ask).sum()) >= ask.shape.count

    def holds(self, state: State, slices: Sequence[Slice]) -> bool:
        """Whether these very slices would fit into a state."""
        if any(piece.host not in self.rows for piece in slices):
            return False
        needs = np.zeros_like(state)
        self.give(needs, slices)
        return not ((needs > 0) & (needs > state)).any()

    def place(self, state: State, lease_id: str, ask: Ask) -> tuple[Slice, ...] | None:
        """Return a slice for every part of an ask, first fit and each on its tightest GPU, or None; changes nothing."""
        slots = self.slots(state, ask)
        if int(slots.sum()) < ask.shape.count:
            return None
        per_gpu, wanted = min(ask.shape.milli_gpus, MILLI), ask.shape.gpus_per_slice
        gpus = self._gpus(state, ask)
        placed: list[Slice] = []
        for row in np.flatnonzero(slots).tolist():
            host, free = self.hosts[row], gpus[row].copy()
            for _ in range(min(int(slots[row]), ask.shape.count - len(placed))):
                chosen = _tightest(free, per_gpu, wanted)
                free[chosen] = 0 if ask.distinct_gpus else free[chosen] - per_gpu
                placed.append(
                    Slice(
                        lease_id=lease_id,
                        index=len(placed),
                        host=host.id,
                        gpu_indices=tuple(host.gpus[column].index for column in sorted(chosen)),
                        milli_gpus=ask.shape.milli_gpus,
                        cpus=ask.cpus,
                        memory_bytes=ask.memory_bytes,
                    )
                )
            if len(placed) == ask.shape.count:
                break
        return tuple(placed)


def _tightest(free: State, per_gpu: int, wanted: int) -> Sequence[int]:
    order = np.argsort(np.where(free >= per_gpu, free, _FULL), kind="stable")
    return [int(column) for column in order[:wanted]]


def ever_fits(hosts: Iterable[Host], ask: Ask) -> bool:
    """Whether the farm could hold the ask if it were empty (cordoned and silent hosts count: they may come back)."""
    space = Space.of(hosts)
    return bool(space.hosts) and space.fits(space.empty(even_closed=True), ask)
