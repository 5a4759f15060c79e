"""Which of a service's revisions answers a request, and the wait for one that is asleep."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloudfarm.clock import Clock
from cloudfarm.domain.status import RevisionStatus, Target
from cloudfarm.domain.workload import Revision, Service
from cloudfarm.errors import UnavailableError
from cloudfarm.ports import Nudge, Store, UnitOfWork
from cloudfarm.usecases.load import Loads

POLL_S = 0.25
RETRY_S = 5
"""What is told to those who are sent away while a service starts."""
_COMES_BY_ITSELF = (RevisionStatus.IDLE, RevisionStatus.PENDING, RevisionStatus.STARTING)


@dataclass(frozen=True, slots=True)
class Running:
    """What answers a service's requests just now."""

    current: Revision
    canary: Revision | None
    open: Sequence[Revision]
    """All that have not ended: also what starts and what goes."""

    @property
    def revisions(self) -> tuple[Revision, ...]:
        """All of them."""
        return (self.current,) if self.canary is None else (self.current, self.canary)

    def pick(self, count: int) -> Revision:
        """Return who answers the request of that number: of any hundred in a row the canary its exact percent."""
        percent = 0 if self.canary is None else self.canary.canary_percent
        is_canarys = (count + 1) * percent // 100 > count * percent // 100
        return self.canary if self.canary is not None and is_canarys else self.current


@dataclass(frozen=True, slots=True)
class Asleep:
    """Nothing answers a service's requests just now, but it will after one has come in."""

    service: Service
    why: str


async def find_running(uow: UnitOfWork, service: Service, *, waits: bool = False) -> Running | Asleep:
    """Return what answers a service's requests just now.

    Args:
        uow: the records.
        service: the one that is asked.
        waits: whether the request waits already: whoever has been let in waits on, also for a service that by now
            is to sleep no more.

    Raises:
        UnavailableError: if it neither runs nor starts because of a request.
    """
    revisions = await uow.revisions.list(service_id=service.id, open_only=True)
    current = next((each for each in revisions if each.id == service.current_id), None)
    if service.target is Target.END or current is None:
        raise UnavailableError(f"service {service.name} is being deleted")
    if current.status is RevisionStatus.RUNNING:
        return Running(current, _canary(revisions, current), revisions)
    why = f"service {service.name} is {current.status}: {await _reason(uow, service, current)}"
    wakes = service.min_replicas == 0 or current.status is RevisionStatus.IDLE
    if (waits or wakes) and current.status in _COMES_BY_ITSELF:
        return Asleep(service, why)
    raise UnavailableError(why, retry_after_s=RETRY_S)


def _canary(revisions: Sequence[Revision], current: Revision) -> Revision | None:
    runs = (
        each
        for each in revisions
        if each.canary_percent and each.status is RevisionStatus.RUNNING and each.target is Target.RUN
    )
    return next((each for each in runs if each.id != current.id), None)


async def _reason(uow: UnitOfWork, service: Service, revision: Revision) -> str:
    """Return why a revision does not run: while it waits for a lease, what that waits for.

    Not where other tenants may call, whom the owner's place in the queue does not concern, nor its logs.
    """
    if service.shared:
        return "try again later"
    if revision.status is RevisionStatus.PENDING:
        leases = await uow.leases.list(tenant=revision.tenant, open_only=True)
        mine = next((each for each in leases if each.revision_id == revision.id), None)
        if mine is not None and mine.message:
            return f"waits for lease {mine.id}: {mine.told}"
    return revision.message or "try again later"


@dataclass(slots=True)
class WaitingRoom:
    """Holds requests to services that are asleep until they run; few enough, and not for long."""

    store: Store
    clock: Clock
    loads: Loads
    nudge: Nudge
    most_waiting: int
    """For one service."""
    timeout_s: float
    poll_s: float = POLL_S
    _seen: dict[str, tuple[int, Running | Asleep]] = field(default_factory=dict)
    """By service: when it was last looked at for those who wait, and what was found; one look for all of them."""

    async def wait(self, asleep: Asleep) -> None:
        """Return when there is something that answers the requests of a service.

        The records may say so already and be wrong, if replicas were found gone. So they are believed only when they
        are looked at after a while; the steward, which hears of who waits, looks meanwhile.

        Raises:
            UnavailableError: if too many wait already, it takes too long, or it will not run.
        """
        service = asleep.service
        if self.loads.waiting(service.id) >= self.most_waiting:
            raise UnavailableError(
                f"{asleep.why}; {self.most_waiting} requests wait for it already, and that is the most",
                retry_after_s=RETRY_S,
                max_cold_requests=self.most_waiting,
            )
        until_ms = self.clock.now_ms() + int(self.timeout_s * 1000)
        found: Running | Asleep = asleep
        with self.loads.wait(service.id):
            if self.loads.waiting(service.id) == 1:
                self.nudge.report(self.loads.report())
            while isinstance(found, Asleep):
                if self.clock.now_ms() >= until_ms:
                    raise UnavailableError(
                        f"{found.why}; it did not start within {self.timeout_s:g} s", retry_after_s=RETRY_S
                    )
                await asyncio.sleep(self.poll_s)
                found = await self._look(service)

    async def _look(self, service: Service) -> Running | Asleep:
        now_ms = self.clock.now_ms()
        looked_ms, found = self._seen.get(service.id, (None, None))
        if found is None or looked_ms is None or now_ms - looked_ms >= self.poll_s * 1000:
            async with self.store.begin(write=False) as uow:
                found = await find_running(uow, await uow.services.get(service.id), waits=True)
            self._seen[service.id] = (now_ms, found)
        return found
