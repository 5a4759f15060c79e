"""Published policies of the openb benchmark, for ``make bench-scheduler``: first fit, BestFit and FGD.

Written anew from the description of the released code, to show that the replay is right: they give the published
figures. FGD knows the distribution of pods beforehand; the farm's allocator does not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cloudfarm.simulate.openb import Choice
from cloudfarm.simulate.openb_trace import Ints, PodTuple

Floats = npt.NDArray[np.float64]
WHOLE = 1000
TYPICAL = 0.95
"""Share of the pods, most frequent kinds first, that FGD looks at."""


class Baseline:
    """Highest score, then lowest rank; scores of a kind of pod are kept until the node changes."""

    name: ClassVar[str]

    def __init__(self, cluster: Mapping[str, npt.NDArray[np.generic]], pods: Sequence[PodTuple]) -> None:
        self.cpu = cluster["cpu"].astype(np.int64)
        self.model = cluster["model"]
        self.rank = cluster["rank"].astype(np.int64)
        counts = cluster["ngpu"].astype(np.int64)
        self.free = np.where(np.arange(counts.max())[None, :] < counts[:, None], WHOLE, 0)
        self._changed = np.ones(len(self.cpu), dtype=np.int64)
        self._step = 1
        self._kept: dict[tuple[int, int, int, str], tuple[int, Ints, Ints]] = {}
        self.prepare(pods)

    def prepare(self, pods: Sequence[PodTuple]) -> None:
        """Learn what the policy knows beforehand."""

    def scores(self, nodes: Ints, pod: PodTuple) -> tuple[Ints, Ints]:
        """Return the score of nodes, and the GPU that a share takes there."""
        raise NotImplementedError

    def tightest(self, nodes: Ints, milli: int) -> Ints:
        """Return the GPU with the least left that can hold so much."""
        free = self.free[nodes]
        gpus: Ints = np.where(free >= milli, free, WHOLE + 1).argmin(axis=1)
        return gpus

    def pick(self, pod: PodTuple, feasible_node_ids: Ints) -> Choice | None:
        """Choose as the released code does, and keep track."""
        if not len(feasible_node_ids):
            return None
        cpu, _, num, milli, spec, _ = pod
        kind = (cpu, num, milli, spec)
        as_of, score, gpu = self._kept.get(kind) or (0, np.zeros_like(self.cpu), np.zeros_like(self.cpu))
        stale = np.flatnonzero(self._changed > as_of)
        score[stale], gpu[stale] = self.scores(stale, pod)
        self._kept[kind] = (self._step, score, gpu)
        key = score[feasible_node_ids] * len(self.cpu) - self.rank[feasible_node_ids]
        node = int(feasible_node_ids[key.argmax()])
        if not num:
            gpus = []
        elif milli < WHOLE:
            gpus = [int(gpu[node])]
        else:
            gpus = np.flatnonzero(self.free[node] == WHOLE)[:num].tolist()
        self.cpu[node] -= cpu
        self.free[node, gpus] -= milli
        self._step += 1
        self._changed[node] = self._step
        return node, gpus or None


class FirstFit(Baseline):
    """The first node, and its first GPU with room."""

    name = "first fit"

    def scores(self, nodes: Ints, pod: PodTuple) -> tuple[Ints, Ints]:
        """Return no preference."""
        return np.zeros_like(nodes), (self.free[nodes] >= pod[3]).argmax(axis=1)


class BestFit(Baseline):
    """The node with the least CPU and GPU left, as coded in the artifact."""

    name = "BestFit"

    def scores(self, nodes: Ints, pod: PodTuple) -> tuple[Ints, Ints]:
        """Return int(100 (1 - (cpu_left - cpu) / 256000 - (gpu_left - gpu) / 16000))."""
        cpu, gpu = self.cpu[nodes] - pod[0], self.free[nodes].sum(axis=1) - pod[2] * pod[3]
        score = (100 * (1 - cpu / 256000 - gpu / 16000)).astype(np.int64)
        return score, self.tightest(nodes, pod[3])


class Fgd(Baseline):
    """Fragmentation gradient descent (Weng et al., USENIX ATC 2023) with the released score."""

    name = "FGD"

    def prepare(self, pods: Sequence[PodTuple]) -> None:
        """Take the most frequent kinds of pods until 95 % of all."""
        counts: Counter[tuple[int, int, int, str]] = Counter((pod[0], pod[3], pod[2], pod[4]) for pod in pods)
        kinds, total = [], 0
        for kind, number in counts.most_common():
            kinds.append((kind, number))
            total += number
            if total >= TYPICAL * len(pods):
                break
        self._share = np.array([number / total for _, number in kinds])
        self._cpus, self._millis, self._nums = (np.array([kind[i] for kind, _ in kinds]) for i in range(3))
        self._specs = [kind[3] for kind, _ in kinds]
        self._levels, self._level = np.unique(self._millis, return_inverse=True)
        self._runs = np.array([[not s or m in s.split("|") for s in self._specs] for m in self.model])

    def fragmentation(self, nodes: Ints, cpu: Ints, free: Ints) -> Floats:
        """Return the idle milli that the expected pod cannot use: sum over kinds of share * unusable."""
        idle = free.sum(axis=1)
        enough = free[:, :, None] >= self._levels
        fitting = enough.sum(axis=1)[:, self._level]
        left_out = (free[:, :, None] * ~enough).sum(axis=1)[:, self._level]
        runs = self._runs[nodes] & (self._millis > 0) & (cpu[:, None] >= self._cpus) & (fitting >= self._nums)
        unusable: Floats = np.where(runs, left_out, idle[:, None]) @ self._share
        return unusable

    def scores(self, nodes: Ints, pod: PodTuple) -> tuple[Ints, Ints]:
        """Return int(100 sigmoid(fall of fragmentation / 1000)), of the best GPU for a share."""
        cpu, _, num, milli, _, _ = pod
        before, left = self.fragmentation(nodes, self.cpu[nodes], self.free[nodes]), self.cpu[nodes] - cpu
        if not 0 < milli < WHOLE:
            free = self.free[nodes]
            taken = (free == WHOLE) & ((free == WHOLE).cumsum(axis=1) <= num)
            return self._score(before - self.fragmentation(nodes, left, free - taken * milli)), np.zeros_like(
                nodes
            )
        options = []
        for gpu in range(self.free.shape[1]):
            free = self.free[nodes].copy()
            free[:, gpu] -= milli
            fits = free[:, gpu] >= 0
            score = self._score(before - self.fragmentation(nodes, left, np.maximum(free, 0)))
            options.append(np.where(fits, score, -1))
        table = np.array(options)
        return table.max(axis=0), table.argmax(axis=0)

    @staticmethod
    def _score(fall: Floats) -> Ints:
        return (100 / (1 + np.exp(-fall / 1000))).astype(np.int64)
