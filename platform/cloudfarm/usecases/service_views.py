"""What people see of a service: its revisions with their share of the requests, and how it stands."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import LeaseStatus, RevisionStatus, Target
from cloudfarm.domain.workload import ModelVersion, Revision, Service
from cloudfarm.ports import UnitOfWork

WHOLE = 100


@dataclass(frozen=True, slots=True)
class RevisionView:
    """A revision with its model, its leases, its share of the requests, and why it is where it is."""

    revision: Revision
    model: ModelVersion
    leases: tuple[Lease, ...]
    percent: int
    message: str


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service as its revisions have it."""

    service: Service
    current: RevisionView
    revisions: tuple[RevisionView, ...]
    """Those that have not ended, oldest first."""
    message: str

    @property
    def status(self) -> str:
        """That of the revision which its requests go to."""
        return self.current.revision.status.value


async def view_service(uow: UnitOfWork, service: Service) -> ServiceView:
    """Return a service with everything that runs of it."""
    revisions = await uow.revisions.list(service_id=service.id, open_only=True)
    leases = await uow.leases.list(tenant=service.tenant, open_only=True)
    if all(revision.id != service.current_id for revision in revisions):  # it is about to be deleted
        revisions = [await uow.revisions.get(service.current_id or ""), *revisions]
    taken = sum(
        revision.canary_percent
        for revision in revisions
        if revision.id != service.current_id and _gets_requests(revision)
    )
    views = []
    for revision in revisions:
        percent = WHOLE - taken if revision.id == service.current_id else revision.canary_percent
        mine = tuple(lease for lease in leases if lease.revision_id == revision.id)
        model = await uow.models.get(revision.model_id)
        shown = percent if _gets_requests(revision) else 0
        views.append(RevisionView(revision, model, mine, shown, _message(revision, mine)))
    current = next(view for view in views if view.revision.id == service.current_id)
    message = "is being deleted" if service.target is Target.END else current.message or service.message
    return ServiceView(service, current, tuple(views), message)


def _gets_requests(revision: Revision) -> bool:
    return revision.status is RevisionStatus.RUNNING and revision.target is Target.RUN


def _message(revision: Revision, leases: Sequence[Lease]) -> str:
    waiting = next((lease for lease in leases if lease.status is not LeaseStatus.ACTIVE), None)
    if revision.status is RevisionStatus.PENDING and waiting is not None and waiting.message:
        return f"waits for lease {waiting.id}: {waiting.told}"
    return revision.message
