"""What the steward decides from, and what it may decide. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Ask, ExpectedStart, Lease, Slice
from cloudfarm.domain.load import LoadReport
from cloudfarm.domain.quota import QuotaTree
from cloudfarm.domain.status import EndReason, JobStatus, RevisionStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.domain.workload import Job, ModelVersion, RayJob, Revision, ServeApp, Service


@dataclass(frozen=True, slots=True)
class Policy:
    """The steward's knobs."""

    start_timeout_ms: int = 120_000
    """How long lease nodes may take to come up before the lease ends as failed."""
    notice_ms: int = 60_000
    """How long before its time limit a lease is told, and its nodes drained."""
    archive_ms: int = 10_000
    """How long the nodes of an ending lease are kept at most while the logs of its jobs are saved."""
    host_lost_ms: int = 60_000
    """How long a host may be silent before its lease nodes count as gone."""


@dataclass(frozen=True, slots=True)
class Run:
    """How long a lease that has ended really ran."""

    tenant: str
    kind: str
    """Of the lease."""
    ran_ms: int
    limit_ms: int


@dataclass(frozen=True, slots=True)
class FarmView:
    """The whole farm at one moment. ``None`` for what could not be observed this time: nothing is concluded from it."""

    now_ms: int
    tenants: Mapping[str, Tenant]
    hosts: tuple[Host, ...]
    leases: tuple[Lease, ...]
    """Every lease that has not ended, oldest first."""
    jobs: tuple[Job, ...]
    """Every job that has not ended, oldest first."""
    services: tuple[Service, ...]
    """Every service that is not deleted, oldest first."""
    revisions: tuple[Revision, ...] = ()
    """Every revision of them that has not ended, oldest first."""
    models: Mapping[str, ModelVersion] = field(default_factory=dict)
    """By id: the models of ``revisions``."""
    app_jobs: Mapping[str, Job] = field(default_factory=dict)
    """By lease: the job that runs a tenant's own application in it, over or not."""
    held_off_until_ms: Mapping[str, int] = field(default_factory=dict)
    """By revision: until when it gets no further lease, because of what went wrong on the last."""
    loads: LoadReport | None = None
    """What services are asked, as the front door last said; None if it has not said so lately."""
    ray_jobs: Mapping[str, RayJob] | None = None
    """By ray_id."""
    serve_apps: Mapping[str, ServeApp] | None = None
    """By application name."""
    seen_before_ms: Mapping[str, int] = field(default_factory=dict)
    """By host: when it last answered before this look, whoever asked; what was lost since is charged until then."""
    watching_since_ms: int = 0
    """Since when this steward has been looking: a host's silence before that says nothing."""
    quotas: QuotaTree = field(default_factory=QuotaTree)
    """Those in force: see :func:`cloudfarm.domain.quota.tree_in_force`."""
    asks: tuple[Ask, ...] = ()
    """The newest asks, open or not: from them is learned what will be asked for."""
    past: Mapping[str, float] = field(default_factory=dict)
    """By quota: decayed past use; 1 is the whole farm, always."""
    runs: tuple[Run, ...] = ()
    """Of the newest leases that have ended."""
    corrections: Mapping[str, tuple[float, float, float]] | None = None
    """Of forecasts, by how earlier ones turned out (:mod:`cloudfarm.scheduler.calibration`); None: make none now."""
    saved_ms: Mapping[str, int] = field(default_factory=dict)
    """By lease: when its work was last saved."""
    gpu_reserve_percent: int = 0
    """How much of a shared GPU's memory no slice may use."""
    stopping: bool = False
    """Whether the operator is stopping the farm: leases end, nothing new starts."""
    leases_by_id: Mapping[str, Lease] = field(init=False, repr=False, compare=False)
    hosts_by_id: Mapping[str, Host] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leases_by_id", {lease.id: lease for lease in self.leases})
        object.__setattr__(self, "hosts_by_id", {host.id: host for host in self.hosts})


