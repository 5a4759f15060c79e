"""What placing something costs in watts: a node that was asleep wakes up, and a GPU begins to work.

A node on which nothing lies counts as asleep and takes nothing. One on which something lies takes what its CPUs and
GPUs take when idle; a GPU of which any part is taken counts as working in full, since nobody knows how hard. Idle and
full watts of the GPU models, and half a watt for an idle CPU, are those of PWR (Lettich et al., Power- and
Fragmentation-aware Online Scheduling for GPU Datacenters, CCGrid 2025), which takes them from data sheets; idle ones
are rough. What depends on the work and not on the place is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloudfarm.domain.quantities import MILLI
from cloudfarm.scheduler.packing.prices import Floats, Ints
from cloudfarm.scheduler.packing.shapes import Node

WATTS = {"A100": (50, 400), "V100": (30, 300), "P100": (25, 250), "A10": (30, 150), "T4": (10, 70)}
"""Idle and full, by what a model's name contains; the first that does counts."""
OTHER = 25, 250
CPU_WATTS = 0.5


@dataclass(frozen=True, slots=True)
class Power:
    """The watts of some nodes."""

    idle: Floats
    """By node: what it takes when something lies on it and no GPU works."""
    working: Floats
    """By node: what one of its GPUs takes more when it works."""
    cpu_milli: Ints
    """By node, when nothing lies on it."""
    gpus: Ints
    """By node."""

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> "Power":
        """Return the watts of nodes by the models of their GPUs."""
        watts = [[_watts(model) for model in node.gpu_models] for node in nodes]
        return cls(
            idle=np.array(
                [
                    node.cpu_milli / MILLI * CPU_WATTS + sum(idle for idle, _ in each)
                    for node, each in zip(nodes, watts, strict=True)
                ]
            ),
            working=np.array([sum(full - idle for idle, full in each) / max(len(each), 1) for each in watts]),
            cpu_milli=np.array([node.cpu_milli for node in nodes], dtype=np.int64),
            gpus=np.array([len(node.gpu_models) for node in nodes], dtype=np.int64),
        )

    def added(self, nodes: Ints, cpu_milli: Ints, whole: Ints, woken: Ints) -> Floats:
        """Return the watts that placing something adds.

        Args:
            nodes: where it may go, by position.
            cpu_milli: free on each of them.
            whole: wholly free GPUs on each of them.
            woken: how many of those it would take, or take a share of.
        """
        asleep = (cpu_milli == self.cpu_milli[nodes]) & (whole == self.gpus[nodes])
        added: Floats = asleep * self.idle[nodes] + woken * self.working[nodes]
        return added

    def total(self, cpu_milli: Ints, whole: Ints) -> float:
        """Return the watts of all nodes, by what is free on each: milli-CPUs and whole GPUs."""
        awake = (cpu_milli < self.cpu_milli) | (whole < self.gpus)
        return float((awake * self.idle + (self.gpus - whole) * self.working).sum())


def _watts(model: str) -> tuple[int, int]:
    return next((watts for name, watts in WATTS.items() if name in model.upper()), OTHER)
