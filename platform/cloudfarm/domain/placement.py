"""Where slices go: first fit over hosts and GPUs, all slices of a lease or none.

Pure and deterministic: the same hosts, leases and ask give the same placement.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, Slice
from cloudfarm.domain.quantities import MILLI


@dataclass(slots=True)
class Room:
    """What is free on one host; changed while a placement is being built."""

    host: str
    models: tuple[str, ...]
    free_milli: list[int]
    """Per GPU, by position in ``models``."""
    gpu_indices: tuple[int, ...]
    free_cpus: int
    free_memory_bytes: int

    def take(self, piece: Slice) -> None:
        """Take a slice's share out of the room."""
        for index in piece.gpu_indices:
            self.free_milli[self.gpu_indices.index(index)] -= piece.milli_gpus // len(piece.gpu_indices)
        self.free_cpus -= piece.cpus
        self.free_memory_bytes -= piece.memory_bytes


@dataclass(slots=True)
class Rooms:
    """What is free on all hosts."""

    by_host: dict[str, Room] = field(default_factory=dict)

    @classmethod
    def of(cls, hosts: Iterable[Host], held: Iterable[Slice]) -> "Rooms":
        """Return what the hosts have left beside the held slices. Cordoned and unreachable hosts offer nothing."""
        rooms = cls(
            {
                host.id: Room(
                    host=host.id,
                    models=tuple(gpu.model for gpu in host.gpus),
                    free_milli=[MILLI] * len(host.gpus),
                    gpu_indices=tuple(gpu.index for gpu in host.gpus),
                    free_cpus=host.cpus,
                    free_memory_bytes=host.memory_bytes,
                )
                for host in sorted(hosts, key=lambda host: host.id)
                if host.reachable and not host.cordoned
            },
        )
        for piece in held:
            if piece.host in rooms.by_host:
                rooms.by_host[piece.host].take(piece)
        return rooms


def place(rooms: Rooms, lease_id: str, ask: Ask) -> tuple[Slice, ...] | None:
    """Place every slice of an ask and take it out of ``rooms``, or return None and leave ``rooms`` as it was."""
    placed: list[Slice] = []
    used: set[tuple[str, int]] = set()
    trial = {
        host: Room(
            room.host,
            room.models,
            list(room.free_milli),
            room.gpu_indices,
            room.free_cpus,
            room.free_memory_bytes,
        )
        for host, room in rooms.by_host.items()
    }
    for index in range(ask.shape.count):
        piece = _first_fit(trial.values(), lease_id, index, ask, used)
        if piece is None:
            return None
        trial[piece.host].take(piece)
        if ask.distinct_gpus:
            used.update((piece.host, gpu) for gpu in piece.gpu_indices)
        placed.append(piece)
    rooms.by_host = trial
    return tuple(placed)


def _first_fit(
    rooms: Iterable[Room], lease_id: str, index: int, ask: Ask, used: set[tuple[str, int]]
) -> Slice | None:
    per_gpu = min(ask.shape.milli_gpus, MILLI)
    wanted = ask.shape.gpus_per_slice
    for room in rooms:
        if room.free_cpus < ask.cpus or room.free_memory_bytes < ask.memory_bytes:
            continue
        fitting = [
            gpu
            for gpu, model, free in zip(room.gpu_indices, room.models, room.free_milli, strict=True)
            if free >= per_gpu and (room.host, gpu) not in used and ask.gpu_model in (None, model)
        ]
        if len(fitting) < wanted:
            continue
        return Slice(
            lease_id=lease_id,
            index=index,
            host=room.host,
            gpu_indices=tuple(fitting[:wanted]),
            milli_gpus=ask.shape.milli_gpus,
            cpus=ask.cpus,
            memory_bytes=ask.memory_bytes,
        )
    return None


def ever_fits(hosts: Sequence[Host], ask: Ask) -> bool:
    """Whether the farm could hold the ask if it were empty (cordoned and silent hosts count: they may come back)."""
    return place(Rooms.of([_opened(host) for host in hosts], ()), "?", ask) is not None


def _opened(host: Host) -> Host:
    return Host(host.id, host.gpus, host.cpus, host.memory_bytes, host.grade)
