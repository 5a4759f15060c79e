"""All slices of a lease, or none."""

from cloudfarm.scheduler.packing.allocator import Allocator
from cloudfarm.scheduler.packing.shapes import Placement, Request


def place_gang(
    allocator: Allocator, request: Request, count: int, *, distinct_gpus: bool = True
) -> tuple[Placement, ...] | None:
    """Place a request ``count`` times and take the room, or return None and leave everything as it was.

    Args:
        allocator: where.
        request: one slice.
        count: how many slices.
        distinct_gpus: keep the slices off one another's GPUs: NCCL refuses two ranks on one device.
    """
    placed: list[Placement] = []
    plugs: list[Placement] = []
    for _ in range(count):
        placement = allocator.pick(request)
        if placement is None:
            break
        allocator.take(placement)
        placed.append(placement)
        if distinct_gpus and request.is_share:
            rest = int(allocator.free_gpu[placement.node, placement.gpus[0]])
            if rest:  # until the others are placed nothing is free beside this slice
                plug = Placement(placement.node, placement.gpus, Request(0, 0, 1, rest))
                allocator.take(plug)
                plugs.append(plug)
    for plug in plugs:
        allocator.give_back(plug)
    if len(placed) == count:
        return tuple(placed)
    for placement in placed:
        allocator.give_back(placement)
    return None
