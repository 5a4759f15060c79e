"""What services need next: a lease for each replica of what runs of them, a place in Serve, and who takes over."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cloudfarm.domain.lease import Lease, LeaseKind
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus, Target
from cloudfarm.domain.workload import Job, Revision, ServeApp, Service
from cloudfarm.steward.scaling import is_fresh, wanted_replicas
from cloudfarm.steward.view import (
    Decision,
    DeleteService,
    DeployServices,
    EndApp,
    EndRevision,
    FarmView,
    LeaseReplicas,
    PromoteRevision,
    ReleaseLease,
    RemoveApps,
    RunApp,
    ScaleRevision,
    UpdateRevision,
)

LEAVE_MS = 3_000
"""How long requests may still come in to what gets none any more: the front door remembers for less than that."""
_GIVEN_BACK_FIRST = (LeaseStatus.WAITING, LeaseStatus.STARTING, LeaseStatus.ACTIVE)


@dataclass(frozen=True, slots=True)
class _Scene:
    """A revision with all that is known of it."""

    service: Service
    revision: Revision
    held: tuple[Lease, ...]
    """Its leases, but those that are given back."""
    app: ServeApp | None
    """None: Serve does not have it, if Serve could be seen."""
    view: FarmView

    @property
    def is_ending(self) -> bool:
        return Target.END in (self.revision.target, self.service.target)

    @property
    def is_going(self) -> bool:
        """Whether the job of a tenant's own application was told to end it: one that wakes then gets another lease."""
        jobs = (self.view.app_jobs.get(lease.id) for lease in self.held)
        ends = any(job is not None and job.target is Target.END for job in jobs)
        return ends and self.revision.status is RevisionStatus.IDLE

    @property
    def wanted(self) -> int:
        return 0 if self.is_ending or self.is_going else self.revision.replicas

    @property
    def active(self) -> tuple[Lease, ...]:
        return tuple(lease for lease in self.held if lease.status is LeaseStatus.ACTIVE)

    @property
    def has_left(self) -> bool:
        """Whether no request can be on its way to it any more."""
        left_ms = self.revision.left_ms
        return left_ms is not None and self.view.now_ms - left_ms >= LEAVE_MS

    @property
    def in_serve(self) -> int:
        """How many replicas Serve should run: as many as have a node, so that it never waits for one."""
        if self.wanted:
            return min(self.wanted, len(self.active))
        return 0 if self.app is None or self.has_left else len(self.active)

    @property
    def ended_job(self) -> Job | None:
        """The job that was to run a tenant's own application, if it is over."""
        jobs = (self.view.app_jobs.get(lease.id) for lease in self.active)
        return next((job for job in jobs if job is not None and job.status.is_terminal), None)

    def standing(self) -> tuple[RevisionStatus, str]:
        """Return what it does, and why."""
        if not self.wanted:
            return RevisionStatus.IDLE, "asleep until the next request"
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


def services(view: FarmView) -> Iterator[Decision]:
    """Yield what the open services need, and what of them Serve should run."""
    scenes = list(_scenes(view))
    alive = {scene.service.id for scene in scenes}
    for service in view.services:
        if service.target is Target.END and service.id not in alive:
            yield DeleteService(service.id)
    for scene in scenes:
        yield from _end(scene) if scene.is_ending else _run(scene)
        if scene.revision.is_own_app:
            yield from _run_app(scene)
        if not view.stopping:
            yield from _give_back(scene)
    if view.serve_apps is not None:
        yield from _abandoned(view, scenes)
        wanted = ((scene.revision.id, scene.in_serve) for scene in scenes if not scene.revision.is_own_app)
        yield DeployServices(tuple((revision_id, replicas) for revision_id, replicas in wanted if replicas))
    if not view.stopping:
        yield from _left_over(view)


def _scenes(view: FarmView) -> Iterator[_Scene]:
    held: defaultdict[str, list[Lease]] = defaultdict(list)
    for lease in view.leases:
        if lease.revision_id is not None and lease.target is Target.RUN:
            held[lease.revision_id].append(lease)
    by_id = {service.id: service for service in view.services}
    for revision in view.revisions:
        app = (view.serve_apps or {}).get(revision.app_name)
        yield _Scene(by_id[revision.service_id], revision, tuple(held[revision.id]), app, view)


