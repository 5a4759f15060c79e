"""The Tiresias discipline: least attained GPU-time first, in a few classes, first come first served within each.

Gu et al., *Tiresias: A GPU Cluster Manager for Distributed Deep Learning*, NSDI 2019 (discretised two-dimensional
least attained service), in the form in which Pollux's artifact compares against it: two queues divided at 16
GPU-hours, no promotion back, GPUs taken from the hosts that have most free.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

from cloudfarm.errors import InvalidInputError

Allocation = tuple[tuple[int, int], ...]
"""Which hosts a job has and how many GPUs on each, in the order in which they were taken."""

GPU_HOUR_S = 3600


class Tiresias:
    """Decides, round after round, which jobs run and where.

    Args:
        thresholds_gpu_s: attained GPU-seconds at which a job moves to the next queue, ascending.
    """

    def __init__(self, thresholds_gpu_s: Sequence[int] = (16 * GPU_HOUR_S,)) -> None:
        if list(thresholds_gpu_s) != sorted(set(thresholds_gpu_s)) or min(thresholds_gpu_s, default=1) < 1:
            raise InvalidInputError("thresholds are positive and ascend")
        self._thresholds = tuple(thresholds_gpu_s)
        # Dicts as ordered sets: who came into a queue first stands first, preempted or not.
        self._queues: tuple[dict[str, None], ...] = tuple({} for _ in range(len(self._thresholds) + 1))
        self._attained_gpu_s: dict[str, int] = {}
        self._running: set[str] = set()
        self._last_s = 0

    def assign(
        self, now_s: int, hosts: Sequence[int], jobs: Mapping[str, int], held: Mapping[str, Allocation]
    ) -> dict[str, Allocation]:
        """Return the allocation of every job that runs from now on; one that goes on running keeps its own.

        Args:
            now_s: seconds since the start.
            hosts: the GPUs of each host.
            jobs: the GPUs that each job wants, of all that are there, in the order of arrival.
            held: what they have been holding until now.
        """
        self._forget(jobs)
        self._count(now_s, jobs)
        running = self._choose(sum(hosts), jobs)
        self._running = set(running)
        kept = {name: held[name] for name in running if name in held}
        return _place(hosts, {name: jobs[name] for name in running}, kept)

    def _forget(self, jobs: Mapping[str, int]) -> None:
        for name in self._attained_gpu_s.keys() - jobs.keys():
            del self._attained_gpu_s[name]
            for queue in self._queues:
                queue.pop(name, None)

    def _count(self, now_s: int, jobs: Mapping[str, int]) -> None:
        """Charge what ran since the last round, let in what is new, and move down who has had enough."""
        elapsed_s = now_s - self._last_s
        self._last_s = now_s
        for name, gpus in jobs.items():
            if name not in self._attained_gpu_s:
                self._attained_gpu_s[name] = 0
                self._queues[0][name] = None
            elif name in self._running:
                self._attained_gpu_s[name] += elapsed_s * gpus
                for upper, lower, threshold in zip(
                    self._queues, self._queues[1:], self._thresholds, strict=False
                ):
                    if name in upper and self._attained_gpu_s[name] >= threshold:
                        del upper[name]
                        lower[name] = None

    def _choose(self, left: int, jobs: Mapping[str, int]) -> list[str]:
        """Return who runs: down the queues, whoever still fits into what is left, whole or not at all."""
        chosen = []
        for name in chain.from_iterable(self._queues):
            if jobs[name] <= left:
                left -= jobs[name]
                chosen.append(name)
        return chosen


def _place(
    hosts: Sequence[int], running: Mapping[str, int], kept: Mapping[str, Allocation]
) -> dict[str, Allocation]:
    """Give hosts to who has none yet: whole hosts as far as they go, the emptiest first, of equals the first."""
    free = list(hosts)
    for host, gpus in chain.from_iterable(kept.values()):
        free[host] -= gpus
    placed = {}
    for name, wanted in running.items():
        if name in kept:
            placed[name] = kept[name]
            continue
        taken: list[tuple[int, int]] = []
        while wanted:
            host = max(range(len(free)), key=free.__getitem__)
            gpus = min(free[host], wanted)
            free[host] -= gpus
            wanted -= gpus  # noqa: PLW2901 - what is still wanted
            taken.append((host, gpus))
        placed[name] = tuple(taken)
    return placed
