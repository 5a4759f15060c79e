"""The public packing benchmark (openb, as in FGD's artifact), run with the farm's own allocator.

The protocol: pods arrive one at a time and never leave; each is tried once. CPU, memory and GPU model are hard limits.
A pod with less than one GPU takes a share of one GPU; others take wholly free GPUs of one node. The figure is the share
of all GPUs that is allocated when the arrived demand is 130 % of them: the mean over the arrivals at which the demand
rounds to 130 %.
"""

import time
from collections.abc import Mapping, Sequence
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
    """

    def __init__(self, cluster: Mapping[str, npt.NDArray[np.generic]], rng: np.random.Generator) -> None:
        del rng
        order = np.argsort(cluster["rank"], kind="stable")
        self._ids: list[int] = order.tolist()
        """Of the node at each position of the allocator, its id."""
        self._positions = np.argsort(order)
        self._allocator = Allocator(
            [
                Node(
                    int(cluster["cpu"][node]),
                    int(cluster["mem"][node]),
                    (str(cluster["model"][node]),) * int(cluster["ngpu"][node]),
                )
                for node in self._ids
            ],
        )

    def pick(self, pod: PodTuple, feasible_node_ids: Sequence[int] | Ints) -> Choice | None:
        """Return the node and GPUs for an arriving pod and take them; None only if no node is feasible.

        Args:
            pod: milli-CPUs, MiB, number of GPUs, milli of each, models (``A|B``, empty for any), name.
            feasible_node_ids: the nodes that can hold it.

        Raises:
            ConflictError: the nodes cannot hold the pod beside what was placed before.
        """
        cpu, mem, num, milli, spec, name = pod
        milli = int(milli) if num == 1 else MILLI * bool(num)
        models = frozenset(str(spec).split("|")) if spec else frozenset()
        request = Request(int(cpu), int(mem), int(num), milli, models)
        self._allocator.learn(request)
        if not len(feasible_node_ids):
            return None
        placement = self._allocator.pick(request)
        if placement is None or self._ids[placement.node] not in feasible_node_ids:
            among = np.zeros(len(self._ids), dtype=np.bool_)
            among[self._positions[np.asarray(feasible_node_ids)]] = True
            placement = self._allocator.pick(request, among)
        if placement is None:
            raise ConflictError(
                f"{name} fits nowhere beside what was placed, unlike the list of feasible nodes"
            )
        self._allocator.take(placement)
        return self._ids[placement.node], list(placement.gpus) or None


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


def simulate(nodes: Path, pods: Path, seed: int, arrivals: Path | None = None) -> Replay:
    """Replay the protocol with the farm's allocator; see ``replay``.

    Args:
        nodes: CSV of nodes.
        pods: CSV of pods.
        seed: which arrivals.
        arrivals: NPZ with the arrivals by seed. Without it they are made (``make_arrivals``).

    Raises:
        InvalidInputError: a file cannot be read.
    """
    cluster, listed = read_nodes(nodes), read_pods(pods)
    if arrivals is None:
        order = make_arrivals(cluster, listed, seed)
    else:
        order = read_arrivals(arrivals, seed, len(listed), len(cluster.ngpu))
    policy = ReplayPolicy(as_arrays(cluster, order), np.random.default_rng(seed))
    return replay(cluster, listed, order, policy)


def as_arrays(cluster: Cluster, arrivals: Arrivals) -> dict[str, npt.NDArray[np.generic]]:
    """Return what a policy is told of the cluster."""
    return {
        "cpu": cluster.cpu,
        "mem": cluster.mem,
        "ngpu": cluster.ngpu,
        "model": cluster.model,
        "rank": arrivals.rank,
    }


def replay(cluster: Cluster, pods: Sequence[PodTuple], arrivals: Arrivals, policy: Policy) -> Replay:
    """Run one seed with any policy, holding the truth and refusing what does not fit.

    Raises:
        ConflictError: the policy chose a node or GPUs that cannot hold the pod.
    """
    truth = _Truth(cluster)
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
        if choice is None:
            failed += 1
        else:
            truth.place(pod, choice, feasible)
            allocated += gpu_milli
        if round(100 * arrived / cluster.gpu_milli) == AT_PERCENT:
            at_mark.append(allocated)
    took_us = np.array(took_ns) / 1000
    return Replay(
        allocated_percent=100 * float(np.mean(at_mark or [allocated])) / cluster.gpu_milli,
        failed=failed,
        arrivals=len(took_ns),
        mean_us=float(took_us.mean()),
        p99_us=float(np.percentile(took_us, 99)),
    )


class _Truth:
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
        cpu, mem, num, milli, _, name = pod
        node, gpus = choice[0], choice[1] or []
        free = self._gpu[node] if node in feasible else np.zeros(0, dtype=np.int64)
        held = [gpu for gpu in set(gpus) if 0 <= gpu < len(free) and free[gpu] >= milli]
        if node not in feasible or not len(gpus) == len(held) == num:
            raise ConflictError(f"{name} was placed on node {node}, GPUs {gpus}, where it does not fit")
        self._cpu[node] -= cpu
        self._mem[node] -= mem
        self._pods[node] += 1
        free[gpus] -= milli
        self._whole[node] = (free == MILLI).sum()
        self._most[node] = free.max()
