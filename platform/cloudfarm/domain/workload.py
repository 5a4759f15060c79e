"""What runs in a lease: jobs and services, and the models between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudfarm.domain.status import JobStatus, ServiceStatus, Target

LEFT_ITS_LEASE = "left_its_lease"
"""``error_type`` of a job that was stopped because its work was found outside its lease."""


def attempt_line(attempt: int) -> str:
    """Return the line of a preempted job's log at which another attempt begins (the first one is 0)."""
    return f"cloudfarm: preempted; attempt {attempt + 1} begins here\n"


@dataclass(frozen=True, slots=True)
class Job:
    """A Ray job of a tenant.

    ``submission_id`` is the tenant's own name for it; ``ray_id`` is what the cluster knows it by.
    """

    id: str
    tenant: str
    owner: str
    submission_id: str
    lease_id: str
    owns_lease: bool
    """Whether the lease was made for this job and ends with it."""
    entrypoint: str
    created_ms: int
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    """The entrypoint_* fields of the request that are passed on to Ray."""
    status: JobStatus = JobStatus.PENDING
    target: Target = Target.RUN
    submitted_ms: int | None = None
    """When it was handed to Ray; None while it waits for its lease."""
    started_ms: int | None = None
    ended_ms: int | None = None
    message: str = ""
    error_type: str | None = None
    driver_exit_code: int | None = None
    log_uri: str | None = None
    """Where the log is kept once the lease node that wrote it may be gone."""
    attempt: int = 0
    """How often it has been preempted and sent to Ray anew."""
    version: int = 0

    @property
    def ray_id(self) -> str:
        """The submission id inside the one cluster: readable in the dashboard, and never used a second time.

        With the farm's own id, because a tenant may delete a job and use its submission id again.
        """
        again = f".{self.attempt}" if self.attempt else ""
        return f"{self.tenant}.{self.submission_id}.{self.id}{again}"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A trained model that a job reported: its bundle, metrics and card."""

    id: str
    tenant: str
    name: str
    number: int
    """1, 2, 3 ... within the name."""
    uri: str
    job_id: str | None
    manifest: Mapping[str, Any]
    created_ms: int

    @property
    def ref(self) -> str:
        """``name:number``, as a person writes it."""
        return f"{self.name}:{self.number}"


@dataclass(frozen=True, slots=True)
class Service:
    """A model kept answering on a lease of its own."""

    id: str
    tenant: str
    owner: str
    name: str
    model_id: str
    import_path: str
    milli_gpus: int
    replicas: int
    cpus: int
    memory_bytes: int
    created_ms: int
    lease_id: str | None = None
    status: ServiceStatus = ServiceStatus.PENDING
    target: Target = Target.RUN
    message: str = ""
    project: str = ""
    """Whose quota within the tenant's its leases count against."""
    version: int = 0

    @property
    def app_name(self) -> str:
        """The Serve application's name: unique over tenants."""
        return f"{self.tenant}.{self.name}"


@dataclass(frozen=True, slots=True)
class RayJob:
    """What Ray says of a submitted job."""

    ray_id: str
    status: JobStatus
    message: str = ""
    error_type: str | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    driver_exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class ServeApp:
    """What Serve says of an application."""

    name: str
    running: bool
    failed: bool
    message: str = ""
