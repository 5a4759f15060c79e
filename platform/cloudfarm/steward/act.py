"""Carry decisions out: the store first, then hosts, Ray and Serve, never both in one transaction."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import Transition
from cloudfarm.errors import CloudfarmError, FencedError, StaleError, UnavailableError
from cloudfarm.ports import Artifacts, Hosts, RayJobs, Serving, Store
from cloudfarm.steward import view as v
from cloudfarm.steward.changes import CHANGES, Change
from cloudfarm.steward.lease_orders import LeaseOrders
from cloudfarm.steward.orders import Handler
from cloudfarm.steward.service_orders import ServiceOrders
from cloudfarm.steward.workload_orders import WorkloadOrders
from cloudfarm.troubles import Troubles

log = logging.getLogger(__name__)

TOGETHER = 1000
"""Changes of one transaction at most: what the API wants to write waits for so many."""
_Key = tuple[type, str, str]
_NAMES = ("lease_id", "job_id", "revision_id", "service_id", "name")


@dataclass(slots=True)
class Actor:
    """Executes decisions; computes none."""

    store: Store
    clock: Clock
    hosts: Hosts
    ray_jobs: RayJobs
    serving: Serving
    artifacts: Artifacts
    max_log_bytes: int
    patience_s: float = 1.0
    """How long a step waits for what it ordered; what takes longer goes on beside the next steps."""
    troubles: Troubles = field(init=False)
    """What no order should have met goes there, and all else goes on."""
    _under_way: dict[_Key, asyncio.Task[bool]] = field(default_factory=dict)
    _handlers: Mapping[type, Handler] = field(init=False)
    _fenced: FencedError | None = None
    """What an order has met that nobody waited for: the next step raises it, if there is one."""

    def __post_init__(self) -> None:
        self.troubles = Troubles(self.store, self.clock)
        leases = LeaseOrders(self.store, self.hosts, self.artifacts)
        workloads = WorkloadOrders(self.store, self.hosts, self.ray_jobs, self.artifacts, self.max_log_bytes)
        services = ServiceOrders(self.store, self.clock, self.serving)
        self._handlers = {**leases.handlers(), **workloads.handlers(), **services.handlers()}

    async def carry_out(self, decisions: v.Decisions, view: v.FarmView, epoch: int) -> int:
        """Carry out every decision that is not being carried out already; return how many changed something by now.

        One that fails, of whatever, is logged and decided again at the next tick. What changes the store only is
        stored before this returns: the next view has it. A host, or Ray, that is slow keeps nothing else from being
        done: only the same order to the same thing waits for it.

        Raises:
            FencedError: as soon as a newer steward is found to have taken over.
        """
        for decision in decisions:
            if type(decision) not in CHANGES and (key := _key(decision)) not in self._under_way:
                self._under_way[key] = asyncio.create_task(self._one(decision, view, epoch))
        changed = await self._store(decisions, view, epoch)
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=self.patience_s)
        ended = {key: task for key, task in self._under_way.items() if task.done()}
        for key in ended:
            del self._under_way[key]
        self._check()
        return changed + sum(task.result() for task in ended.values())

    @property
    def tells_serve(self) -> bool:
        """Whether Serve is being told what to run: until then it cannot be said what is left of what it has."""
        return any(kind is v.DeployServices for kind, *_ in self._under_way)

    async def finish(self) -> None:
        """Wait for everything that is under way; for tests and for an orderly end.

        Raises:
            FencedError: if a newer steward is found to have taken over.
        """
        while self._under_way:
            key, task = next(iter(self._under_way.items()))
            await task
            self._under_way.pop(key, None)
        self._check()

    def _check(self) -> None:
        if self._fenced is not None:
            raise self._fenced

    async def _store(self, decisions: v.Decisions, view: v.FarmView, epoch: int) -> int:
        """Store what is to be stored and nothing else; return how many of it are news.

        News first. Of two decisions about one lease the second is left for the next step, which sees the first.
        """
        changes: dict[str, Change] = {}
        for decision in decisions:
            if type(decision) in CHANGES:
                try:
                    change = CHANGES[type(decision)](decision, view)
                except CloudfarmError as error:
                    log.warning("%s failed, to be tried again: %s", decision, error)
                except Exception as error:  # noqa: BLE001 - as in _one
                    await self._note(decision, error)
                else:
                    changes.setdefault(change.lease_id, change)
        ordered = sorted(changes.values(), key=lambda change: not change.is_news)
        return sum(
            [
                await self._together(ordered[first : first + TOGETHER], epoch)
                for first in range(0, len(ordered), TOGETHER)
            ]
        )

    async def _together(self, changes: Sequence[Change], epoch: int) -> int:
        """Store some changes in one transaction, but for leases that have changed meanwhile; return how many are news.

        Where one is refused the halves are tried, so that it keeps no other from being stored.
        """
        try:
            async with self.store.begin() as uow:
                await uow.check_epoch(epoch)
                steps = [each.step for each in changes if isinstance(each.step, Transition)]
                leases = [each.step for each in changes if isinstance(each.step, Lease)]
                left_out = await uow.apply_all(steps) | await uow.leases.update_all(leases)
                kept = [each for each in changes if each.lease_id not in left_out]
                for change in kept:
                    for entry in change.entries:
                        await uow.ledger.append(entry)
                await uow.commit()
        except FencedError:
            raise
        except UnavailableError as error:
            log.warning("%d changes were not stored, to be tried again: %s", len(changes), error)
            return 0
        except CloudfarmError as error:
            if len(changes) > 1:
                first, second = changes[: len(changes) // 2], changes[len(changes) // 2 :]
                return await self._together(first, epoch) + await self._together(second, epoch)
            log.warning("%s was not stored, to be tried again: %s", changes[0], error)
            return 0
        if left_out:
            log.info("%s changed meanwhile; decided again at the next tick", ", ".join(sorted(left_out)))
        return sum(change.is_news for change in kept)

    async def _one(self, decision: v.Decision, view: v.FarmView, epoch: int) -> bool:
        handler = self._handlers[type(decision)]
        try:
            return await handler(decision, view, epoch) is not False
        except FencedError as error:
            self._fenced = error
        except StaleError as error:
            log.info("%s: %s; decided again at the next tick", decision, error)
        except CloudfarmError as error:
            log.warning("%s failed, to be tried again: %s", decision, error)
        except Exception as error:  # noqa: BLE001 - a steward that it ended would decide the same again, and end again
            await self._note(decision, error)
        return False

    async def _note(self, decision: v.Decision, error: Exception) -> None:
        log.error("%s failed: %r", decision, error)
        await self.troubles.tell(f"carrying out {type(decision).__name__}", error)


def _key(decision: v.Decision) -> _Key:
    """Return what two decisions share that must not be carried out at the same time."""
    name = next((getattr(decision, name) for name in _NAMES if hasattr(decision, name)), "")
    piece = getattr(decision, "slice", None)
    # No job is closed while it is being handed to Ray: if the steward died then, nobody would stop its driver.
    kind = v.UpdateJob if isinstance(decision, v.SubmitJob) else type(decision)
    return kind, name, piece.name if piece is not None else ""
