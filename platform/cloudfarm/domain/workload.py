"""What runs in a lease: jobs and services, and the models between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cloudfarm.domain.status import JobStatus, RevisionStatus, ServiceStatus, Target

RUN_APP = "cloudfarm.inference.run_app"
"""Stands for the program of tenants' own applications: no program of the farm's, but a job in the lease runs them."""
DRAIN_S = 600
"""How long a replica that is to go may take for what it was asked: the longest stream."""
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
    """A name under which a model is kept answering: how it is to run, whatever runs just now."""

    id: str
    tenant: str
    owner: str
    name: str
    milli_gpus: int
    """Of each replica, as are CPUs and memory."""
    cpus: int
    memory_bytes: int
    created_ms: int
    min_replicas: int = 1
    max_replicas: int = 1
    target_load: int = 8
    """Requests that a replica is to have under way at once."""
    idle_ms: int = 600_000
    """After so long without a request nothing of it runs until the next one, if ``min_replicas`` is 0."""
    shared: bool = False
    """Whether its operator has opened it to all tenants."""
    current_id: str | None = None
    """The revision that its requests go to."""
    status: ServiceStatus = ServiceStatus.LIVE
    target: Target = Target.RUN
    message: str = ""
    """What became of the last deployment, if another one runs."""
    project: str = ""
    """Whose quota within the tenant's its leases count against."""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Revision:
    """What of a service runs: one model, on leases of its own, one for each replica.

    A service is given another model by another revision, which takes over when it runs.
    """

    id: str
    service_id: str
    tenant: str
    name: str
    """The service's."""
    number: int
    """1, 2, 3 ... within the tenant's name, also of services that were deleted."""
    model_id: str
    import_path: str
    created_ms: int
    replicas: int = 1
    """Wanted now."""
    canary_percent: int = 0
    """How much of the requests it gets until it is told to take over; 0: it takes over by itself as soon as it runs."""
    status: RevisionStatus = RevisionStatus.PENDING
    target: Target = Target.RUN
    message: str = ""
    started_ms: int | None = None
    """When it last began to answer."""
    promoted_ms: int | None = None
    """When it took over."""
    left_ms: int | None = None
    """Since when no request is sent to it any more; None while it may get some."""
    version: int = 0

    @property
    def is_given_up(self) -> bool:
        """Whether it has failed so that nothing of it is to run until it is tried again."""
        return self.status is RevisionStatus.FAILED and not self.replicas

    @property
    def app_name(self) -> str:
        """The Serve application's name: unique over tenants, and never used a second time."""
        return f"{self.tenant}.{self.name}.{self.number}"

    @property
    def is_own_app(self) -> bool:
        """Whether it is an application of its tenant's own, which a job in its lease runs."""
        return self.import_path == RUN_APP

    def job_name(self, lease_id: str) -> str:
        """Return what the job is called that runs it in that lease."""
        return f"app-{self.name}-{self.number}-{lease_id}"

    def leave(self, now_ms: int, message: str) -> "Revision":
        """Return it as it is from the moment on at which requests stop being sent to it, to end soon."""
        left_ms = now_ms if self.left_ms is None else self.left_ms
        return replace(self, target=Target.END, left_ms=left_ms, message=message)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What Serve is told of a revision."""

    service: Service
    revision: Revision
    model: ModelVersion
    replicas: int


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
class Replica:
    """A replica that Serve has, in whatever state."""

    node_id: str | None
    """Of the Ray node that it is on; None while it is not placed."""
    running: bool = True
    """Whether it answers."""
    stopping: bool = False
    """Whether it only answers what it was asked before, and goes."""


@dataclass(frozen=True, slots=True)
class ServeApp:
    """What Serve says of an application."""

    name: str
    running: bool
    """Whether it answers: each of its deployments has a running replica, or gets one when it is asked."""
    failed: bool
    message: str = ""
    replicas_wanted: int = 0
    """How many Serve aims at."""
    replicas: tuple[Replica, ...] = ()
    lease_ids: frozenset[str] = frozenset()
    """Of one that a job has started: where it runs."""
    given_up: bool = False
    """Whether it has failed for good: Serve does not try to start it any more."""
