"""The public packing benchmark (openb, as in FGD's artifact), run with the farm's own allocator.

The protocol: pods arrive one at a time and never leave; each is tried once. CPU, memory and GPU model are hard limits.
A pod with less than one GPU takes a share of one GPU; others take wholly free GPUs of one node. The figure is the share
of all GPUs that is allocated when the arrived demand is 130 % of them: the mean over the arrivals at which the demand
rounds to 130 %.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.quantities import MILLI
from cloudfarm.errors import ConflictError
from cloudfarm.scheduler.packing import Allocator, Node, Request
from cloudfarm.simulate.openb_trace import (
    Arrivals,
    Cluster,
    Ints,
    PodTuple,
    make_arrivals,
    read_arrivals,
    read_nodes,
    read_pods,
)

AT_PERCENT = 130
"""Arrived demand, in percent of the cluster's GPUs, at which the allocation is read."""
MAX_PODS = 1001
"""Pods that a node may hold."""

Choice = tuple[int, list[int] | None]
"""A node's position and GPU ids; None for a pod without GPU."""


class Policy(Protocol):
    """Chooses a place for each arriving pod; keeps track of the state by itself."""

    def pick(self, pod: PodTuple, feasible_node_ids: Ints) -> Choice | None:
        """Return a node out of those that can hold the pod and its GPUs, or None if there is none."""


class ReplayPolicy:
    """The live allocator behind the benchmark's interface.

    It knows the cluster, and of the pods only those that it was asked about.

    Args:
        cluster: arrays by node: ``cpu`` in milli, ``mem`` in MiB, ``ngpu``, ``model``, and ``rank``, the order of nodes
            that breaks ties.
        rng: not used: the allocator is deterministic.
        power_weight: as for the allocator.
    """

    def __init__(
        self,
        cluster: Mapping[str, npt.NDArray[np.generic]],
        rng: np.random.Generator,
        power_weight: float = 0.0,
    ) -> None:
        del rng
        order = np.argsort(cluster["rank"], kind="stable")
        self._ids: list[int] = order.tolist()
        """Of the node at each position of the allocator, its id."""
        self._positions = np.argsort(order)
        self.allocator = Allocator(
            [
                Node(
                    int(cluster["cpu"][node]),
                    int(cluster["mem"][node]),
                    (str(cluster["model"][node]),) * int(cluster["ngpu"][node]),
                )
                for node in self._ids
            ],
            power_weight=power_weight,
        )

    def pick(self, pod: PodTuple, feasible_node_ids: Sequence[int] | Ints) -> Choice | None:
        """Return the node and GPUs for an arriving pod and take them; None only if no node is feasible.

        Args:
            pod: milli-CPUs, MiB, number of GPUs, milli of each, models (``A|B``, empty for any), name.
            feasible_node_ids: the nodes that can hold it.

        Raises:
            ConflictError: the nodes cannot hold the pod beside what was placed before.
        """
        request = request_of(pod)
        self.allocator.learn(request)
        if not len(feasible_node_ids):
            return None
        placement = self.allocator.pick(request)
        if placement is None or self._ids[placement.node] not in feasible_node_ids:
            among = np.zeros(len(self._ids), dtype=np.bool_)
            among[self._positions[np.asarray(feasible_node_ids)]] = True
            placement = self.allocator.pick(request, among)
        if placement is None:
            raise ConflictError(
                f"{pod[5]} fits nowhere beside what was placed, unlike the list of feasible nodes"
            )
        self.allocator.take(placement)
        return self._ids[placement.node], list(placement.gpus) or None


def request_of(pod: PodTuple) -> Request:
    """Return a pod in the allocator's words."""
    cpu, mem, num, milli, spec, _ = pod
    milli = int(milli) if num == 1 else MILLI * bool(num)
    models = frozenset(str(spec).split("|")) if spec else frozenset()
    return Request(int(cpu), int(mem), int(num), milli, models)


class Rescuer(Protocol):
    """May move pods for one that fits nowhere: see ``openb_moves.py``."""

    @property
    def moved(self) -> Collection[int]:
        """Those that were moved."""

    def note(self, pod: PodTuple, choice: Choice) -> None:
        """Remember where a pod was placed."""

    def rescue(self, pod: PodTuple, truth: "Truth") -> bool:
        """Place a pod that failed; False if that cannot be done."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What came out of one run."""

    allocated_percent: float
    """GPU allocation at 130 % arrived demand: the published metric."""
    failed: int
    """Pods that no node could hold."""
    arrivals: int
    mean_us: float
    """Microseconds for a decision: learning, choosing and bookkeeping, in this process."""
    p99_us: float
    moved: int = 0
    """Pods that were moved: 0 in the published protocol."""


