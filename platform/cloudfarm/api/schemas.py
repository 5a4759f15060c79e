"""Bodies of the tenant API's requests and answers. Answers are made from domain objects by ``of``."""

from dataclasses import asdict
from typing import Annotated, Any, Self

from fastapi import Body as FromBody
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from cloudfarm.clock import iso
from cloudfarm.domain.lease import ExpectedStart, Lease, Slice
from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import Credential, Role, Tenant
from cloudfarm.domain.workload import ModelVersion

HOUR_MS = 3_600_000

Quantity = StrictStr | StrictInt | StrictFloat
"""A number, or text that is read as one (``"2x0.5"``, ``"4GiB"``). Strict, so that ``true`` is not 1."""
JsonBody = Annotated[Any, FromBody()]
"""A body that the use case reads itself."""
Limit = Annotated[int, Query(ge=1, le=1000)]
"""How many at most."""
Text = Annotated[StrictStr, Field(max_length=200)]


class Body(BaseModel):
    """A request: unknown members are refused, since a misspelt one would silently mean the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TenantBody(Body):
    """A new tenant."""

    id: Text
    title: Text = ""
    limit_gpus: Quantity | None = None


class TenantChange(Body):
    """What of a tenant changes."""

    title: Text | None = None
    limit_gpus: Quantity | None = None
    limit_tokens_per_month: StrictInt | None = None
    closed: StrictBool | None = None


class HostChange(Body):
    """What of a host changes."""

    cordoned: StrictBool


class TokenBody(Body):
    """A new token; an operator names the tenant."""

    user: Text
    role: Role
    tenant: Text | None = None
    hours: Quantity | None = None


class KeyChange(Body):
    """What of a key's limits changes: null lifts one, and one that is not named stays."""

    requests_per_minute: StrictInt | None = None
    tokens_per_minute: StrictInt | None = None
    tokens_per_month: StrictInt | None = None


class KeyBody(KeyChange):
    """A new API key; ``services`` empty means all."""

    user: Text
    services: Annotated[list[Text], Field(max_length=1000)] = []
    tenant: Text | None = None
    hours: Quantity | None = None


class LeaseBody(Body):
    """A new lease."""

    gpus: Quantity
    cpus: Quantity | None = None
    memory: Quantity | None = None
    hours: Quantity | None = None
    gpu_model: Text | None = None
    distinct_gpus: StrictBool = True
    name: Text | None = None
    project: Text | None = None
    priority: Quantity | None = None
    not_before: Text | None = None


class ExtendBody(Body):
    """How much longer."""

    hours: Quantity


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True)


class TenantOut(Answer):
    """A tenant."""

    id: str
    title: str
    created: str | None
    limit_milli_gpus: int | None
    limit_tokens_per_month: int | None
    closed: str | None

    @classmethod
    def of(cls, tenant: Tenant) -> Self:
        """Return a tenant's answer."""
        return cls(
            id=tenant.id,
            title=tenant.title,
            created=iso(tenant.created_ms),
            limit_milli_gpus=tenant.limit_milli_gpus,
            limit_tokens_per_month=tenant.limit_tokens_per_month,
            closed=iso(tenant.closed_ms),
        )


class CredentialOut(Answer):
    """A token or key; ``secret`` is in the answer to its issue and never again."""

    id: str
    kind: str
    tenant: str | None
    user: str
    role: str
    created: str | None
    expires: str | None
    revoked: str | None
    services: tuple[str, ...]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_per_month: int | None
    secret: str | None = None

    @classmethod
    def of(cls, found: Credential, secret: str | None = None) -> Self:
        """Return a credential's answer."""
        return cls(
            id=found.id,
            kind=found.kind,
            tenant=found.tenant,
            user=found.user,
            role=found.role,
            created=iso(found.created_ms),
            expires=iso(found.expires_ms),
            revoked=iso(found.revoked_ms),
            services=found.services,
            **asdict(found.limits),
            secret=secret,
        )


