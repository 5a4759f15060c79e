"""What a lease needs next, from its status, its target and the truth on the hosts."""

from collections.abc import Iterator

from cloudfarm.domain.host import Host, NodePhase, NodeTruth
from cloudfarm.domain.lease import Lease, LeaseKind, Slice
from cloudfarm.domain.status import EndReason, LeaseStatus, Target
from cloudfarm.steward.view import (
    ActivateLease,
    Decision,
    DrainNode,
    EndLease,
    FarmView,
    FinishLease,
    KillNode,
    NoticeLease,
    Policy,
    StartNode,
)


class Ground:
    """The hosts' truth, looked up by slice."""

    def __init__(self, view: FarmView, policy: Policy) -> None:
        self._hosts = {host.id: host for host in view.hosts}
        self._nodes = {(host.id, node.name): node for host in view.hosts for node in host.nodes}
        self._patience_over = view.now_ms - view.watching_since_ms > policy.host_lost_ms
        self._lost_before_ms = view.now_ms - policy.host_lost_ms

    def host(self, piece: Slice) -> Host | None:
        """Return the slice's host if it answered this time."""
        host = self._hosts.get(piece.host)
        return host if host is not None and host.reachable else None

    def lost_at_ms(self, piece: Slice) -> int | None:
        """Return when the slice's host was last seen, if it has been silent for too long."""
        host = self._hosts.get(piece.host)
        if host is None or host.reachable or not self._patience_over:
            return None
        return host.seen_ms if host.seen_ms < self._lost_before_ms else None

    def node(self, piece: Slice) -> NodeTruth | None:
        """Return the slice's lease node as its host reports it."""
        return self._nodes.get((piece.host, piece.name))


def advance(lease: Lease, view: FarmView, ground: Ground, policy: Policy) -> Iterator[Decision]:
    """Yield what this lease needs now."""
    if lease.status is LeaseStatus.WAITING:
        if lease.target is Target.END:
            yield FinishLease(lease.id, view.now_ms, lease.reason or EndReason.CANCELLED)
    elif lease.status is LeaseStatus.STARTING:
        yield from _start(lease, view, ground, policy)
    elif lease.status is LeaseStatus.ACTIVE:
        yield from _keep(lease, view, ground, policy)
    elif lease.status is LeaseStatus.ENDING:
        yield from _end(lease, view, ground, policy)


def _start(lease: Lease, view: FarmView, ground: Ground, policy: Policy) -> Iterator[Decision]:
    now_ms = view.now_ms
    if lease.target is Target.END:
        yield EndLease(lease.id, lease.reason or EndReason.RELEASED, "released while it was starting", now_ms)
        return
    up: dict[int, tuple[str, str]] = {}
    orders: list[Decision] = []
    for piece in lease.slices:
        if ground.lost_at_ms(piece) is not None:
            yield EndLease(lease.id, EndReason.START_FAILED, f"host {piece.host} does not answer", now_ms)
            return
        if ground.host(piece) is None:
            continue
        node = ground.node(piece)
        if node is None:
            orders.append(StartNode(lease.id, piece))
        elif node.phase is NodePhase.EXITED:
            yield EndLease(
                lease.id,
                EndReason.START_FAILED,
                f"lease node {piece.name} did not start: {node.reason}",
                now_ms,
            )
            return
        elif node.phase is NodePhase.UP and node.node_id is not None:
            up[piece.index] = (node.node_id, node.isolation)
    if len(up) == len(lease.slices):
        yield ActivateLease(lease.id, up)
    elif lease.granted_ms is not None and now_ms - lease.granted_ms > policy.start_timeout_ms:
        seconds = policy.start_timeout_ms // 1000
        yield EndLease(
            lease.id, EndReason.START_FAILED, f"its lease nodes were not up within {seconds} s", now_ms
        )
    else:
        yield from orders


def _keep(lease: Lease, view: FarmView, ground: Ground, policy: Policy) -> Iterator[Decision]:
    now_ms = view.now_ms
    if lease.target is Target.END:
        reason = lease.reason or EndReason.RELEASED
        yield EndLease(lease.id, reason, lease.message or reason.value.replace("_", " "), now_ms)
        return
    end, unheard = _end_of_nodes(lease, view, ground)
    if end is not None:
        yield end
        return
    yield from _drains(lease, now_ms, ground)
    if unheard:
        return  # what has become of its nodes decides how it ends, and until when it is charged
    if lease.ends_ms is not None and now_ms >= lease.ends_ms:
        yield EndLease(lease.id, EndReason.EXPIRED, "its time is over", now_ms)
    elif lease.preempted_ms is not None:
        if now_ms >= lease.preempted_ms:
            yield EndLease(lease.id, EndReason.PREEMPTED, lease.message, now_ms)
    elif (
        lease.ends_ms is not None and lease.noticed_ms is None and now_ms >= lease.ends_ms - policy.notice_ms
    ):
        yield NoticeLease(lease.id)


