"""Carrying out what was decided about leases: in the store, and on the hosts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cloudfarm.domain.lease import Lease, LeaseKind
from cloudfarm.domain.ledger import REFUND, LedgerEntry, amount
from cloudfarm.domain.quantities import GIB
from cloudfarm.domain.status import EndReason, Event, LeaseStatus, Target, Transition, transition
from cloudfarm.ports import Artifacts, Hosts, UnitOfWork
from cloudfarm.steward import view as v
from cloudfarm.steward.orders import Handler, Orders, lease_in
from cloudfarm.steward.placing import node_env, node_labels, weakest, with_gpu_memory

MIN_LEFT_MS = 60_000
"""A preempted lease gets at least so much time again, however little of it was left."""


@dataclass(frozen=True, slots=True)
class LeaseOrders(Orders):
    """Grants, starts, notices, preemptions and ends."""

    hosts: Hosts
    artifacts: Artifacts
    gpu_reserve_percent: int

    def handlers(self) -> Mapping[type, Handler]:
        """Return what carries out each kind of decision."""
        return {
            v.Grant: self._grant,
            v.Wait: self._wait,
            v.StartNode: self._start_node,
            v.ActivateLease: self._activate,
            v.NoticeLease: self._notice,
            v.Preempt: self._preempt,
            v.EndLease: self._end,
            v.KillNode: self._kill,
            v.FinishLease: self._finish,
            v.ReleaseLease: self._release,
        }

    async def _grant(self, decision: v.Grant, view: v.FarmView, epoch: int) -> None:
        hosts = {host.id: host for host in view.hosts}
        slices = tuple(
            with_gpu_memory(piece, hosts[piece.host], self.gpu_reserve_percent) for piece in decision.slices
        )

        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            step = transition(
                lease,
                LeaseStatus.STARTING,
                now_ms=view.now_ms,
                slices=slices,
                room=(),
                granted_ms=view.now_ms,
                grade=weakest([hosts[piece.host].grade for piece in slices]),
                message="its lease nodes are being started",
            )
            await uow.apply(step)

        await self.in_store(epoch, work)

    async def _wait(self, decision: v.Wait, _view: v.FarmView, epoch: int) -> bool:
        async def work(uow: UnitOfWork) -> None:
            await uow.leases.update(
                replace(await uow.leases.get(decision.lease_id), message=decision.message, room=decision.room)
            )

        await self.in_store(epoch, work)
        return False

    async def _start_node(self, decision: v.StartNode, view: v.FarmView, epoch: int) -> None:
        lease = lease_in(view, decision.lease_id)
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

        await self.in_store(epoch, work)

    async def _notice(self, decision: v.NoticeLease, view: v.FarmView, epoch: int) -> None:
        lease = lease_in(view, decision.lease_id)
        deadline_ms = lease.ends_ms or view.now_ms
        left_s = max(0, deadline_ms - view.now_ms) // 1000
        message = f"its time ends in {left_s} s; its lease nodes are being drained"
        await self._drain(lease, deadline_ms, epoch, message)

        async def work(uow: UnitOfWork) -> None:
            fresh = await uow.leases.get(lease.id)
            await uow.leases.update(replace(fresh, noticed_ms=view.now_ms, message=message))
            await uow.events.append(
                Event(view.now_ms, "lease.notice", lease.id, lease.tenant, "steward", message)
            )

        await self.in_store(epoch, work)

    async def _preempt(self, decision: v.Preempt, view: v.FarmView, epoch: int) -> None:
        lease = lease_in(view, decision.lease_id)
        left_s = max(0, decision.deadline_ms - view.now_ms) // 1000
        then = "goes on there at once" if decision.room else "waits anew"
        message = f"{decision.message}; it is stopped in {left_s} s and {then}: save its work"

        async def work(uow: UnitOfWork) -> None:
            fresh = await uow.leases.get(lease.id)
            await uow.leases.update(
                replace(fresh, preempted_ms=decision.deadline_ms, message=message, room=decision.room)
            )
            await uow.events.append(
                Event(view.now_ms, "lease.preempted", lease.id, lease.tenant, "steward", message)
            )

        # The store first: what is drained and not known as preempted would count as lost, and another be chosen.
        await self.in_store(epoch, work)
        await self._drain(lease, decision.deadline_ms, epoch, message)

    async def _drain(self, lease: Lease, deadline_ms: int, epoch: int, message: str) -> None:
        for piece in lease.slices:
            if piece.node_id is not None:
                await self.hosts.drain_node(
                    piece.host,
                    piece.node_id,
                    deadline_ms=deadline_ms,
                    epoch=epoch,
                    message=f"lease {lease.id}: {message}",
                )

    async def _end(self, decision: v.EndLease, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            step = transition(
                lease,
                LeaseStatus.ENDING,
                now_ms=view.now_ms,
                message=decision.message,
                reason=decision.reason,
                ending_ms=decision.at_ms,
                target=lease.target if decision.reason is EndReason.PREEMPTED else Target.END,
            )
            await uow.apply(step)

        await self.in_store(epoch, work)

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

            await self.in_store(epoch, work)
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

            await self.in_store(epoch, tell)

    async def _finish(self, decision: v.FinishLease, view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            message = lease.message if lease.status is LeaseStatus.ENDING else "given up while it waited"
            preempted = decision.reason is EndReason.PREEMPTED and lease.started_ms is not None
            saved_ms = max(lease.started_ms or 0, min(decision.at_ms, view.saved_ms.get(lease.id, 0)))
            if preempted and lease.target is Target.RUN:
                step = _wait_anew(lease, view.now_ms, saved_ms)
            else:
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
            if preempted and saved_ms < decision.at_ms:
                await uow.ledger.append(_refund(lease, saved_ms, decision.at_ms))

        await self.in_store(epoch, work)

    async def _release(self, decision: v.ReleaseLease, _view: v.FarmView, epoch: int) -> None:
        async def work(uow: UnitOfWork) -> None:
            lease = await uow.leases.get(decision.lease_id)
            await uow.leases.update(replace(lease, target=Target.END, reason=decision.reason))

        await self.in_store(epoch, work)


def _wait_anew(lease: Lease, now_ms: int, saved_ms: int) -> Transition:
    """Return a preempted lease as it waits for its next segment, with the time that it has not put to use.

    Its refund takes the number of a segment too: every ledger entry has one of its own.
    """
    used_ms = saved_ms - (lease.started_ms or saved_ms)
    return transition(
        lease,
        LeaseStatus.WAITING,
        now_ms=now_ms,
        message="preempted; waits for its next segment",
        ask=replace(lease.ask, duration_ms=max(MIN_LEFT_MS, lease.ask.duration_ms - used_ms)),
        slices=(),
        grade=None,
        granted_ms=None,
        started_ms=None,
        ends_ms=None,
        noticed_ms=None,
        preempted_ms=None,
        ending_ms=None,
        reason=None,
        segment=lease.segment + 1,
    )


def _refund(lease: Lease, saved_ms: int, end_ms: int) -> LedgerEntry:
    """Return the entry that gives back the time since the work was last saved."""
    return LedgerEntry(
        tenant=lease.tenant,
        lease_id=lease.id,
        segment=lease.segment + 1,
        kind=REFUND,
        milli_gpus=-lease.milli_gpus,
        start_ms=saved_ms,
        end_ms=end_ms,
        milli_gpu_seconds=amount(-lease.milli_gpus, saved_ms, end_ms),
        project=lease.project,
    )


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
        project=lease.project,
    )
