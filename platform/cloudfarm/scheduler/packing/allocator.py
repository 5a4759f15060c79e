"""The allocator: nodes, what is free on them, and for every kind of request its cost on each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.quantities import MILLI
from cloudfarm.errors import ConflictError
from cloudfarm.scheduler.packing.blocks import Blocks, price_blocks, worth_of_blocks
from cloudfarm.scheduler.packing.demand import Demand, Outlook
from cloudfarm.scheduler.packing.power import Power
from cloudfarm.scheduler.packing.prices import Floats, Ints
from cloudfarm.scheduler.packing.shapes import Node, Placement, Request
from cloudfarm.scheduler.packing.worth import worth

STEP = 10
"""Milli-GPUs of worth that count as the same; within them the first node is taken, so that nodes fill up one by one."""
MAX_KINDS = 1024
"""Kinds of requests whose costs are kept; 8 bytes a node each."""
_NOWHERE = np.iinfo(np.int64).max

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class _Costs:
    """The cost of one kind of request on every node, when last computed."""

    rank: Ints
    """By cost in steps, then by the node's position, in one number; ``_NOWHERE`` where it does not fit."""
    usable: Mask | None
    """Node by GPU: whether its model will do. None if all will."""
    choice: Floats
    """By free milli of a GPU: lost worth of its piece and, among equals, the tightest. Infinite where too little."""
    need: Ints
    """Two rows: milli-CPUs, MiB."""
    as_of: int = -1


