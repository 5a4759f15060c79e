"""Which few placements to move so that a request fits that is stuck: defragmentation, bounded and all or nothing.

What would free enough is sought node by node, on those first that lack least. Of the sets found the one that loses
least is tried first: its members leave, the request is placed, and then they are placed again wherever the allocator
puts them best. If one of them finds no place, everything is as it was, and the next set is tried.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, combinations, islice

import numpy as np

from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing.allocator import Allocator, Mask
from cloudfarm.scheduler.packing.gang import place_gang
from cloudfarm.scheduler.packing.prices import Floats, Ints
from cloudfarm.scheduler.packing.shapes import Placement, Request

MOST_NODES = 32
"""On how many nodes sets are sought, those that lack least first."""
MOST_SETS = 512
"""How many sets of one node are looked at, those of the fewest and cheapest first."""
MOST_TRIES = 32
"""How many of the sets found are tried, cheapest first."""


@dataclass(frozen=True, slots=True)
class Movable:
    """Something placed that may be moved."""

    id: str
    placements: tuple[Placement, ...]
    """All of the same request."""
    loss: float
    """What moving it costs, in any unit."""
    distinct_gpus: bool = True
    """As for :func:`~cloudfarm.scheduler.packing.gang.place_gang`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes where."""

    placed: tuple[Placement, ...]
    """The request that was stuck."""
    moved: tuple[tuple[Movable, tuple[Placement, ...]], ...]
    """And those that make room for it, each with where it goes."""


@dataclass(slots=True)
class Pool:
    """All that may be moved, by node.

    Args:
        nodes: how many there are.
        width: GPUs of the node that has most.
    """

    nodes: int
    width: int
    takes: Ints = field(init=False)
    """By node: what all of it takes together of each GPU, then milli-CPUs, then MiB."""
    on: dict[int, dict[str, tuple[Movable, Ints]]] = field(default_factory=dict)
    """By node and id, each with what it takes there."""

    def __post_init__(self) -> None:
        self.takes = np.zeros((self.nodes, self.width + 2), dtype=np.int64)

    def add(self, movable: Movable) -> None:
        """Let something be moved from now on."""
        for node, takes in self._by_node(movable.placements).items():
            self.takes[node] += takes
            self.on.setdefault(node, {})[movable.id] = movable, takes

    def remove(self, movable: Movable) -> None:
        """Leave something where it is from now on."""
        for node in {each.node for each in movable.placements}:
            _, takes = self.on[node].pop(movable.id)
            self.takes[node] -= takes

    def _by_node(self, placements: Sequence[Placement]) -> dict[int, Ints]:
        takes: dict[int, Ints] = {}
        for each in placements:
            of_node = takes.setdefault(each.node, np.zeros(self.width + 2, dtype=np.int64))
            of_node[list(each.gpus)] += each.request.gpu_milli
            of_node[self.width :] += each.request.cpu_milli, each.request.memory_mib
        return takes


@dataclass(frozen=True, slots=True)
class Stuck:
    """What fits nowhere: a request, ``count`` times."""

    request: Request
    count: int = 1
    distinct_gpus: bool = True

    def slots(self, free: Ints, usable: Mask | None) -> Ints:
        """Return how many of its slices go into each of many states of nodes (laid out as ``Pool.takes``)."""
        request, width = self.request, free.shape[-1] - 2
        gpus = free[..., :width] if usable is None else np.where(usable, free[..., :width], 0)
        slots = np.full(free.shape[:-1], self.count, dtype=np.int64)
        if request.is_share and not self.distinct_gpus:
            slots = np.minimum(slots, (gpus // request.gpu_milli).sum(axis=-1))
        elif request.num_gpu:
            slots = np.minimum(slots, (gpus >= request.gpu_milli).sum(axis=-1) // request.num_gpu)
        for column, need in ((width, request.cpu_milli), (width + 1, request.memory_mib)):
            if need:
                slots = np.minimum(slots, free[..., column] // need)
        return slots

    def lack(self, free: Ints, usable: Mask | None) -> Floats:
        """Return what nodes lack for one slice: milli-GPUs, and in proportion CPUs and memory."""
        request, width = self.request, free.shape[-1] - 2
        lack = np.zeros(len(free))
        if request.num_gpu:
            gpus = free[:, :width] if usable is None else np.where(usable, free[:, :width], 0)
            best = -np.sort(-gpus, axis=1)[:, : request.num_gpu]
            lack += np.maximum(request.gpu_milli - best, 0).sum(axis=1)
        for column, need in ((width, request.cpu_milli), (width + 1, request.memory_mib)):
            lack += MILLI * np.maximum(need - free[:, column], 0) / max(need, 1)
        return lack


def make_room(allocator: Allocator, stuck: Stuck, pool: Pool, most: int) -> Plan | None:
    """Place what is stuck and move a few others for it, or return None and leave everything as it was.

    The pool is left as it was either way.

    Args:
        allocator: where.
        stuck: fits nowhere as it is.
        pool: what may be moved.
        most: how many may be moved.
    """
    for movables in islice(_Search(allocator, stuck, pool, most).sets(), MOST_TRIES):
        plan = _try(allocator, stuck, movables)
        if plan is not None:
            return plan
    return None


def _try(allocator: Allocator, stuck: Stuck, movables: Sequence[Movable]) -> Plan | None:
    for each in movables:
        for placement in each.placements:
            allocator.give_back(placement)
    done: list[tuple[Placement, ...]] = []
    asks = [(stuck.request, stuck.count, stuck.distinct_gpus)]
    asks += [(each.placements[0].request, len(each.placements), each.distinct_gpus) for each in movables]
    for request, count, distinct_gpus in asks:
        placed = place_gang(allocator, request, count, distinct_gpus=distinct_gpus)
        if placed is None:
            break
        done.append(placed)
    else:
        return Plan(done[0], tuple(zip(movables, done[1:], strict=True)))
    for placement in chain.from_iterable(done):
        allocator.give_back(placement)
    for each in movables:
        for placement in each.placements:
            allocator.take(placement)
    return None


@dataclass(frozen=True, slots=True)
class _Set:
    """Movables on a node whose leaving makes more slots there."""

    loss: float
    gain: int
    """Slots."""
    node: int
    movables: tuple[Movable, ...]


class _Search:
    """The search for sets of movables whose leaving lets the stuck request in."""

    def __init__(self, allocator: Allocator, stuck: Stuck, pool: Pool, most: int) -> None:
        self.stuck, self.pool, self.most = stuck, pool, most
        self.is_open, self.width = allocator.is_open, pool.width
        self.usable = allocator.usable(stuck.request)
        self.free = np.concatenate((allocator.free_gpu, allocator.free_beside.T), axis=1)
        self.goes_elsewhere = cache(lambda request: allocator.pick(request) is not None)

    def sets(self) -> Iterator[tuple[Movable, ...]]:
        """Yield them, what loses least first."""
        stuck, usable = self.stuck, self.usable
        slots = np.where(self.is_open, stuck.slots(self.free, usable), 0)
        missing = stuck.count - int(slots.sum())
        if missing <= 0:
            return
        most = np.where(self.is_open, stuck.slots(self.free + self.pool.takes, usable), 0)
        nodes = np.flatnonzero(most > slots)
        of_nodes = None if usable is None else usable[nodes]
        nearest = np.argsort(stuck.lack(self.free[nodes], of_nodes), kind="stable")[:MOST_NODES]
        found = list(chain.from_iterable(self._of_node(node) for node in nodes[nearest].tolist()))
        found.sort(key=lambda each: (each.loss / min(each.gain, missing), each.loss))
        if missing > 1:
            together = _together(found, missing, self.most)
            if together:
                yield together
        for each in found:
            if each.gain >= missing:
                yield each.movables

    def _of_node(self, node: int) -> Iterator[_Set]:
        """Yield sets of what one node holds, cheapest first.

        Who fits on no other node goes to another GPU of this one; left out are sets that leave too little here for all.
        """
        free, width, request = self.free[node], self.width, self.stuck.request
        there: list[Movable] = []
        takes, leaves = [], []
        for each, taken in sorted(self.pool.on[node].values(), key=lambda each: (each[0].loss, each[0].id)):
            own = each.placements[0].request
            goes_elsewhere = self.goes_elsewhere(own)
            if goes_elsewhere or (free[:width] >= own.gpu_milli).sum() >= own.num_gpu > 0:
                there.append(each)
                takes.append(taken)
                leaves.append(taken if goes_elsewhere else np.zeros_like(taken))
        if not there:
            return
        wanted = np.array([request.total_milli, request.cpu_milli, request.memory_mib])
        room, more = _in_all(free, width) - wanted, _in_all(np.array(leaves), width)
        if (room + more.sum(axis=0) < 0).any():
            return
        usable = None if self.usable is None else self.usable[node]
        before, left, of_all = int(self.stuck.slots(free, usable)), MOST_SETS, np.array(takes)
        for size in range(1, min(self.most, len(there)) + 1):
            sets = np.array(list(islice(combinations(range(len(there)), size), left)))
            if not len(sets):
                return
            left -= len(sets)
            sets = sets[(room + more[sets].sum(axis=1) >= 0).all(axis=1)]
            gains = self.stuck.slots(free + of_all[sets].sum(axis=1), usable) - before
            for index in np.flatnonzero(gains > 0).tolist():
                movables = tuple(there[each] for each in sets[index].tolist())
                yield _Set(sum(each.loss for each in movables), int(gains[index]), node, movables)


def _in_all(amounts: Ints, width: int) -> Ints:
    """Return GPUs together, CPUs and memory."""
    summed: Ints = np.concatenate(
        (amounts[..., :width].sum(axis=-1, keepdims=True), amounts[..., width:]), axis=-1
    )
    return summed


def _together(found: Iterable[_Set], missing: int, most: int) -> tuple[Movable, ...]:
    """Return the cheapest sets of several nodes that together make enough slots; none if they move too many."""
    chosen: dict[str, Movable] = {}
    used: set[int] = set()
    for each in found:
        more = {**chosen, **{movable.id: movable for movable in each.movables}}
        if each.node in used or len(more) > most:
            continue
        chosen, missing = more, missing - each.gain
        used.add(each.node)
        if missing <= 0:
            return tuple(chosen.values())
    return ()