@dataclass(frozen=True, slots=True)
class Grant:
    """Give a waiting lease its slices: they hold capacity from now on."""

    lease_id: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Leave a lease waiting, and say why."""

    lease_id: str
    message: str
    room: tuple[Slice, ...] = ()
    """Where others make room for it: to be kept with the lease, so that it gets that room and no other."""
    expected_start: ExpectedStart | None = None
    """What it is told of its start: what it was told before, if there is nothing new."""


@dataclass(frozen=True, slots=True)
class StartNode:
    """Order the lease node of a slice (idempotent by the slice's name)."""

    lease_id: str
    slice: Slice


@dataclass(frozen=True, slots=True)
class ActivateLease:
    """Every lease node is up."""

    lease_id: str
    node_ids: Mapping[int, tuple[str, str]]
    """By slice index: Ray's node id and what isolation the host could enforce."""


@dataclass(frozen=True, slots=True)
class NoticeLease:
    """Tell the owner that the time limit is near; its nodes are drained from then on."""

    lease_id: str


@dataclass(frozen=True, slots=True)
class Preempt:
    """Tell a lease that it has to be gone by the deadline, from then on drain its nodes, and let it wait anew."""

    lease_id: str
    for_lease_id: str
    deadline_ms: int
    message: str
    room: tuple[Slice, ...] = ()
    """Where it goes on at once, if it is only moved: kept with the lease, so that it gets that room and no other."""


@dataclass(frozen=True, slots=True)
class DrainNode:
    """Let the lease node of a slice be drained, unless it is already: its lease has been told to be gone by then."""

    lease_id: str
    slice: Slice
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class EndLease:
    """Begin to end a lease."""

    lease_id: str
    reason: EndReason
    message: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class KillNode:
    """Kill a lease node: its lease is ending, or there is no such lease (a leak)."""

    host: str
    name: str
    leaked_ms: int | None = None
    """For a leak: since when it runs."""


@dataclass(frozen=True, slots=True)
class FinishLease:
    """Nothing of the lease is left on any host: close it and charge it."""

    lease_id: str
    at_ms: int
    reason: EndReason


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """Hand a job to Ray: its lease is active."""

    job_id: str


@dataclass(frozen=True, slots=True)
class StopJob:
    """Ask Ray to stop a running job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class UpdateJob:
    """Take over what Ray says, or close a job that Ray will never finish."""

    job_id: str
    status: JobStatus
    message: str = ""
    ray: RayJob | None = None


@dataclass(frozen=True, slots=True)
class RequeueJob:
    """Let a job whose lease was preempted wait anew, to be sent to Ray again when the lease is active."""

    job_id: str


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Set a lease's target to END: the workload that it was made for is over."""

    lease_id: str
    reason: EndReason


@dataclass(frozen=True, slots=True)
class LeaseReplicas:
    """Make leases for a revision until it has one for each of its replicas."""

    revision_id: str
    but_for: frozenset[str] = frozenset()
    """Leases of it that do not count: what is on them goes."""


@dataclass(frozen=True, slots=True)
class ScaleRevision:
    """Want another number of replicas."""

    revision_id: str
    replicas: int


@dataclass(frozen=True, slots=True)
class UpdateRevision:
    """Take over what leases and Serve say of a revision."""

    revision_id: str
    status: RevisionStatus
    message: str = ""


@dataclass(frozen=True, slots=True)
class PromoteRevision:
    """Let a revision take over its service's requests, and the one before it end."""

    revision_id: str


@dataclass(frozen=True, slots=True)
class EndRevision:
    """Send no more requests to a revision, and let it end."""

    revision_id: str
    message: str


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Nothing of a service is left that was to end: close it."""

    service_id: str


@dataclass(frozen=True, slots=True)
class DeployServices:
    """The one Serve configuration should hold exactly these beside the farm's own application."""

    replicas: tuple[tuple[str, int], ...]
    """By id of the revision: how many of it."""


@dataclass(frozen=True, slots=True)
class RunApp:
    """Make the job that runs a tenant's own application in its lease."""

    revision_id: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class EndApp:
    """Let the job end that runs a tenant's own application, and with it the application."""

    job_id: str


@dataclass(frozen=True, slots=True)
class RemoveApps:
    """Take out of Serve what jobs have started there and can no longer end."""

    names: tuple[str, ...]


Decision = (
    Grant
    | Wait
    | StartNode
    | ActivateLease
    | NoticeLease
    | Preempt
    | DrainNode
    | EndLease
    | KillNode
    | FinishLease
    | SubmitJob
    | StopJob
    | UpdateJob
    | RequeueJob
    | ReleaseLease
    | LeaseReplicas
    | ScaleRevision
    | UpdateRevision
    | PromoteRevision
    | EndRevision
    | DeleteService
    | DeployServices
    | RunApp
    | EndApp
    | RemoveApps
)
Decisions = tuple[Decision, ...]
