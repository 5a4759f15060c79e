"""What a decision changes of a lease in the store, if nothing else is to be done for it: pure, from the view alone.

So all such decisions of a step are stored together (``act.py``). A lease that was changed since it was looked at is
left out, and decided again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cloudfarm.domain.lease import Lease, LeaseKind
from cloudfarm.domain.ledger import REFUND, LedgerEntry, amount
from cloudfarm.domain.status import EndReason, LeaseStatus, Target, Transition, transition
from cloudfarm.steward import view as v
from cloudfarm.steward.placing import weakest, with_gpu_memory

MIN_LEFT_MS = 60_000
"""A preempted lease gets at least so much time again, however little of it was left."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one decision changes: all of it is stored, or nothing."""

    step: Transition | Lease
    """To another status, or the lease with other fields changed; its version is the one that was seen."""
    entries: tuple[LedgerEntry, ...] = ()
    is_news: bool = True
    """Whether it is worth another look."""

    @property
    def lease_id(self) -> str:
        """The lease's id."""
        return self.step.event.subject if isinstance(self.step, Transition) else self.step.id


def grant(decision: v.Grant, view: v.FarmView) -> Change:
    """Let a lease hold its slices from now on, each with what it may use of its GPU's memory."""
    slices = tuple(
        with_gpu_memory(piece, view.hosts_by_id[piece.host], view.gpu_reserve_percent)
        for piece in decision.slices
    )
    step = transition(
        view.leases_by_id[decision.lease_id],
        LeaseStatus.STARTING,
        now_ms=view.now_ms,
        slices=slices,
        room=(),
        expected_start=None,
        granted_ms=view.now_ms,
        grade=weakest([view.hosts_by_id[piece.host].grade for piece in decision.slices]),
        message="its lease nodes are being started",
    )
    return Change(step)


def wait(decision: v.Wait, view: v.FarmView) -> Change:
    """Say why a lease waits, and how long it probably will."""
    lease = replace(
        view.leases_by_id[decision.lease_id],
        message=decision.message,
        room=decision.room,
        expected_start=decision.expected_start,
    )
    return Change(lease, is_news=False)


def activate(decision: v.ActivateLease, view: v.FarmView) -> Change:
    """Begin to meter a lease."""
    lease = view.leases_by_id[decision.lease_id]
    slices = tuple(
        replace(piece, node_id=decision.node_ids[piece.index][0], isolation=decision.node_ids[piece.index][1])
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
    return Change(step)


def end(decision: v.EndLease, view: v.FarmView) -> Change:
    """Begin to end a lease; a preempted one keeps its target, to wait anew."""
    lease = view.leases_by_id[decision.lease_id]
    step = transition(
        lease,
        LeaseStatus.ENDING,
        now_ms=view.now_ms,
        message=decision.message,
        reason=decision.reason,
        ending_ms=decision.at_ms,
        target=lease.target if decision.reason is EndReason.PREEMPTED else Target.END,
    )
    return Change(step)


def finish(decision: v.FinishLease, view: v.FarmView) -> Change:
    """Close a lease, or let a preempted one wait anew, and charge it."""
    lease = view.leases_by_id[decision.lease_id]
    message = lease.message if lease.status is LeaseStatus.ENDING else "given up while it waited"
    preempted = decision.reason is EndReason.PREEMPTED and lease.started_ms is not None
    saved_ms = lease.kept_until_ms(decision.at_ms, view.saved_ms.get(lease.id, 0))
    if preempted and lease.target is Target.RUN:
        step = _wait_anew(lease, view.now_ms, saved_ms)
    else:
        step = transition(
            lease,
            LeaseStatus.ENDED,
            now_ms=view.now_ms,
            message=message,
            reason=decision.reason,
            expected_start=None,
            ended_ms=decision.at_ms,
        )
    entries = () if lease.started_ms is None else (_entry(lease, decision.at_ms),)
    if preempted and lease.milli_gpus and saved_ms < decision.at_ms:
        entries = (*entries, _refund(lease, saved_ms, decision.at_ms))
    return Change(step, entries)


def release(decision: v.ReleaseLease, view: v.FarmView) -> Change:
    """Set a lease's target."""
    return Change(replace(view.leases_by_id[decision.lease_id], target=Target.END, reason=decision.reason))


CHANGES: Mapping[type, Callable[[Any, v.FarmView], Change]] = {
    v.Grant: grant,
    v.Wait: wait,
    v.ActivateLease: activate,
    v.EndLease: end,
    v.FinishLease: finish,
    v.ReleaseLease: release,
}
"""By kind of decision; those that are not here need more than the store."""


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
