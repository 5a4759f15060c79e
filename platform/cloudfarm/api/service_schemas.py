"""Bodies of requests about services, and of their answers."""

from dataclasses import fields
from typing import Any, Self

from pydantic import StrictBool, StrictFloat, StrictInt

from cloudfarm.api.schemas import Answer, Body, Quantity, Text
from cloudfarm.clock import iso
from cloudfarm.usecases.service_views import RevisionView, ServiceView
from cloudfarm.usecases.services import Scaling


class ServiceBody(Body):
    """A service to deploy; with ``replace`` a running one of the name gets the model."""

    model: Text
    name: Text | None = None
    gpus: Quantity | None = None
    replicas: StrictInt | None = None
    min_replicas: StrictInt | None = None
    max_replicas: StrictInt | None = None
    target_load: StrictInt | None = None
    idle_minutes: StrictInt | StrictFloat | None = None
    cpus: Quantity | None = None
    memory: Quantity | None = None
    project: Text | None = None
    canary: StrictInt | None = None
    replace: StrictBool = False

    @property
    def scaling(self) -> Scaling:
        """How many replicas it may have."""
        return _scaling(self)


class AppBody(Body):
    """A tenant's own Serve application, in the words of Serve's own configuration."""

    import_path: Text
    name: Text | None = None
    runtime_env: dict[str, Any] | None = None
    args: dict[str, Any] | None = None


class ServiceChanges(Body):
    """What is to be changed of a service; ``shared`` by an operator only."""

    replicas: StrictInt | None = None
    min_replicas: StrictInt | None = None
    max_replicas: StrictInt | None = None
    target_load: StrictInt | None = None
    idle_minutes: StrictInt | StrictFloat | None = None
    shared: StrictBool | None = None

    @property
    def scaling(self) -> Scaling:
        """How many replicas it may have."""
        return _scaling(self)


def _scaling(body: ServiceBody | ServiceChanges) -> Scaling:
    return Scaling(**{each.name: getattr(body, each.name) for each in fields(Scaling)})


class RevisionOut(Answer):
    """What runs of a service."""

    number: int
    model: str
    status: str
    percent: int
    replicas: int
    leases: list[str]
    message: str
    created: str | None

    @classmethod
    def of(cls, view: RevisionView) -> Self:
        """Return a revision's answer."""
        revision = view.revision
        return cls(
            number=revision.number,
            model=view.model.ref,
            status=revision.status,
            percent=view.percent,
            replicas=revision.replicas,
            leases=[lease.id for lease in view.leases],
            message=view.message,
            created=iso(revision.created_ms),
        )


class ServiceOut(Answer):
    """A service; ``model``, ``status`` and ``replicas`` are those of the revision that its requests go to."""

    id: str
    name: str
    tenant: str
    owner: str
    project: str
    model: str
    status: str
    target: str
    message: str
    milli_gpus: int
    cpus: int
    memory_bytes: int
    replicas: int
    min_replicas: int
    max_replicas: int
    target_load: int
    idle_minutes: float
    shared: bool
    leases: list[str]
    revisions: list[RevisionOut]
    created: str | None
    predict: str

    @classmethod
    def of(cls, view: ServiceView) -> Self:
        """Return a service's answer."""
        service = view.service
        return cls(
            id=service.id,
            name=service.name,
            tenant=service.tenant,
            owner=service.owner,
            project=service.project,
            model=view.current.model.ref,
            status=view.status,
            target=service.target,
            message=view.message,
            milli_gpus=service.milli_gpus,
            cpus=service.cpus,
            memory_bytes=service.memory_bytes,
            replicas=view.current.revision.replicas,
            min_replicas=service.min_replicas,
            max_replicas=service.max_replicas,
            target_load=service.target_load,
            idle_minutes=service.idle_ms / 60_000,
            shared=service.shared,
            leases=[lease.id for revision in view.revisions for lease in revision.leases],
            revisions=[RevisionOut.of(revision) for revision in view.revisions],
            created=iso(service.created_ms),
            predict=f"/v1/services/{service.name}/predict",
        )
