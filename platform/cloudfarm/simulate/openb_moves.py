"""The packing benchmark with moves: a different protocol, in which a few pods may be moved once each.

Order, ties and one try are as in the published one. But when a pod fits nowhere, others may be moved so that it does;
all in all at most a given share of the pods placed until then, and none twice. What is chosen is what the live farm
would choose (``scheduler/packing/moves.py``); the truth is judged here.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cloudfarm.errors import ConflictError
from cloudfarm.scheduler.packing.moves import Movable, Pool, Stuck, make_room
from cloudfarm.scheduler.packing.shapes import Placement
from cloudfarm.simulate.openb import Choice, ReplayPolicy, Truth, request_of
from cloudfarm.simulate.openb_trace import Ints, PodTuple

MOST_AT_ONCE = 2
"""Pods that are moved for one at most."""


@dataclass(frozen=True, slots=True)
class Rescue:
    """Where a pod goes that fitted nowhere, and where others go to make room for it."""

    choice: Choice
    moved: Mapping[int, Choice]
    """By the number of the pod, counted from 0 as they were placed."""


class MovingPolicy(ReplayPolicy):
    """The live allocator, and the live search for what may be moved."""

    def __init__(self, cluster: Mapping[str, npt.NDArray[np.generic]], rng: np.random.Generator) -> None:
        super().__init__(cluster, rng)
        self._pool = Pool(*self.allocator.free_gpu.shape)
        self._placed = 0

    def pick(self, pod: PodTuple, feasible_node_ids: Sequence[int] | Ints) -> Choice | None:
        """Place a pod; see ``ReplayPolicy``."""
        choice = super().pick(pod, feasible_node_ids)
        if choice is not None:
            node = int(self._positions[choice[0]])
            self._note(Placement(node, tuple(choice[1] or ()), request_of(pod)))
        return choice

    def rescue(self, pod: PodTuple, most: int) -> Rescue | None:
        """Place a pod that fits nowhere by moving at most so many others; None if that cannot be done."""
        plan = make_room(self.allocator, Stuck(request_of(pod)), self._pool, min(most, MOST_AT_ONCE))
        if plan is None:
            return None
        for movable, _ in plan.moved:
            self._pool.remove(movable)  # and it is never moved again
        self._note(plan.placed[0])
        return Rescue(
            self._choice(plan.placed[0]), {int(each.id): self._choice(to[0]) for each, to in plan.moved}
        )

    def _note(self, placement: Placement) -> None:
        request = placement.request
        loss = 1 + request.total_milli / 1e6  # one move is one move; of equals the smaller
        if (
            request.num_gpu or not request.models
        ):  # here a model binds work without GPUs, too; on the farm it does not
            self._pool.add(Movable(str(self._placed), (placement,), loss))
        self._placed += 1

    def _choice(self, placement: Placement) -> Choice:
        return self._ids[placement.node], list(placement.gpus) or None


@dataclass(slots=True)
class Mover:
    """Lets a policy move pods within the budget, and holds it to that.

    Args:
        policy: that chooses.
        share: of the pods placed so far that may have been moved, 0 to 1.
    """

    policy: MovingPolicy
    share: float
    moved: set[int] = field(default_factory=set)
    """By number, as in ``Rescue``."""
    took_ns: list[int] = field(default_factory=list)
    """What each search took."""
    _where: list[tuple[PodTuple, Choice]] = field(default_factory=list)

    def note(self, pod: PodTuple, choice: Choice) -> None:
        """Remember where a pod was placed."""
        self._where.append((pod, choice))

    def rescue(self, pod: PodTuple, truth: Truth) -> bool:
        """Place a pod that failed, if that can be done; False if not.

        Raises:
            ConflictError: the policy moved a pod twice, or more than it may, or to where it does not fit.
        """
        left = int(self.share * len(self._where)) - len(self.moved)
        if left <= 0 or not pod[2]:  # pods without GPUs change nothing of what is measured
            return False
        started = time.perf_counter_ns()
        rescue = self.policy.rescue(pod, left)
        self.took_ns.append(time.perf_counter_ns() - started)
        if rescue is None:
            return False
        if len(rescue.moved) > left or self.moved & set(rescue.moved):
            raise ConflictError(f"{rescue.moved} were moved: more than {left}, or some of them again")
        for number in rescue.moved:
            truth.lift(*self._where[number])
        for number, choice in rescue.moved.items():
            moved = self._where[number][0]
            truth.place(moved, choice, truth.feasible(moved))
            self._where[number] = moved, choice
        truth.place(pod, rescue.choice, truth.feasible(pod))
        self.moved.update(rescue.moved)
        self.note(pod, rescue.choice)
        return True
