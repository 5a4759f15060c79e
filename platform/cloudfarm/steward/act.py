"""Carry decisions out: the store first, then hosts, Ray and Serve, never both in one transaction."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudfarm.errors import CloudfarmError, FencedError, StaleError
from cloudfarm.ports import Artifacts, Hosts, RayJobs, Serving, Store
from cloudfarm.steward import view as v
from cloudfarm.steward.lease_orders import LeaseOrders
from cloudfarm.steward.orders import Handler
from cloudfarm.steward.workload_orders import WorkloadOrders

log = logging.getLogger(__name__)

_NAMES = ("lease_id", "job_id", "service_id", "name")


@dataclass(slots=True)
class Actor:
    """Executes decisions; computes none."""

    store: Store
    hosts: Hosts
    ray_jobs: RayJobs
    serving: Serving
    artifacts: Artifacts
    max_log_bytes: int
    gpu_reserve_percent: int
    """How much of a shared GPU's memory no slice may use."""
    patience_s: float = 1.0
    """How long a step waits for what it ordered; what takes longer goes on beside the next steps."""
    _under_way: dict[object, asyncio.Task[bool]] = field(default_factory=dict)
    _handlers: Mapping[type, Handler] = field(init=False)

    def __post_init__(self) -> None:
        leases = LeaseOrders(self.store, self.hosts, self.artifacts, self.gpu_reserve_percent)
        workloads = WorkloadOrders(
            self.store, self.hosts, self.ray_jobs, self.serving, self.artifacts, self.max_log_bytes
        )
        self._handlers = {**leases.handlers(), **workloads.handlers()}

    async def carry_out(self, decisions: v.Decisions, view: v.FarmView, epoch: int) -> int:
        """Carry out every decision that is not being carried out already; return how many changed something by now.

        One that fails is logged and decided again at the next tick. A host, or Ray, that is slow keeps nothing else
        from being done: only the same order to the same thing waits for it.

        Raises:
            FencedError: as soon as a newer steward is found to have taken over.
        """
        for decision in decisions:
            key = _key(decision)
            if key not in self._under_way:
                self._under_way[key] = asyncio.create_task(self._one(decision, view, epoch))
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=self.patience_s)
        ended = {key: task for key, task in self._under_way.items() if task.done()}
        for key in ended:
            del self._under_way[key]
        return sum(task.result() for task in ended.values())

    async def finish(self) -> None:
        """Wait for everything that is under way; for tests and for an orderly end."""
        while self._under_way:
            key, task = next(iter(self._under_way.items()))
            await task
            self._under_way.pop(key, None)

    async def _one(self, decision: v.Decision, view: v.FarmView, epoch: int) -> bool:
        handler = self._handlers[type(decision)]
        try:
            return await handler(decision, view, epoch) is not False
        except FencedError:
            raise
        except StaleError as error:
            log.info("%s: %s; decided again at the next tick", decision, error)
        except CloudfarmError as error:
            log.warning("%s failed, to be tried again: %s", decision, error)
        return False


def _key(decision: v.Decision) -> object:
    """Return what two decisions share that must not be carried out at the same time."""
    name = next((getattr(decision, name) for name in _NAMES if hasattr(decision, name)), "")
    piece = getattr(decision, "slice", None)
    return type(decision), name, piece.name if piece is not None else ""
