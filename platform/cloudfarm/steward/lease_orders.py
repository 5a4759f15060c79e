"""Carrying out what was decided about leases and needs the hosts; what does not is in ``changes.py``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cloudfarm.domain.quantities import GIB
from cloudfarm.domain.status import Event
from cloudfarm.ports import Artifacts, Hosts, UnitOfWork
from cloudfarm.steward import view as v
from cloudfarm.steward.orders import Handler, Orders
from cloudfarm.steward.placing import node_env, node_labels


@dataclass(frozen=True, slots=True)
class LeaseOrders(Orders):
    """Notices and preemptions of leases; starts, drains and kills of their nodes."""

    hosts: Hosts
    artifacts: Artifacts
    _drained: dict[str, int] = field(default_factory=dict)
    """By Ray's id of the node: the deadline. Ray takes a drain twice, but tells everybody anew."""

    def handlers(self) -> Mapping[type, Handler]:
        """Return what carries out each kind of decision."""
        return {
            v.StartNode: self._start_node,
            v.NoticeLease: self._notice,
            v.Preempt: self._preempt,
            v.DrainNode: self._drain,
            v.KillNode: self._kill,
        }

    async def _start_node(self, decision: v.StartNode, view: v.FarmView, epoch: int) -> None:
        lease = view.leases_by_id[decision.lease_id]
        await self.hosts.start_node(
            decision.slice,
            tenant=lease.tenant,
            epoch=epoch,
            labels=node_labels(lease, decision.slice),
            env=node_env(lease, self.artifacts),
        )

    # What is drained and not known to have been told would count as lost, and another be preempted in its stead: so
    # the store has it first, and only what it has is drained, by one of the next steps, until that has succeeded.

    async def _notice(self, decision: v.NoticeLease, view: v.FarmView, epoch: int) -> None:
        lease = view.leases_by_id[decision.lease_id]
        left_s = max(0, (lease.ends_ms or view.now_ms) - view.now_ms) // 1000
        message = f"its time ends in {left_s} s; its lease nodes are being drained"

        async def work(uow: UnitOfWork) -> None:
            # As it was seen: one that was extended meanwhile is stale, and its time does not end yet.
            await uow.leases.update(replace(lease, noticed_ms=view.now_ms, message=message))
            await uow.events.append(
                Event(view.now_ms, "lease.notice", lease.id, lease.tenant, "steward", message)
            )

        await self.in_store(epoch, work)

    async def _preempt(self, decision: v.Preempt, view: v.FarmView, epoch: int) -> None:
        lease = view.leases_by_id[decision.lease_id]
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

        await self.in_store(epoch, work)

    async def _drain(self, decision: v.DrainNode, view: v.FarmView, epoch: int) -> bool:
        lease, piece = view.leases_by_id[decision.lease_id], decision.slice
        if piece.node_id is None or self._drained.get(piece.node_id) == decision.deadline_ms:
            return False
        await self.hosts.drain_node(
            piece.host,
            piece.node_id,
            deadline_ms=decision.deadline_ms,
            epoch=epoch,
            message=f"lease {lease.id}: {lease.message}",
        )
        for node_id in [each for each, deadline_ms in self._drained.items() if deadline_ms < view.now_ms]:
            del self._drained[node_id]  # it has ended
        self._drained[piece.node_id] = decision.deadline_ms
        return True

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
            tenant = view.leases_by_id[lease_id].tenant if lease_id in view.leases_by_id else None
            gib = meter.peak_memory_bytes / GIB
            used = (
                f"slice {decision.name} used {meter.cpu_ms / 1000:.1f} CPU seconds and at most {gib:.2f} GiB"
            )

            async def tell(uow: UnitOfWork) -> None:
                await uow.events.append(
                    Event(view.now_ms, "slice.metered", lease_id, tenant, "steward", used)
                )

            await self.in_store(epoch, tell)