def simulate(nodes: Path, pods: Path, seed: int, arrivals: Path | None = None, moves: float = 0.0) -> Replay:
    """Replay the protocol with the farm's allocator; see ``replay``.

    Args:
        nodes: CSV of nodes.
        pods: CSV of pods.
        seed: which arrivals.
        arrivals: NPZ with the arrivals by seed. Without it they are made (``make_arrivals``).
        moves: which share of the pods may be moved, once each; with any this is another protocol.

    Raises:
        InvalidInputError: a file cannot be read.
    """
    cluster, listed = read_nodes(nodes), read_pods(pods)
    if arrivals is None:
        order = make_arrivals(cluster, listed, seed)
    else:
        order = read_arrivals(arrivals, seed, len(listed), len(cluster.ngpu))
    rng = np.random.default_rng(seed)
    if not moves:
        return replay(cluster, listed, order, ReplayPolicy(as_arrays(cluster, order), rng))
    from cloudfarm.simulate.openb_moves import Mover, MovingPolicy  # noqa: PLC0415 - it builds on this module

    policy = MovingPolicy(as_arrays(cluster, order), rng)
    return replay(cluster, listed, order, policy, Mover(policy, moves))


def as_arrays(cluster: Cluster, arrivals: Arrivals) -> dict[str, npt.NDArray[np.generic]]:
    """Return what a policy is told of the cluster."""
    return {
        "cpu": cluster.cpu,
        "mem": cluster.mem,
        "ngpu": cluster.ngpu,
        "model": cluster.model,
        "rank": arrivals.rank,
    }


def replay(
    cluster: Cluster,
    pods: Sequence[PodTuple],
    arrivals: Arrivals,
    policy: Policy,
    rescuer: Rescuer | None = None,
) -> Replay:
    """Run one seed with any policy, holding the truth and refusing what does not fit.

    Raises:
        ConflictError: the policy chose a node or GPUs that cannot hold the pod.
    """
    truth = Truth(cluster)
    arrived = allocated = failed = 0
    at_mark: list[int] = []
    took_ns: list[int] = []
    for position in arrivals.order.tolist():
        pod = pods[position]
        feasible = truth.feasible(pod)
        started = time.perf_counter_ns()
        choice = policy.pick(pod, feasible)
        took_ns.append(time.perf_counter_ns() - started)
        gpu_milli = pod[2] * pod[3]
        arrived += gpu_milli
        if choice is None and len(feasible):
            raise ConflictError(f"{pod[5]} was not placed though it fits")
        if choice is not None:
            truth.place(pod, choice, feasible)
            if rescuer is not None:
                rescuer.note(pod, choice)
        if choice is not None or (rescuer is not None and rescuer.rescue(pod, truth)):
            allocated += gpu_milli
        else:
            failed += 1
        if round(100 * arrived / cluster.gpu_milli) == AT_PERCENT:
            at_mark.append(allocated)
    took_us = np.array(took_ns) / 1000
    return Replay(
        allocated_percent=100 * float(np.mean(at_mark or [allocated])) / cluster.gpu_milli,
        failed=failed,
        arrivals=len(took_ns),
        mean_us=float(took_us.mean()),
        p99_us=float(np.percentile(took_us, 99)),
        moved=0 if rescuer is None else len(rescuer.moved),
    )


class Truth:
    """What is really free. Shares no code with the allocator, so that it can judge it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cpu = cluster.cpu.copy()
        self._mem = cluster.mem.copy()
        self._gpu = np.where(np.arange(cluster.ngpu.max())[None, :] < cluster.ngpu[:, None], MILLI, 0)
        self._whole = cluster.ngpu.copy()
        self._most = self._gpu.max(axis=1)
        self._pods = np.zeros(len(cluster.ngpu), dtype=np.int64)
        self._model = cluster.model

    def feasible(self, pod: PodTuple) -> Ints:
        """Return the nodes that can hold a pod."""
        cpu, mem, num, milli, spec, _ = pod
        fits = (self._cpu >= cpu) & (self._mem >= mem) & (self._pods < MAX_PODS)
        if num == 1:
            fits &= self._most >= milli
        elif num:
            fits &= self._whole >= num
        if spec:
            fits &= np.isin(self._model, spec.split("|"))
        return np.flatnonzero(fits)

    def place(self, pod: PodTuple, choice: Choice, feasible: Ints) -> None:
        """Place a pod.

        Raises:
            ConflictError: it does not fit there.
        """
        _, _, num, milli, _, name = pod
        node, gpus = choice[0], choice[1] or []
        free = self._gpu[node] if node in feasible else np.zeros(0, dtype=np.int64)
        held = [gpu for gpu in set(gpus) if 0 <= gpu < len(free) and free[gpu] >= milli]
        if node not in feasible or not len(gpus) == len(held) == num:
            raise ConflictError(f"{name} was placed on node {node}, GPUs {gpus}, where it does not fit")
        self._change(pod, node, gpus, 1)

    def lift(self, pod: PodTuple, choice: Choice) -> None:
        """Take a pod away from where it was placed."""
        self._change(pod, choice[0], choice[1] or [], -1)

    def _change(self, pod: PodTuple, node: int, gpus: list[int], sign: int) -> None:
        cpu, mem, _, milli, _, _ = pod
        self._cpu[node] -= sign * cpu
        self._mem[node] -= sign * mem
        self._pods[node] += sign
        free = self._gpu[node]
        free[gpus] -= sign * milli
        self._whole[node] = (free == MILLI).sum()
        self._most[node] = free.max()
