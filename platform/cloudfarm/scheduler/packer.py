"""Where a lease starts: the packing allocator over a state of the farm, taught by the farm's own asks."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cloudfarm.domain.lease import Ask, Slice
from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing import Allocator, Demand, Node, Placement, Request, place_gang
from cloudfarm.scheduler.space import MIB, Space, State

MOST_SLICES = 16
"""Of a lease of many slices so many are learned from: one ask must not drown the others."""


@dataclass(slots=True)
class Packer:
    """Places leases where they spoil least (``docs/packing.md``). The same asks and states give the same places.

    Args:
        space: the hosts.
        asks: those from which is learned what will be asked for.
        power_weight: as for the allocator.
    """

    space: Space
    asks: Iterable[Ask]
    power_weight: float = 0.0
    _allocator: Allocator | None = field(default=None, init=False)

    def place(self, state: State, lease_id: str, ask: Ask) -> tuple[Slice, ...] | None:
        """Return a slice for every part of an ask, or None if it does not fit; the state stays as it was."""
        if not self.space.fits(state, ask):
            return None
        allocator = self.at(state)
        placed = place_gang(allocator, request_of(ask), ask.shape.count, distinct_gpus=ask.distinct_gpus)
        if placed is None:  # it fits, slice by slice: all of them are alike
            raise AssertionError(f"{ask} fits and cannot be placed")
        return self.slices(lease_id, ask, placed)

    def slices(self, lease_id: str, ask: Ask, placed: Iterable[Placement]) -> tuple[Slice, ...]:
        """Return the slices of a lease that is placed so."""
        hosts = self.space.hosts
        return tuple(
            Slice(
                lease_id=lease_id,
                index=index,
                host=hosts[each.node].id,
                gpu_indices=tuple(hosts[each.node].gpus[column].index for column in sorted(each.gpus)),
                milli_gpus=ask.shape.milli_gpus,
                cpus=ask.cpus,
                memory_bytes=ask.memory_bytes,
            )
            for index, each in enumerate(placed)
        )

    def at(self, state: State) -> Allocator:
        """Return the allocator, set to a state; until it is set to another."""
        if self._allocator is None:
            demand = Demand()
            for ask in self.asks:
                for _ in range(min(ask.shape.count, MOST_SLICES)):
                    demand.learn(request_of(ask))
            nodes = [
                Node(host.cpus * MILLI, host.memory_bytes // MIB, tuple(gpu.model for gpu in host.gpus))
                for host in self.space.hosts
            ]
            self._allocator = Allocator(nodes, demand, self.power_weight)
        free = np.maximum(state, 0).astype(np.int64)
        width = self.space.width
        self._allocator.reset(free[:, :width], free[:, width] * MILLI, free[:, width + 1])
        return self._allocator


def request_of(ask: Ask) -> Request:
    """Return one slice of an ask in the allocator's words."""
    return Request(
        cpu_milli=ask.cpus * MILLI,
        memory_mib=-(-ask.memory_bytes // MIB),
        num_gpu=ask.shape.gpus_per_slice,
        gpu_milli=min(ask.shape.milli_gpus, MILLI),
        models=frozenset() if ask.gpu_model is None else frozenset({ask.gpu_model}),
    )
