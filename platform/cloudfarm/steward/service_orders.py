"""Carrying out what was decided about services: in the store, and by Serve."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cloudfarm.clock import Clock
from cloudfarm.domain.status import Event, RevisionStatus, ServiceStatus, Target, transition
from cloudfarm.domain.workload import Deployment
from cloudfarm.errors import StaleError
from cloudfarm.ports import Serving, UnitOfWork
from cloudfarm.steward import view as v
from cloudfarm.steward.orders import Handler, Orders
from cloudfarm.steward.placing import job_for_app, lease_for_replica


@dataclass(frozen=True, slots=True)
class ServiceOrders(Orders):
    """What services and their revisions need.

    Since when a revision gets no requests is the time at which that is stored, which may be long after the decision:
    the front door has sent them until then.
    """

    clock: Clock
    serving: Serving

    def handlers(self) -> Mapping[type, Handler]:
        """Return what carries out each kind of decision."""
        return {
            v.LeaseReplicas: self._lease_replicas,
            v.ScaleRevision: self._scale,
            v.UpdateRevision: self._update,
            v.PromoteRevision: self._promote,
            v.EndRevision: self._end,
            v.DeleteService: self._delete,
            v.DeployServices: self._deploy,
            v.RunApp: self._run_app,
            v.EndApp: self._end_app,
            v.RemoveApps: self._remove_apps,
        }

    async def _lease_replicas(self, decision: v.LeaseReplicas, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            revision = await uow.revisions.get(decision.revision_id)
            service = await uow.services.get(revision.service_id)
            leases = await uow.leases.list(tenant=revision.tenant, open_only=True)
            held = sum(
                lease.revision_id == revision.id
                and lease.target is Target.RUN
                and lease.id not in decision.but_for
                for lease in leases
            )
            if revision.target is Target.RUN:
                for _ in range(revision.replicas - held):
                    await uow.leases.add(lease_for_replica(service, revision, view.now_ms))

        await self.in_store(epoch, work)

    async def _scale(self, decision: v.ScaleRevision, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            revision = await uow.revisions.get(decision.revision_id)
            message = f"{revision.name}: {revision.replicas} replicas become {decision.replicas}"
            await uow.revisions.update(replace(revision, replicas=decision.replicas))
            await uow.events.append(
                Event(view.now_ms, "service.scaled", revision.service_id, revision.tenant, "steward", message)
            )

        await self.in_store(epoch, work)

    async def _update(self, decision: v.UpdateRevision, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            revision = await uow.revisions.get(decision.revision_id)
            left_ms = revision.left_ms if revision.target is Target.END else None
            started_ms = revision.started_ms
            if decision.status is RevisionStatus.IDLE:
                left_ms = self.clock.now_ms()
            if decision.status is RevisionStatus.RUNNING:
                started_ms = view.now_ms
            await uow.apply(
                transition(
                    revision,
                    decision.status,
                    now_ms=view.now_ms,
                    message=decision.message,
                    left_ms=left_ms,
                    started_ms=started_ms,
                )
            )

        await self.in_store(epoch, work)

    async def _promote(self, decision: v.PromoteRevision, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            revision = await uow.revisions.get(decision.revision_id)
            service = await uow.services.get(revision.service_id)
            if Target.END in (revision.target, service.target) or service.current_id == revision.id:
                return
            message = f"revision {revision.number} has taken over"
            if service.current_id is not None:
                before = await uow.revisions.get(service.current_id)
                await uow.revisions.update(before.leave(self.clock.now_ms(), message))
            await uow.revisions.update(replace(revision, promoted_ms=view.now_ms))
            await uow.services.update(replace(service, current_id=revision.id, message=""))
            await uow.events.append(
                Event(
                    view.now_ms,
                    "service.promoted",
                    service.id,
                    service.tenant,
                    "steward",
                    f"{service.name}: {message}",
                )
            )

        await self.in_store(epoch, work)

    async def _end(self, decision: v.EndRevision, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            revision = await uow.revisions.get(decision.revision_id)
            service = await uow.services.get(revision.service_id)
            if service.current_id == revision.id and Target.RUN is service.target:
                return  # it has been promoted since that was decided
            message = f"revision {revision.number} {decision.message}"
            await uow.revisions.update(revision.leave(self.clock.now_ms(), decision.message))
            if service.current_id != revision.id:
                await uow.services.update(replace(service, message=message))
                await uow.events.append(
                    Event(
                        view.now_ms,
                        "service.withdrawn",
                        service.id,
                        service.tenant,
                        "steward",
                        f"{service.name}: {message}",
                    )
                )

        await self.in_store(epoch, work)

    async def _delete(self, decision: v.DeleteService, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            service = await uow.services.get(decision.service_id)
            await uow.apply(transition(service, ServiceStatus.DELETED, now_ms=view.now_ms))

        await self.in_store(epoch, work)

    async def _deploy(self, decision: v.DeployServices, view: v.FarmView, epoch: int) -> bool:
        await self.check(epoch)
        revisions = {revision.id: revision for revision in view.revisions}
        services = {service.id: service for service in view.services}
        wanted = [(revisions[revision_id], replicas) for revision_id, replicas in decision.replicas]
        await self.serving.apply(
            [
                Deployment(services[revision.service_id], revision, view.models[revision.model_id], replicas)
                for revision, replicas in wanted
            ]
        )
        return False

    async def _run_app(self, decision: v.RunApp, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            revision = await uow.revisions.get(decision.revision_id)
            service = await uow.services.get(revision.service_id)
            model = await uow.models.get(revision.model_id)
            job = job_for_app(service, revision, model, decision.lease_id, view.now_ms)
            present = await uow.jobs.list(lease_id=decision.lease_id)
            if all(each.submission_id != job.submission_id for each in present):
                await uow.jobs.add(job)

        await self.in_store(epoch, work)

    async def _end_app(self, decision: v.EndApp, view: v.FarmView, epoch: int) -> None:
        del view

        async def work(uow: UnitOfWork) -> None:
            job = await uow.jobs.get(decision.job_id)
            revision = await uow.revisions.get((await uow.leases.get(job.lease_id)).revision_id or "")
            if revision.target is Target.RUN and revision.replicas:
                raise StaleError(f"{revision.app_name} is wanted again")
            await uow.jobs.update(replace(job, target=Target.END))

        await self.in_store(epoch, work)

    async def _remove_apps(self, decision: v.RemoveApps, view: v.FarmView, epoch: int) -> bool:
        del view
        await self.check(epoch)
        await self.serving.remove(decision.names)
        return False