def _drains(lease: Lease, now_ms: int, ground: Ground) -> Iterator[Decision]:
    """Yield a drain for every lease node of a lease that has been told to go: a host may have refused the last one.

    Those of services are drained as late as can be (:mod:`cloudfarm.steward.services`): Serve stops at once what is on
    them, which Ray Train does not.
    """
    deadline_ms = lease.gone_by_ms
    if lease.kind is LeaseKind.SERVICE or deadline_ms is None or now_ms >= deadline_ms:
        return
    for piece in lease.slices:
        node = ground.node(piece)
        if node is not None and node.phase is NodePhase.UP:
            yield DrainNode(lease.id, piece, deadline_ms)


def _end_of_nodes(lease: Lease, view: FarmView, ground: Ground) -> tuple[EndLease | None, bool]:
    """Return how an active lease ends by what became of its nodes, and whether a host has not been heard."""
    drained, unheard = 0, False
    for piece in lease.slices:
        lost_ms = ground.lost_at_ms(piece)
        node = ground.node(piece)
        if lost_ms is not None:
            at_ms = max(lost_ms, lease.started_ms or 0)
            return EndLease(lease.id, EndReason.NODE_LOST, f"host {piece.host} does not answer", at_ms), False
        if ground.host(piece) is None:
            unheard = True
        elif node is None or node.phase is NodePhase.EXITED:
            if lease.noticed_ms is None and lease.preempted_ms is None:
                # Last seen alive when the host last answered: the tenant is not charged for what nobody saw.
                at_ms = max(view.seen_before_ms.get(piece.host, 0), lease.started_ms or 0)
                why = f": {node.reason}" if node is not None and node.reason else ""
                return EndLease(
                    lease.id, EndReason.NODE_LOST, f"lease node {piece.name} was lost{why}", at_ms
                ), False
            drained += 1  # Ray ends a drained node as soon as it is idle; the others have until the deadline
    if drained == len(lease.slices) and lease.preempted_ms is not None:
        return EndLease(lease.id, EndReason.PREEMPTED, lease.message, view.now_ms), False
    if drained == len(lease.slices):
        why = "its lease nodes were idle and are drained"
        return EndLease(lease.id, EndReason.EXPIRED, why, view.now_ms), False
    return None, unheard


def _end(lease: Lease, view: FarmView, ground: Ground, policy: Policy) -> Iterator[Decision]:
    left = False
    saving = _is_saving_logs(lease, view, policy)
    seen_ms = 0
    for piece in lease.slices:
        lost_ms = ground.lost_at_ms(piece)
        if lost_ms is not None:
            seen_ms = max(seen_ms, lost_ms)
        elif ground.host(piece) is None:
            left = True
        elif ground.node(piece) is not None:
            left = True
            if not saving:
                yield KillNode(piece.host, piece.name)
        else:
            seen_ms = view.now_ms
    if left:
        return
    reason = lease.reason or EndReason.RELEASED
    begun_ms = lease.ending_ms or view.now_ms
    # A lost lease was last seen when its end began; others were used until the last node was gone, but nobody pays for
    # what a late steward left running beyond the time limit.
    at_ms = begun_ms if reason is EndReason.NODE_LOST else max(begun_ms, seen_ms)
    if reason is EndReason.EXPIRED and lease.ends_ms is not None:
        at_ms = min(at_ms, lease.ends_ms)
    if reason is EndReason.PREEMPTED and lease.preempted_ms is not None:
        at_ms = min(at_ms, lease.preempted_ms)
    yield FinishLease(lease.id, at_ms, reason)


def _is_saving_logs(lease: Lease, view: FarmView, policy: Policy) -> bool:
    """Whether a job of the lease is still open: it is closed, its log saved, before the log goes with its node.

    Not for long, and not while Ray is silent, when no job can be closed: what is ending must end.
    """
    if view.ray_jobs is None or view.now_ms - (lease.ending_ms or 0) > policy.archive_ms:
        return False
    return any(job.lease_id == lease.id and job.submitted_ms is not None for job in view.jobs)


def leaks(view: FarmView) -> Iterator[Decision]:
    """Yield a kill for every lease node that no open lease owns."""
    owned = {
        (piece.host, piece.name)
        for lease in view.leases
        if lease.status is not LeaseStatus.WAITING
        for piece in lease.slices
    }
    for host in view.hosts:
        if host.reachable:
            for node in host.nodes:
                if (host.id, node.name) not in owned:
                    yield KillNode(host.id, node.name, leaked_ms=node.started_ms)