def _end(scene: _Scene) -> Iterator[Decision]:
    revision = scene.revision
    if revision.target is Target.RUN or revision.left_ms is None:
        yield EndRevision(revision.id, "its service is deleted")
    elif scene.view.serve_apps is not None and scene.app is None and scene.has_left:
        yield UpdateRevision(revision.id, RevisionStatus.ENDED, revision.message)


def _run(scene: _Scene) -> Iterator[Decision]:
    revision, view = scene.revision, scene.view
    status, message = scene.standing()
    is_current = scene.service.current_id == revision.id
    if status is RevisionStatus.FAILED and not is_current:
        yield EndRevision(revision.id, f"does not run: {message}")
        return
    if status is not revision.status:
        yield UpdateRevision(revision.id, status, message)
    elif status is RevisionStatus.RUNNING and not is_current and _may_take_over(scene):
        yield PromoteRevision(revision.id)
    if view.stopping:
        return
    loads = view.loads if is_fresh(view.loads, view.now_ms) else None
    # What is to take over stays awake: it has to show that it runs.
    replicas = wanted_replicas(scene.service, revision, loads, view.now_ms, at_least=0 if is_current else 1)
    if replicas != revision.replicas:
        yield ScaleRevision(revision.id, replicas)
    elif len(scene.held) < replicas:
        yield LeaseReplicas(revision.id)


def _run_app(scene: _Scene) -> Iterator[Decision]:
    """Yield the job that runs a tenant's own application, or its end: Serve would import it outside of the lease."""
    for lease in scene.active:
        job = scene.view.app_jobs.get(lease.id)
        if job is None and scene.in_serve and not scene.view.stopping:
            yield RunApp(scene.revision.id, lease.id)
        elif (
            job is not None and not scene.in_serve and job.target is Target.RUN and not job.status.is_terminal
        ):
            yield EndApp(job.id)


def _abandoned(view: FarmView, scenes: Sequence[_Scene]) -> Iterator[Decision]:
    """Yield the removal of what jobs have started in Serve and did not live to end: Serve would keep it for ever."""
    over = {scene.revision.app_name for scene in scenes if scene.ended_job is not None}
    names = tuple(
        name
        for name, app in (view.serve_apps or {}).items()
        if app.lease_ids and (name in over or app.lease_ids.isdisjoint(view.leases_by_id))
    )
    if names:
        yield RemoveApps(names)


def _may_take_over(scene: _Scene) -> bool:
    """Whether all replicas run for which there is room: those that wait in the queue are not waited for."""
    placed = (LeaseStatus.STARTING, LeaseStatus.ACTIVE)
    running = sum(replica.running for replica in scene.app.replicas) if scene.app is not None else 0
    return scene.revision.canary_percent == 0 and running >= sum(
        lease.status in placed for lease in scene.held
    )


def _give_back(scene: _Scene) -> Iterator[Decision]:
    """Yield a release for each lease too many: first what waits, and of what is up only nodes without a replica."""
    reason = EndReason.SERVICE_DELETED if scene.service.target is Target.END else EndReason.SCALED_DOWN
    free = [lease for lease in scene.held if lease.status in _GIVEN_BACK_FIRST and _is_free(lease, scene)]
    free.sort(key=lambda lease: (_GIVEN_BACK_FIRST.index(lease.status), -lease.created_ms, lease.id))
    for lease in free[: max(0, len(scene.held) - scene.wanted)]:
        yield ReleaseLease(lease.id, reason)


def _is_free(lease: Lease, scene: _Scene) -> bool:
    """Whether no replica is on a lease's nodes, nor about to be."""
    if lease.status is not LeaseStatus.ACTIVE:
        return True
    if scene.view.serve_apps is None:
        return False
    if scene.app is None:
        return scene.in_serve == 0
    staying = [replica.node_id for replica in scene.app.replicas if not replica.stopping]
    taken = {replica.node_id for replica in scene.app.replicas}
    # One that stops and never had a node gets none: Serve keeps it for as long as it lets any replica finish.
    about_to_place = None in staying or scene.app.replicas_wanted > len(staying)
    return not about_to_place and taken.isdisjoint(piece.node_id for piece in lease.slices)


def _left_over(view: FarmView) -> Iterator[Decision]:
    """Yield a release for every lease of a service of which nothing is to run any more."""
    open_ids = {revision.id for revision in view.revisions}
    for lease in view.leases:
        over = lease.kind is LeaseKind.SERVICE and lease.revision_id not in open_ids
        if over and lease.target is Target.RUN and lease.status is not LeaseStatus.ENDING:
            yield ReleaseLease(lease.id, EndReason.SERVICE_DELETED)