class Allocator:
    """Places requests on nodes, one at a time; what was placed may be given back.

    The same nodes and the same calls give the same placements. A request is placed if any open node can hold it.

    Args:
        nodes: the empty nodes. Of nodes that cost the same the first is taken, so small nodes should come first.
        demand: what is known of requests; empty unless given.
        power_weight: how many milli-GPUs of worth are given up to save a watt (``power.py``).
    """

    def __init__(
        self, nodes: Sequence[Node], demand: Demand | None = None, power_weight: float = 0.0
    ) -> None:
        width = max([1, *(len(node.gpu_models) for node in nodes)])
        self.demand = demand if demand is not None else Demand()
        self.free_beside: Ints = np.zeros((2, len(nodes)), dtype=np.int64)
        """Milli-CPUs and MiB left, by node."""
        self.free_gpu: Ints = np.zeros((len(nodes), width), dtype=np.int64)
        """Milli left by node and GPU; 0 where there is no GPU."""
        self._models = np.full((len(nodes), width), "", dtype=object)
        for position, node in enumerate(nodes):
            self.free_beside[:, position] = node.cpu_milli, node.memory_mib
            self.free_gpu[position, : len(node.gpu_models)] = MILLI
            self._models[position, : len(node.gpu_models)] = node.gpu_models
        self._nodes = tuple(nodes)
        self._power_weight = power_weight
        self._power = Power.of(nodes) if power_weight else None
        models = [frozenset(node.gpu_models) for node in nodes]
        self._kinds = sorted(set(models), key=sorted)
        """Sets of GPU models that occur on one node."""
        self._kind: Ints = np.array([self._kinds.index(each) for each in models], dtype=np.int64)
        self.is_open: Mask = np.ones(len(nodes), dtype=np.bool_)
        """Whether each node takes new placements."""
        self._step = 0
        self._changed: Ints = np.zeros(len(nodes), dtype=np.int64)
        """The step at which each node last changed."""
        self._costs: dict[Request, _Costs] = {}
        self._look_ahead()

    def learn(self, request: Request) -> None:
        """Count a request that has arrived, once, whether or not it can be placed."""
        self.demand.learn(request)
        if self.demand.is_news:
            self._look_ahead()

    def reset(self, free_gpu: Ints, free_cpu_milli: Ints, free_memory_mib: Ints) -> None:
        """Take over what is free, by node (and GPU): as if what holds the rest had been taken one by one."""
        beside = np.stack((free_cpu_milli, free_memory_mib))
        changed = (self.free_gpu != free_gpu).any(axis=1) | (self.free_beside != beside).any(axis=0)
        self.free_gpu[:], self.free_beside[:] = free_gpu, beside
        self._step += 1
        self._changed[changed] = self._step
        self._look_around()

    def set_open(self, node: int, is_open: bool) -> None:
        """Open a node for new placements, or close it."""
        self.is_open[node] = is_open
        self._touch(node)

    def usable(self, request: Request) -> Mask | None:
        """Return, by node and GPU, whether its model will do for a request; None if all will."""
        return np.isin(self._models, list(request.models)) if request.models else None

    def pick(self, request: Request, among: Mask | None = None) -> Placement | None:
        """Return the best place for a request, or None if no open node can hold it. Changes nothing.

        Args:
            request: what is to be placed.
            among: which nodes may be taken, by position; any of them if None.
        """
        costs = self._current_costs(request)
        rank = costs.rank if among is None else np.where(among, costs.rank, _NOWHERE)
        if not len(rank):
            return None
        node = int(rank.argmin())
        if rank[node] == _NOWHERE:
            return None
        return Placement(node, self._gpus(node, request, costs), request)

    def take(self, placement: Placement) -> None:
        """Take a placement's share out of what is free.

        Raises:
            ConflictError: less is free there.
        """
        request = placement.request
        node, gpus = placement.node, list(placement.gpus)
        if (
            self.free_beside[0, node] < request.cpu_milli
            or self.free_beside[1, node] < request.memory_mib
            or len(set(gpus)) != request.num_gpu
            or any(self.free_gpu[node, gpu] < request.gpu_milli for gpu in gpus)
        ):
            raise ConflictError(f"node {node} has no room for {request}")
        self._move(placement, -1)

    def give_back(self, placement: Placement) -> None:
        """Undo ``take``.

        Raises:
            ConflictError: more would be free than the node has.
        """
        request, node = placement.request, placement.node
        whole = self._nodes[node]
        if (
            self.free_beside[0, node] + request.cpu_milli > whole.cpu_milli
            or self.free_beside[1, node] + request.memory_mib > whole.memory_mib
            or any(self.free_gpu[node, gpu] + request.gpu_milli > MILLI for gpu in placement.gpus)
        ):
            raise ConflictError(f"node {node} does not hold {request}")
        self._move(placement, +1)

    def _move(self, placement: Placement, sign: int) -> None:
        request, node = placement.request, placement.node
        self.free_beside[0, node] += sign * request.cpu_milli
        self.free_beside[1, node] += sign * request.memory_mib
        for gpu in placement.gpus:
            self.free_gpu[node, gpu] += sign * request.gpu_milli
        self._touch(node)

    def _touch(self, node: int) -> None:
        self._step += 1
        self._changed[node] = self._step
        if self._step >= self._look_at:
            self._look_around()

    def _look_ahead(self) -> None:
        """Take over what the demand has taught; every cost is out of date then."""
        self._outlook: Outlook = self.demand.outlook()
        self._blocks = self._priced_blocks()
        self._costs.clear()

    def _look_around(self) -> None:
        """Now and then see how scarce groups of free GPUs are; if that has changed much, costs are out of date."""
        blocks, old = self._priced_blocks(), self._blocks
        same_gangs = np.array_equal(blocks.need, old.need)
        if not same_gangs or (abs(blocks.table - old.table) > STEP + old.table / 2).any():
            self._blocks = blocks
            self._costs.clear()

    def _priced_blocks(self) -> Blocks:
        self._look_at = self._step + 1 + len(self._nodes) // 8
        free = self.free_gpu * self.is_open[:, None]
        return price_blocks(self._outlook, self._kinds, self._kind, self.free_beside, free)

    def _current_costs(self, request: Request) -> _Costs:
        costs = self._costs.get(request)
        if costs is None:
            if len(self._costs) >= MAX_KINDS:
                self._costs.clear()
            costs = self._costs[request] = self._unknown_costs(request)
        stale = (self._changed > costs.as_of).nonzero()[0]
        if len(stale):
            costs.rank[stale] = self._rank(stale, request, costs)
            costs.as_of = self._step
        return costs

    def _unknown_costs(self, request: Request) -> _Costs:
        choice = np.full(MILLI + 1, np.inf)
        if request.is_share:
            pieces, free = self._outlook.pieces, np.arange(request.gpu_milli, MILLI + 1)
            choice[free] = pieces[free] - pieces[free - request.gpu_milli] + free * 1e-6
        usable = self.usable(request)
        need = np.array([[request.cpu_milli], [request.memory_mib]])
        return _Costs(np.empty(len(self._nodes), dtype=np.int64), usable, choice, need)

    def _rank(self, nodes: Ints, request: Request, costs: _Costs) -> Ints:
        """Return the order of some nodes for a request: the worth each would lose, in steps, then its position."""
        beside = self.free_beside[:, nodes]
        fits = self.is_open[nodes] & (beside[0] >= request.cpu_milli) & (beside[1] >= request.memory_mib)
        free = self.free_gpu[nodes[fits]]
        good = free if costs.usable is None else np.where(costs.usable[nodes[fits]], free, 0)
        if request.is_share:
            sizes = good[np.arange(len(good)), costs.choice[good].argmin(axis=1)]
            enough = sizes >= request.gpu_milli
            sizes = sizes[enough]
        else:
            enough = (good == MILLI).sum(axis=1) >= request.num_gpu
        fits[fits] = enough
        rank = np.full(len(nodes), _NOWHERE)
        if not fits.any():
            return rank
        nodes, free, beside = nodes[fits], free[enough], beside[:, fits]
        pieces = self._outlook.pieces
        sellable, whole_before = pieces[free].sum(axis=1), (free == MILLI).sum(axis=1)
        if request.is_share:
            sellable_after = sellable + (pieces[sizes - request.gpu_milli] - pieces[sizes])
            whole_after = whole_before - (sizes == MILLI)
        else:
            sellable_after = sellable - MILLI * request.num_gpu
            whole_after = whole_before - request.num_gpu
        beside = np.concatenate((beside, beside - costs.need), axis=1)
        value = worth(self._outlook, np.concatenate((sellable, sellable_after)), beside)
        if self._outlook.gangs and whole_before.max() > 1:
            kind = self._kind[np.concatenate((nodes, nodes))]
            whole = np.concatenate((whole_before, whole_after))
            value += worth_of_blocks(self._blocks, kind, beside, whole)
        before, after = value.reshape(2, -1)
        lost = before - after
        if self._power is not None:
            woken = whole_before - whole_after
            watts = self._power.added(nodes, beside[0, : len(nodes)], whole_before, woken)
            lost += self._power_weight * watts
        rank[fits] = np.floor(lost / STEP).astype(np.int64) * len(self._nodes) + nodes
        return rank

    def _gpus(self, node: int, request: Request, costs: _Costs) -> tuple[int, ...]:
        """Return the best GPUs of a node that can hold the request."""
        free = self.free_gpu[node]
        if costs.usable is not None:
            free = np.where(costs.usable[node], free, 0)
        if request.is_share:
            return (int(costs.choice[free].argmin()),)
        return tuple(np.flatnonzero(free == MILLI)[: request.num_gpu].tolist())