class SliceOut(Answer):
    """A slice of a lease."""

    name: str
    lease: str
    host: str
    gpus: tuple[int, ...]
    milli_gpus: int
    cpus: int
    memory_bytes: int
    gpu_memory_bytes: int
    isolation: str
    node_id: str | None

    @classmethod
    def of(cls, piece: Slice) -> Self:
        """Return a slice's answer."""
        return cls(
            name=piece.name,
            lease=piece.lease_id,
            host=piece.host,
            gpus=piece.gpu_indices,
            milli_gpus=piece.milli_gpus,
            cpus=piece.cpus,
            memory_bytes=piece.memory_bytes,
            gpu_memory_bytes=piece.gpu_memory_bytes,
            isolation=piece.isolation,
            node_id=piece.node_id,
        )


class ExpectedStartOut(Answer):
    """When a waiting lease will probably start: in about 8 of 10 cases between the earliest and the latest."""

    earliest: str | None
    expected: str | None
    latest: str | None

    @classmethod
    def of(cls, start: ExpectedStart) -> Self:
        """Return an expected start's answer."""
        return cls(
            earliest=iso(start.earliest_ms), expected=iso(start.expected_ms), latest=iso(start.latest_ms)
        )


class LeaseOut(Answer):
    """A lease."""

    id: str
    name: str
    tenant: str
    owner: str
    project: str
    kind: str
    status: str
    target: str
    shape: str
    milli_gpus: int
    cpus: int
    memory_bytes: int
    hours: float
    gpu_model: str | None
    distinct_gpus: bool
    priority: int
    not_before: str | None
    grade: str | None
    created: str | None
    granted: str | None
    started: str | None
    ends: str | None
    preempted: str | None
    ended: str | None
    expected_start: ExpectedStartOut | None
    reason: str | None
    message: str
    slices: tuple[SliceOut, ...]

    @classmethod
    def of(cls, lease: Lease) -> Self:
        """Return a lease's answer."""
        return cls(
            id=lease.id,
            name=lease.name,
            tenant=lease.tenant,
            owner=lease.owner,
            project=lease.project,
            kind=lease.kind,
            status=lease.status,
            target=lease.target,
            shape=str(lease.ask.shape),
            milli_gpus=lease.milli_gpus,
            cpus=lease.ask.cpus,
            memory_bytes=lease.ask.memory_bytes,
            hours=lease.ask.duration_ms / HOUR_MS,
            gpu_model=lease.ask.gpu_model,
            distinct_gpus=lease.ask.distinct_gpus,
            priority=lease.ask.priority,
            not_before=iso(lease.ask.not_before_ms),
            grade=lease.grade,
            created=iso(lease.created_ms),
            granted=iso(lease.granted_ms),
            started=iso(lease.started_ms),
            ends=iso(lease.ends_ms),
            preempted=iso(lease.preempted_ms),
            ended=iso(lease.ended_ms),
            expected_start=ExpectedStartOut.of(lease.expected_start) if lease.expected_start else None,
            reason=lease.reason,
            message=lease.told,
            slices=tuple(SliceOut.of(piece) for piece in lease.slices),
        )


class ModelOut(Answer):
    """A model version."""

    id: str
    ref: str
    name: str
    number: int
    tenant: str
    uri: str
    job_id: str | None
    created: str | None
    manifest: dict[str, Any]

    @classmethod
    def of(cls, model: ModelVersion) -> Self:
        """Return a model version's answer."""
        return cls(
            id=model.id,
            ref=model.ref,
            name=model.name,
            number=model.number,
            tenant=model.tenant,
            uri=model.uri,
            job_id=model.job_id,
            created=iso(model.created_ms),
            manifest=dict(model.manifest),
        )


class EventOut(Answer):
    """An event."""

    at: str | None
    kind: str
    subject: str
    tenant: str | None
    actor: str
    message: str

    @classmethod
    def of(cls, event: Event) -> Self:
        """Return an event's answer."""
        return cls(
            at=iso(event.at_ms),
            kind=event.kind,
            subject=event.subject,
            tenant=event.tenant,
            actor=event.actor,
            message=event.message,
        )
