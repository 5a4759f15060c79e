"""Look at the farm: the store in one short transaction, then hosts, Ray and Serve at the same time."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cloudfarm.clock import Clock
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.load import LoadReport
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.quota import tree_in_force
from cloudfarm.domain.workload import Job, Revision
from cloudfarm.errors import CloudfarmError
from cloudfarm.ports import Hosts, RayJobs, Serving, Store, UnitOfWork
from cloudfarm.steward.checkpoints import Checkpoints
from cloudfarm.steward.foresight import Foresight
from cloudfarm.steward.past import Past
from cloudfarm.steward.setbacks import Setbacks
from cloudfarm.steward.view import FarmView

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Observer:
    """Makes a :class:`FarmView`."""

    store: Store
    clock: Clock
    hosts: Hosts
    ray_jobs: RayJobs
    serving: Serving
    checkpoints: Checkpoints
    past: Past
    default_limit_milli_gpus: int
    """What a tenant may hold that has neither a quota nor a limit of its own."""
    gpu_reserve_percent: int
    """How much of a shared GPU's memory no slice may use."""
    foresight: Foresight = field(default_factory=Foresight)
    setbacks: Setbacks = field(default_factory=Setbacks)
    _known: dict[int, Mapping[str, Lease]] = field(default_factory=dict)
    """By epoch: the open leases as last read. A database that is put back from a backup fences this epoch."""

    async def look(self, epoch: int, watching_since_ms: int = 0, loads: LoadReport | None = None) -> FarmView:
        """Return the farm as it is now.

        A host that is known from the store and was not heard of is in it, as not reachable. Whether a host is
        cordoned is the store's to say: its operator has put it there.

        Raises:
            FencedError: if a newer steward has taken over.
        """
        async with self.store.begin(write=False) as uow:
            await uow.check_epoch(epoch)
            stopping = await uow.is_stopping()
            known = {host.id: replace(host, reachable=False) for host in await uow.hosts()}
            tenants = {tenant.id: tenant for tenant in await uow.tenants.list()}
            quotas = await uow.quotas.list()
            await self.past.read(uow, self.clock.now_ms())
            leases = tuple(await uow.leases.list_open(self._known.get(epoch, {})))
            jobs = tuple(await uow.jobs.list(open_only=True))
            services = tuple(await uow.services.list(open_only=True))
            revisions = tuple(await uow.revisions.list(open_only=True))
            models = {revision.model_id: await uow.models.get(revision.model_id) for revision in revisions}
            app_jobs = await _app_jobs(uow, leases, revisions)
        self._known.clear()
        self._known[epoch] = {lease.id: lease for lease in leases}
        hosts, ray_jobs, apps, saved_ms = await asyncio.gather(
            self.hosts.observe(),
            _unless_down(self.ray_jobs.list(), "Ray's jobs")
            if any(job.submitted_ms for job in jobs)
            else _none(),
            _unless_down(self.serving.apps(), "Serve's applications"),
            _unless_down(self.checkpoints.saved_ms(leases, jobs, self.clock.now_ms()), "the artifact store"),
        )
        cordoned = {host.id for host in known.values() if host.cordoned}
        seen = {host.id: replace(host, cordoned=host.id in cordoned) for host in hosts}
        now_ms = self.clock.now_ms()
        tree = tree_in_force(quotas, tenants.values(), self.default_limit_milli_gpus)
        whole = sum(MILLI * len(host.gpus) for host in seen.values())
        view = FarmView(
            now_ms=now_ms,
            tenants=tenants,
            hosts=tuple({**known, **seen}.values()),
            seen_before_ms={host.id: host.seen_ms for host in known.values()},
            watching_since_ms=watching_since_ms,
            leases=leases,
            jobs=jobs,
            services=services,
            revisions=revisions,
            loads=loads,
            models=models,
            app_jobs=app_jobs,
            quotas=tree,
            asks=self.past.asks,
            past=self.past.shares(leases, tree, whole, now_ms),
            runs=self.past.runs,
            corrections=self.foresight.look(leases, now_ms),
            ray_jobs=ray_jobs,
            serve_apps=apps,
            saved_ms=saved_ms or {},
            gpu_reserve_percent=self.gpu_reserve_percent,
            stopping=stopping,
        )
        return replace(view, held_off_until_ms=self.setbacks.look(view))


async def _app_jobs(
    uow: UnitOfWork, leases: Sequence[Lease], revisions: Sequence[Revision]
) -> Mapping[str, Job]:
    """Return the job of each lease that has a tenant's own application to run."""
    apps = {revision.id: revision for revision in revisions if revision.is_own_app}
    found: dict[str, Job | None] = {}
    for lease in leases:
        if lease.revision_id in apps:
            name = apps[lease.revision_id].job_name(lease.id)
            jobs = await uow.jobs.list(lease_id=lease.id)
            found[lease.id] = next((job for job in jobs if job.submission_id == name), None)
    return {lease_id: job for lease_id, job in found.items() if job is not None}


async def _none() -> None:
    return None


async def _unless_down(call: Awaitable[T], what: str) -> T | None:
    try:
        return await call
    except CloudfarmError as error:
        log.warning("%s cannot be seen just now: %s", what, error)
        return None
