"""Where slices go, as plainly as can be: first fit over hosts and GPUs. The tests' second opinion of the scheduler.

Pure and deterministic: the same hosts, leases and ask give the same placement.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

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
        self._change(piece, -1)

    def give(self, piece: Slice) -> None:
        """Put a slice's share back."""
        self._change(piece, 1)

    def _change(self, piece: Slice, sign: int) -> None:
        for index in piece.gpu_indices:
            share = piece.milli_gpus // len(piece.gpu_indices)
            self.free_milli[self.gpu_indices.index(index)] += sign * share
        self.free_cpus += sign * piece.cpus
        self.free_memory_bytes += sign * piece.memory_bytes

    def copy(self) -> "Room":
        """Return a room of its own with the same in it."""
        return replace(self, free_milli=list(self.free_milli))

    def shrink(self, other: "Room") -> None:
        """Leave only what is free in the other room as well."""
        self.free_milli = list(map(min, self.free_milli, other.free_milli))
        self.free_cpus = min(self.free_cpus, other.free_cpus)
        self.free_memory_bytes = min(self.free_memory_bytes, other.free_memory_bytes)


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
        rooms.take(held)
        return rooms

    def copy(self) -> "Rooms":
        """Return rooms of their own with the same in them."""
        return Rooms({host: room.copy() for host, room in self.by_host.items()})

    def take(self, slices: Iterable[Slice]) -> None:
        """Take slices out; those on hosts that offer nothing are left aside."""
        for piece in slices:
            if piece.host in self.by_host:
                self.by_host[piece.host].take(piece)

    def give(self, slices: Iterable[Slice]) -> None:
        """Put slices back."""
        for piece in slices:
            if piece.host in self.by_host:
                self.by_host[piece.host].give(piece)

    def shrink(self, other: "Rooms") -> None:
        """Leave only what is free in the other rooms as well."""
        for host, room in self.by_host.items():
            room.shrink(other.by_host[host])


def place(rooms: Rooms, lease_id: str, ask: Ask) -> tuple[Slice, ...] | None:
    """Place every slice of an ask and take it out of ``rooms``, or return None and leave ``rooms`` as it was."""
    placed: list[Slice] = []
    used: set[tuple[str, int]] = set()
    for index in range(ask.shape.count):
        piece = _first_fit(rooms.by_host.values(), lease_id, index, ask, used)
        if piece is None:
            rooms.give(placed)
            return None
        rooms.by_host[piece.host].take(piece)
        if ask.distinct_gpus:
            used.update((piece.host, gpu) for gpu in piece.gpu_indices)
        placed.append(piece)
    return tuple(placed)


def fits(rooms: Rooms, ask: Ask) -> bool:
    """Whether an ask could be placed; ``rooms`` stay as they were."""
    slices = place(rooms, "?", ask)
    rooms.give(slices or ())
    return slices is not None


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
    return fits(Rooms.of([_opened(host) for host in hosts], ()), ask)


def _opened(host: Host) -> Host:
    return Host(host.id, host.gpus, host.cpus, host.memory_bytes, host.grade)
