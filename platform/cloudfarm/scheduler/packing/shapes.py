"""What the allocator is told and what it answers: nodes, requests, placements."""

from dataclasses import dataclass

from cloudfarm.domain.quantities import MILLI
from cloudfarm.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Node:
    """An empty machine: milli-CPUs, memory in MiB and the model of each GPU, in the order of their ids."""

    cpu_milli: int
    memory_mib: int
    gpu_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One slice: milli-CPUs, memory in MiB, and a share of one GPU, whole GPUs of one node, or no GPU.

    ``gpu_milli`` is per GPU: 1000 for whole GPUs. ``models`` are the GPU models that will do; empty means any.
    """

    cpu_milli: int
    memory_mib: int
    num_gpu: int = 0
    gpu_milli: int = 0
    models: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if min(self.cpu_milli, self.memory_mib, self.num_gpu, self.gpu_milli) < 0:
            raise InvalidInputError(f"a request has no negative amounts: {self}")
        share = self.num_gpu == 1 and 1 <= self.gpu_milli <= MILLI
        whole = self.num_gpu > 1 and self.gpu_milli == MILLI
        if not (share or whole or self.num_gpu == self.gpu_milli == 0):
            raise InvalidInputError(
                f"a request is for 1 to {MILLI} milli of one GPU, for several whole GPUs or for none, "
                f"not for {self.num_gpu} x {self.gpu_milli} milli",
            )

    @property
    def is_share(self) -> bool:
        """Whether it takes a part of a GPU."""
        return 0 < self.gpu_milli < MILLI

    @property
    def total_milli(self) -> int:
        """Milli-GPUs on all its GPUs together."""
        return self.num_gpu * self.gpu_milli


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request lies: the node's position and the ids of its GPUs."""

    node: int
    gpus: tuple[int, ...]
    request: Request
