"""Each revision of the open services with all that is known of it: its leases, and what Serve has of it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import LeaseStatus, RevisionStatus, Target
from cloudfarm.domain.workload import DRAIN_S, Job, Replica, Revision, ServeApp, Service
from cloudfarm.steward.scaling import SILENT_MS, is_fresh
from cloudfarm.steward.view import FarmView

LEAVE_MS = 3_000
"""How long requests may still come in to what gets none any more: the front door remembers for less than that."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A revision with all that is known of it."""

    service: Service
    revision: Revision
    held: tuple[Lease, ...]
    """Its leases, but those that are given back."""
    app: ServeApp | None
    """None: Serve does not have it, if Serve could be seen."""
    view: FarmView
    is_followed: bool
    """Whether another revision is to take over from it."""

    @property
    def needs_restart(self) -> bool:
        """Whether nothing starts it anew but another beginning: Serve tries no more, or its job has ended."""
        return self.ended_job is not None or (self.app is not None and self.app.given_up)

    @property
    def is_held_off(self) -> bool:
        """Whether it gets no lease just now, because of what went wrong on the last."""
        return self.view.now_ms < self.view.held_off_until_ms.get(self.revision.id, 0)

    @property
    def is_ending(self) -> bool:
        """Whether it is to end, or its service is."""
        return Target.END in (self.revision.target, self.service.target)

    @property
    def is_going(self) -> bool:
        """Whether the job of a tenant's own application was told to end it: one that wakes then gets another lease."""
        jobs = (self.view.app_jobs.get(lease.id) for lease in self.held)
        ends = any(job is not None and job.target is Target.END for job in jobs)
        return ends and self.revision.status is RevisionStatus.IDLE

    @property
    def wanted(self) -> int:
        """How many replicas are to answer requests."""
        return 0 if self.is_ending or self.is_going else self.revision.replicas

    @property
    def active(self) -> tuple[Lease, ...]:
        """Its leases whose nodes are up."""
        return tuple(lease for lease in self.held if lease.status is LeaseStatus.ACTIVE)

    @property
    def finishing(self) -> tuple[Lease, ...]:
        """Leases that Serve has no more use for, but that replicas are on which finish what they were asked.

        Serve also stops a replica to start it anew, for which it then needs the same node.
        """
        if self.app is None or not self.app.replicas_wanted or self.revision.is_own_app:
            return ()
        staying = [replica.node_id for replica in self.app.replicas if not replica.stopping]
        stopping = {replica.node_id for replica in self.app.replicas if replica.stopping}.difference(staying)
        spare = len(self.active) - max(self.app.replicas_wanted, len(staying))
        found = (lease for lease in self.active if any(piece.node_id in stopping for piece in lease.slices))
        return tuple(found)[: max(0, spare)]

    @property
    def leaving(self) -> tuple[Lease, ...]:
        """Leases that have been told to be gone soon, in whose stead others are asked for.

        Not those of tenants' own applications: another job would start the same application beside the first.
        """
        if self.revision.is_own_app:
            return ()
        return tuple(lease for lease in self.held if lease.gone_by_ms is not None)

    @property
    def counted(self) -> tuple[Lease, ...]:
        """Its leases that replicas are on which answer requests, or are to, and for longer than a moment."""
        others = {lease.id for lease in (*self.finishing, *self.leaving)}
        return tuple(lease for lease in self.held if lease.id not in others)

    @property
    def has_left(self) -> bool:
        """Whether no request can be on its way to it any more."""
        left_ms = self.revision.left_ms
        return left_ms is not None and self.view.now_ms - left_ms >= LEAVE_MS

    @property
    def in_serve(self) -> int:
        """How many replicas Serve should run: as many as have a node, so that it never waits for one.

        One whose node is lost, or is leaving, is wanted beside the others until Serve has seen that: of fewer it would
        stop another one, that answers.
        """
        wanted = self.wanted + len(self._answering_on(self.leaving)) if self.wanted else self._still_needed
        return min(wanted, len(self.active) - len(self.finishing) + self._lost_unseen)

    @property
    def answering_elsewhere(self) -> int:
        """How many replicas answer on leases that have not been told to go."""
        staying = (lease for lease in self.active if lease.gone_by_ms is None)
        return sum(replica.running for replica in self._answering_on(staying))

    @property
    def _lost_unseen(self) -> int:
        """How many replicas Serve still has on nodes that are none of the revision's any more."""
        placed = () if self.app is None else (each for each in self.app.replicas if each.node_id is not None)
        return sum(not replica.stopping for replica in placed) - len(self._answering_on(self.active))

    def _answering_on(self, leases: Iterable[Lease]) -> list[Replica]:
        """Return the replicas on the nodes of leases but those that only finish what they were asked."""
        nodes = {piece.node_id for lease in leases for piece in lease.slices if piece.node_id is not None}
        replicas = () if self.app is None else self.app.replicas
        return [replica for replica in replicas if not replica.stopping and replica.node_id in nodes]

    @property
    def _still_needed(self) -> int:
        """How many replicas the requests need that it was sent before it got none any more.

        Some may wait in the front door for a replica that is less busy. Serve lets replicas finish what they have, but
        without any replica what waits there would wait for ever. What was given up answers none of them.
        """
        view, left_ms, most = self.view, self.revision.left_ms, len(self.held)
        if self.app is None or self.revision.is_given_up:
            return 0
        if left_ms is None or not self.has_left:
            return most
        if view.now_ms - left_ms >= LEAVE_MS + DRAIN_S * 1000:
            return 0
        if view.loads is None or not is_fresh(view.loads, view.now_ms):
            # A front door that has been silent for long has lost them; a steward that has just begun has not heard yet.
            return most if view.now_ms - view.watching_since_ms <= SILENT_MS else 0
        if view.loads.at_ms - left_ms < LEAVE_MS:
            return most
        return -(-view.loads.under_way.get(self.revision.app_name, 0) // self.service.target_load)

    @property
    def ended_job(self) -> Job | None:
        """The job that was to run a tenant's own application, if it is over."""
        jobs = (self.view.app_jobs.get(lease.id) for lease in self.active)
        return next((job for job in jobs if job is not None and job.status.is_terminal), None)

    def standing(self) -> tuple[RevisionStatus, str]:
        """Return what it does, and why."""
        if not self.wanted:
            return self._resting()
        if not self.active:
            return RevisionStatus.PENDING, "waits for its lease"
        if self.ended_job is not None:
            return RevisionStatus.FAILED, self.ended_job.message or "the job that ran it has ended"
        if self.view.serve_apps is None:
            return self.revision.status, self.revision.message
        if self.app is not None and self.app.running:
            return RevisionStatus.RUNNING, ""
        failed = self.app is not None and self.app.failed
        return (
            RevisionStatus.FAILED if failed else RevisionStatus.STARTING,
            self.app.message if self.app else "",
        )

    def _resting(self) -> tuple[RevisionStatus, str]:
        status, message = self.revision.status, self.revision.message
        if status is not RevisionStatus.FAILED:
            return RevisionStatus.IDLE, "asleep until the next request"
        if self.is_held_off:
            return status, message
        return RevisionStatus.IDLE, f"asleep until the next request; did not run: {message}"


def scenes_of(view: FarmView) -> Iterator[Scene]:
    """Yield every revision that has not ended."""
    held: defaultdict[str, list[Lease]] = defaultdict(list)
    for lease in view.leases:
        if lease.revision_id is not None and lease.target is Target.RUN:
            held[lease.revision_id].append(lease)
    by_id = {service.id: service for service in view.services}
    candidates = {
        revision.service_id
        for revision in view.revisions
        if revision.target is Target.RUN and by_id[revision.service_id].current_id != revision.id
    }
    for revision in view.revisions:
        service = by_id[revision.service_id]
        is_followed = service.current_id == revision.id and service.id in candidates
        app = (view.serve_apps or {}).get(revision.app_name)
        yield Scene(service, revision, tuple(held[revision.id]), app, view, is_followed)
