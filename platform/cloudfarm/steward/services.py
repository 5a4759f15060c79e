"""What services need next: a lease for each replica of what runs of them, a place in Serve, and who takes over."""

from collections.abc import Iterator, Sequence

from cloudfarm.domain.host import NodePhase
from cloudfarm.domain.lease import Lease, LeaseKind, Slice
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus, Target
from cloudfarm.steward.scaling import is_fresh, wanted_replicas
from cloudfarm.steward.scene import Scene, scenes_of
from cloudfarm.steward.view import (
    Decision,
    DeleteService,
    DeployServices,
    DrainNode,
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

GO_MS = 10_000
"""How long before it has to be gone a replica is told so for which there is no other one yet."""
_GIVEN_BACK_FIRST = (LeaseStatus.WAITING, LeaseStatus.STARTING, LeaseStatus.ACTIVE)


def services(view: FarmView) -> Iterator[Decision]:
    """Yield what the open services need, and what of them Serve should run."""
    scenes = list(scenes_of(view))
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
            yield from _drain(scene)
    if view.serve_apps is not None:
        yield from _abandoned(view, scenes)
        wanted = ((scene.revision.id, scene.in_serve) for scene in scenes if not scene.revision.is_own_app)
        yield DeployServices(tuple((revision_id, replicas) for revision_id, replicas in wanted if replicas))
    if not view.stopping:
        yield from _left_over(view)


def _end(scene: Scene) -> Iterator[Decision]:
    revision = scene.revision
    if revision.target is Target.RUN or revision.left_ms is None:
        yield EndRevision(revision.id, "its service is deleted")
    elif scene.view.serve_apps is not None and scene.app is None and scene.has_left:
        yield UpdateRevision(revision.id, RevisionStatus.ENDED, revision.message)


def _run(scene: Scene) -> Iterator[Decision]:
    revision, view = scene.revision, scene.view
    status, message = scene.standing()
    is_current = scene.service.current_id == revision.id
    if status is RevisionStatus.FAILED and not is_current:
        yield EndRevision(revision.id, f"does not run: {message}")
        return
    loads = view.loads if is_fresh(view.loads, view.now_ms) else None
    # What is to take over stays awake: it has to show that it runs.
    replicas = wanted_replicas(
        scene.service,
        revision,
        loads,
        view.now_ms,
        at_least=0 if is_current else 1,
        is_followed=scene.is_followed,
        needs_restart=scene.needs_restart,
    )
    if status is not revision.status:
        yield UpdateRevision(revision.id, status, message)
    elif status is RevisionStatus.RUNNING and not is_current and _may_take_over(scene, replicas):
        yield PromoteRevision(revision.id)
    if view.stopping:
        return
    if replicas != revision.replicas:
        yield ScaleRevision(revision.id, replicas)
    elif len(scene.counted) < replicas and not scene.is_held_off:
        yield LeaseReplicas(revision.id, frozenset(lease.id for lease in (*scene.finishing, *scene.leaving)))


def _run_app(scene: Scene) -> Iterator[Decision]:
    """Yield the job that runs a tenant's own application, or its end: Serve would import it outside of the lease."""
    for lease in scene.active:
        job = scene.view.app_jobs.get(lease.id)
        if job is None and scene.in_serve and not scene.view.stopping:
            yield RunApp(scene.revision.id, lease.id)
        elif (
            job is not None and not scene.in_serve and job.target is Target.RUN and not job.status.is_terminal
        ):
            yield EndApp(job.id)


def _abandoned(view: FarmView, scenes: Sequence[Scene]) -> Iterator[Decision]:
    """Yield the removal of what jobs have started in Serve and did not live to end: Serve would keep it for ever."""
    over = {scene.revision.app_name for scene in scenes if scene.ended_job is not None}
    names = tuple(
        name
        for name, app in (view.serve_apps or {}).items()
        if app.lease_ids and (name in over or app.lease_ids.isdisjoint(view.leases_by_id))
    )
    if names:
        yield RemoveApps(names)


def _may_take_over(scene: Scene, replicas: int) -> bool:
    """Whether so many replicas run, or all for which there is room: a lease that is told why it waits has none.

    How many replicas a tenant's own application has in its lease is its own affair, and may be none.
    """
    if scene.revision.canary_percent:
        return False
    if scene.revision.is_own_app:
        return True
    running = sum(replica.running for replica in scene.app.replicas) if scene.app is not None else 0
    waiting = [lease for lease in scene.counted if lease.status is LeaseStatus.WAITING]
    have_asked = len(scene.counted) >= replicas and all(lease.message for lease in waiting)
    return running >= replicas or (have_asked and running >= len(scene.counted) - len(waiting))


def _give_back(scene: Scene) -> Iterator[Decision]:
    """Yield a release for each lease too many: first what waits, and of what is up only nodes without a replica."""
    reason = EndReason.SERVICE_DELETED if scene.service.target is Target.END else EndReason.SCALED_DOWN
    free = [lease for lease in scene.held if lease.status in _GIVEN_BACK_FIRST and _is_free(lease, scene)]
    free.sort(key=lambda lease: (_GIVEN_BACK_FIRST.index(lease.status), -lease.created_ms, lease.id))
    for lease in free[: max(0, len(scene.counted) - scene.wanted)]:
        yield ReleaseLease(lease.id, reason)


def _drain(scene: Scene) -> Iterator[Decision]:
    """Yield a drain for what has been told to be gone, as soon as enough others answer, or shortly before it has to be.

    Serve then stops what is on it, and nothing else: it lets that finish, and sends it no more requests.
    """
    view = scene.view
    is_replaced = view.serve_apps is not None and scene.answering_elsewhere >= max(1, scene.wanted)
    for lease in scene.active:
        deadline_ms = lease.gone_by_ms
        if deadline_ms is None or view.now_ms >= deadline_ms:
            continue
        if view.now_ms >= deadline_ms - GO_MS or (is_replaced and lease in scene.leaving):
            for piece in lease.slices:
                if _is_up(piece, view):
                    yield DrainNode(lease.id, piece, deadline_ms)


def _is_up(piece: Slice, view: FarmView) -> bool:
    host = view.hosts_by_id.get(piece.host)
    nodes = () if host is None else host.nodes
    return any(node.name == piece.name and node.phase is NodePhase.UP for node in nodes)


def _is_free(lease: Lease, scene: Scene) -> bool:
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
