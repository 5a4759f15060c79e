"""Carry decisions out: the store first, then hosts, Ray and Serve, never both in one transaction.

Every handler may be run again for the same decision after a crash at any point.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cloudfarm.clock import Clock
from cloudfarm.domain.lease import Lease, LeaseKind
from cloudfarm.domain.ledger import LedgerEntry, amount
from cloudfarm.domain.quantities import GIB
from cloudfarm.domain.status import Event, JobStatus, LeaseStatus, ServiceStatus, Target, transition
from cloudfarm.errors import CloudfarmError, FencedError, StaleError
from cloudfarm.ports import Artifacts, Hosts, RayJobs, Serving, Store, UnitOfWork
from cloudfarm.steward import view as v
from cloudfarm.steward.placing import lease_for_service, node_env, node_labels, weakest
from cloudfarm.steward.wrapup import archive_log, collect_models

log = logging.getLogger(__name__)

_NAMES = ("lease_id", "job_id", "service_id", "name")


@dataclass(frozen=True, slots=True)
class Actor:
    """Executes decisions; computes none."""

    store: Store
    clock: Clock
    hosts: Hosts
    ray_jobs: RayJobs
    serving: Serving
    artifacts: Artifacts
    policy: v.Policy
    max_log_bytes: int
    patience_s: float = 1.0
    """How long a step waits for what it ordered; what takes longer goes on beside the next steps."""
    _under_way: dict[object, asyncio.Task[bool]] = field(default_factory=dict)

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
        handler: Callable[[Any, v.FarmView, int], Awaitable[bool | None]] = self._handlers()[type(decision)]
        try:
            return await handler(decision, view, epoch) is not False
        except FencedError:
            raise
        except StaleError as error:
            log.info("%s: %s; decided again at the next tick", decision, error)
        except CloudfarmError as error:
            log.warning("%s failed, to be tried again: %s", decision, error)
        return False

    def _handlers(self) -> Mapping[type, Callable[[Any, v.FarmView, int], Awaitable[bool | None]]]:
        return {
            v.Grant: self._grant,
            v.Wait: self._wait,
            v.StartNode: self._start_node,
            v.ActivateLease: self._activate,
            v.NoticeLease: self._notice,
            v.EndLease: self._end,
            v.KillNode: self._kill,
            v.FinishLease: self._finish,
            v.SubmitJob: self._submit_job,
            v.StopJob: self._stop_job,
            v.UpdateJob: self._update_job,
            v.ReleaseLease: self._release,
            v.LeaseForService: self._lease_for_service,
            v.UpdateService: self._update_service,
            v.DeployServices: self._deploy,
        }

    async def _in_store(self, epoch: int, work: Callable[[UnitOfWork], Awaitable[None]]) -> None:
        async with self.store.begin() as uow:
            await uow.check_epoch(epoch)
            await work(uow)
            await uow.commit()

    async def _check(self, epoch: int) -> None:
        """Raise FencedError before an order to Ray, which knows no epochs."""
        async with self.store.begin(write=False) as uow:
            await uow.check_epoch(epoch)

    # Leases

    async def _grant(self, decision: v.Grant, view: v.FarmView, epoch: int) -> None:
        grades = {host.id: host.grade for host in view.hosts}

        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            step = transition(
                lease,
                LeaseStatus.STARTING,
                now_ms=view.now_ms,
                slices=decision.slices,
                granted_ms=view.now_ms,
                grade=weakest([grades[piece.host] for piece in decision.slices]),
                message="its lease nodes are being started",
            )
            await uow.apply(step)

        await self._in_store(epoch, work)

    async def _wait(self, decision: v.Wait, _view: v.FarmView, epoch: int) -> bool:
        async def work(uow: UnitOfWork) -> None:
            await uow.leases.update(
                replace(await uow.leases.get(decision.lease_id), message=decision.message)
            )

        await self._in_store(epoch, work)
        return False

    async def _start_node(self, decision: v.StartNode, view: v.FarmView, epoch: int) -> None:
        lease = _lease(view, decision.lease_id)
        await self.hosts.start_node(
            decision.slice,
            tenant=lease.tenant,
            epoch=epoch,
            labels=node_labels(lease, decision.slice),
            env=node_env(lease, self.artifacts),
        )

    async def _activate(self, decision: v.ActivateLease, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            slices = tuple(
                replace(
                    piece,
                    node_id=decision.node_ids[piece.index][0],
                    isolation=decision.node_ids[piece.index][1],
                )
                for piece in lease.slices
            )
            step = transition(
                lease,
                LeaseStatus.ACTIVE,
                now_ms=view.now_ms,
                slices=slices,
                started_ms=view.now_ms,
                ends_ms=view.now_ms + lease.ask.duration_ms,
                segment=lease.segment + 1,
                message="",
            )
            await uow.apply(step)

        await self._in_store(epoch, work)

    async def _notice(self, decision: v.NoticeLease, view: v.FarmView, epoch: int) -> None:
        lease = _lease(view, decision.lease_id)
        deadline_ms = lease.ends_ms or view.now_ms
        left_s = max(0, deadline_ms - view.now_ms) // 1000
        message = f"its time ends in {left_s} s; its lease nodes are being drained"
        for piece in lease.slices:
            if piece.node_id is not None:
                await self.hosts.drain_node(
                    piece.host,
                    piece.node_id,
                    deadline_ms=deadline_ms,
                    epoch=epoch,
                    message=f"lease {lease.id}: {message}",
                )

        async def work(uow: UnitOfWork) -> None:
            fresh = await uow.leases.get(lease.id)
            await uow.leases.update(replace(fresh, noticed_ms=view.now_ms, message=message))
            await uow.events.append(
                Event(view.now_ms, "lease.notice", lease.id, lease.tenant, "steward", message)
            )

        await self._in_store(epoch, work)

    async def _end(self, decision: v.EndLease, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            step = transition(
                await uow.leases.get(decision.lease_id),
                LeaseStatus.ENDING,
                now_ms=view.now_ms,
                message=decision.message,
                reason=decision.reason,
                ending_ms=decision.at_ms,
                target=Target.END,
            )
            await uow.apply(step)

        await self._in_store(epoch, work)

    async def _kill(self, decision: v.KillNode, view: v.FarmView, epoch: int) -> None:
        if decision.leaked_ms is not None:
            seconds = (view.now_ms - decision.leaked_ms) // 1000
            message = (
                f"lease node {decision.name} ran without a lease for up to {seconds} s and is being killed"
            )

            async def work(uow: UnitOfWork) -> None:
                await uow.events.append(
                    Event(view.now_ms, "host.leak", decision.host, None, "steward", message)
                )

            await self._in_store(epoch, work)
        meter = await self.hosts.kill_node(decision.host, decision.name, epoch=epoch)
        if meter is not None:
            lease_id = decision.name.rpartition("-")[0]
            tenant = next((lease.tenant for lease in view.leases if lease.id == lease_id), None)
            gib = meter.peak_memory_bytes / GIB
            used = (
                f"slice {decision.name} used {meter.cpu_ms / 1000:.1f} CPU seconds and at most {gib:.2f} GiB"
            )

            async def tell(uow: UnitOfWork) -> None:
                await uow.events.append(
                    Event(view.now_ms, "slice.metered", lease_id, tenant, "steward", used)
                )

            await self._in_store(epoch, tell)

    async def _finish(self, decision: v.FinishLease, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            message = lease.message if lease.status is LeaseStatus.ENDING else "given up while it waited"
            step = transition(
                lease,
                LeaseStatus.ENDED,
                now_ms=view.now_ms,
                message=message,
                reason=decision.reason,
                ended_ms=decision.at_ms,
            )
            await uow.apply(step)
            if lease.started_ms is not None:
                await uow.ledger.append(_entry(lease, decision.at_ms))

        await self._in_store(epoch, work)

    async def _release(self, decision: v.ReleaseLease, _view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            await uow.leases.update(replace(lease, target=Target.END, reason=decision.reason))

        await self._in_store(epoch, work)

    # Jobs

    async def _submit_job(self, decision: v.SubmitJob, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            job = await uow.jobs.get(decision.job_id)
            if job.submitted_ms is None:
                await uow.jobs.update(replace(job, submitted_ms=view.now_ms))

        await self._in_store(epoch, work)
        job = next(job for job in view.jobs if job.id == decision.job_id)
        lease = _lease(view, job.lease_id)
        env = {"CLOUDFARM_MODEL_OUTBOX": self.artifacts.uri("tenants", job.tenant, "outbox", job.id)}
        await self.ray_jobs.submit(job, env=env, label_selector={"lease": lease.id})

    async def _stop_job(self, decision: v.StopJob, view: v.FarmView, epoch: int) -> bool:
        await self._check(epoch)
        await self.ray_jobs.stop(next(job.ray_id for job in view.jobs if job.id == decision.job_id))
        return False

    async def _update_job(self, decision: v.UpdateJob, view: v.FarmView, epoch: int) -> None:
        seen = next(job for job in view.jobs if job.id == decision.job_id)
        lease = next((lease for lease in view.leases if lease.id == seen.lease_id), None)
        log_uri = seen.log_uri
        models: list[tuple[str, str, Mapping[str, Any]]] = []
        if decision.status.is_terminal and seen.submitted_ms is not None:
            # Before the lease may end: afterwards the host keeps the log only as long as its disk does.
            if lease is not None:
                log_uri = await archive_log(seen, lease, self.hosts, self.artifacts, self.max_log_bytes)
            if decision.status is JobStatus.SUCCEEDED:
                models = await collect_models(seen, self.artifacts)

        async def work(uow: UnitOfWork) -> None:
            job = await uow.jobs.get(decision.job_id)
            ray = decision.ray
            step = transition(
                job,
                decision.status,
                now_ms=view.now_ms,
                message=decision.message,
                log_uri=log_uri,
                started_ms=(ray.started_ms if ray else None) or job.started_ms,
                ended_ms=((ray.ended_ms if ray else None) or view.now_ms)
                if decision.status.is_terminal
                else None,
                error_type=job.error_type or (ray.error_type if ray else None),
                driver_exit_code=ray.driver_exit_code if ray else None,
            )
            await uow.apply(step)
            for name, uri, manifest in models:
                model = await uow.models.register(
                    tenant=job.tenant,
                    name=name,
                    uri=uri,
                    job_id=job.id,
                    manifest=manifest,
                    now_ms=view.now_ms,
                )
                await uow.events.append(
                    Event(
                        view.now_ms,
                        "model.registered",
                        model.id,
                        job.tenant,
                        "steward",
                        f"{model.ref} from job {job.submission_id}",
                    ),
                )

        await self._in_store(epoch, work)

    # Services

    async def _lease_for_service(self, decision: v.LeaseForService, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            service = await uow.services.get(decision.service_id)
            lease = lease_for_service(service, view.now_ms)
            await uow.leases.add(lease)
            message = f"waits for its lease {lease.id}"
            if service.status is ServiceStatus.PENDING:
                await uow.services.update(replace(service, lease_id=lease.id, message=message))
            else:
                step = transition(
                    service, ServiceStatus.PENDING, now_ms=view.now_ms, message=message, lease_id=lease.id
                )
                await uow.apply(step)

        await self._in_store(epoch, work)

    async def _update_service(self, decision: v.UpdateService, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            service = await uow.services.get(decision.service_id)
            await uow.apply(
                transition(service, decision.status, now_ms=view.now_ms, message=decision.message)
            )

        await self._in_store(epoch, work)

    async def _deploy(self, decision: v.DeployServices, view: v.FarmView, epoch: int) -> bool:
        await self._check(epoch)
        wanted = set(decision.service_ids)
        leases = {lease.id: lease for lease in view.leases}
        await self.serving.apply(
            [
                (service, view.models[service.model_id], leases[service.lease_id or ""])
                for service in view.services
                if service.id in wanted
            ],
        )
        return False


def _key(decision: v.Decision) -> object:
    """Return what two decisions share that must not be carried out at the same time."""
    name = next((getattr(decision, name) for name in _NAMES if hasattr(decision, name)), "")
    piece = getattr(decision, "slice", None)
    return type(decision), name, piece.name if piece is not None else ""


def _lease(view: v.FarmView, lease_id: str) -> Lease:
    return next(lease for lease in view.leases if lease.id == lease_id)


def _entry(lease: Lease, end_ms: int) -> LedgerEntry:
    start_ms = lease.started_ms if lease.started_ms is not None else end_ms
    return LedgerEntry(
        tenant=lease.tenant,
        lease_id=lease.id,
        segment=lease.segment,
        kind=LeaseKind(lease.kind).value,
        milli_gpus=lease.milli_gpus,
        start_ms=start_ms,
        end_ms=end_ms,
        milli_gpu_seconds=amount(lease.milli_gpus, start_ms, end_ms),
    )
