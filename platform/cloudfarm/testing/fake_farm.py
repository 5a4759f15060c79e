"""Hosts, Ray and Serve in memory, with knobs for their faults. Each fake implements one of the ports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloudfarm.domain.host import Gpu, Host, NodeMeter, NodePhase, NodeTruth
from cloudfarm.domain.lease import Grade, Lease, Slice
from cloudfarm.domain.status import Event, JobStatus
from cloudfarm.domain.workload import Job, ModelVersion, RayJob, ServeApp, Service
from cloudfarm.errors import FencedError, HostError, NotFoundError, UnavailableError
from cloudfarm.testing.clock import ManualClock

GIB = 1024**3


def make_host(
    name: str, gpus: int = 2, *, model: str = "SIM", cpus: int = 16, memory_bytes: int = 64 * GIB
) -> Host:
    """Return an empty host with so many GPUs."""
    return Host(
        id=name,
        gpus=tuple(Gpu(index, model, 16384) for index in range(gpus)),
        cpus=cpus,
        memory_bytes=memory_bytes,
        grade=Grade.SIMULATED,
    )


@dataclass(slots=True)
class FakeHosts:
    """Hosts whose nodes come up at once, unless a knob says otherwise."""

    clock: ManualClock
    hosts: dict[str, Host] = field(default_factory=dict)
    nodes: dict[tuple[str, str], NodeTruth] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    logs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    """Hosts whose agent does not answer."""
    slow: set[str] = field(default_factory=set)
    """Hosts whose nodes stay in ``starting``."""
    broken: set[str] = field(default_factory=set)
    """Hosts whose nodes exit instead of coming up."""
    sticky: set[str] = field(default_factory=set)
    """Hosts that fail to kill."""
    drained: list[tuple[str, str, int]] = field(default_factory=list)
    _seen_ms: dict[str, int] = field(default_factory=dict)

    async def observe(self) -> Sequence[Host]:
        """Return every host as its knobs have it."""
        found = []
        for host in self.hosts.values():
            if host.id in self.silent:
                if host.id in self._seen_ms:
                    found.append(replace(host, reachable=False, seen_ms=self._seen_ms[host.id]))
                continue
            self._seen_ms[host.id] = self.clock.now_ms()
            nodes = tuple(node for (where, _), node in sorted(self.nodes.items()) if where == host.id)
            found.append(replace(host, nodes=nodes, seen_ms=self.clock.now_ms()))
        return found

    async def start_node(
        self,
        piece: Slice,
        *,
        tenant: str,
        epoch: int,
        labels: Mapping[str, str],
        env: Mapping[str, str],
    ) -> None:
        """Start a node, as the host's knobs have it."""
        self._fence(piece.host, epoch)
        phase = NodePhase.UP
        if piece.host in self.slow:
            phase = NodePhase.STARTING
        if piece.host in self.broken:
            phase = NodePhase.EXITED
        key = (piece.host, piece.name)
        if key not in self.nodes:
            node_id = f"ray-{piece.name}" if phase is NodePhase.UP else None
            self.nodes[key] = NodeTruth(
                piece.name, labels["lease"], phase, node_id, self.clock.now_ms(), "fake", "broken"
            )

    async def drain_node(
        self, host: str, node_id: str, *, deadline_ms: int, epoch: int, message: str
    ) -> None:
        """Note the drain."""
        self._fence(host, epoch)
        self.drained.append((host, node_id, deadline_ms))

    async def kill_node(self, host: str, name: str, *, epoch: int) -> NodeMeter | None:
        """Remove the node, unless the host is sticky."""
        self._fence(host, epoch)
        if host in self.sticky:
            raise HostError(f"{host} cannot kill {name}")
        known = self.nodes.pop((host, name), None)
        return None if known is None else NodeMeter(cpu_ms=1000, peak_memory_bytes=GIB)

    async def read_log(self, host: str, name: str, file: str, *, max_bytes: int) -> bytes:
        """Return a log put into ``logs``."""
        try:
            return self.logs[name, file][-max_bytes:]
        except KeyError:
            raise NotFoundError(f"{name} has no log {file}") from None

    def _fence(self, host: str, epoch: int) -> None:
        if host in self.silent:
            raise HostError(f"{host} does not answer")
        if epoch < self.epochs.get(host, 0):
            raise FencedError(f"{host} takes no orders of epoch {epoch}")
        self.epochs[host] = epoch

    # === Test methods ===

    def forget(self) -> None:
        """Know of no host, as a steward does that has just started and has not heard from any."""
        self._seen_ms.clear()

    def lose(self, name: str) -> None:
        """Let a node die by itself."""
        for key in list(self.nodes):
            if key[1] == name:
                del self.nodes[key]


@dataclass(slots=True)
class FakeRayJobs:
    """Ray's Jobs API; a submitted job runs until the test ends it."""

    jobs: dict[str, RayJob] = field(default_factory=dict)
    down: bool = False

    async def submit(self, job: Job, *, env: Mapping[str, str], label_selector: Mapping[str, str]) -> None:
        """Run the job."""
        self._check()
        self.jobs.setdefault(job.ray_id, RayJob(job.ray_id, JobStatus.RUNNING, "running"))

    async def list(self) -> Mapping[str, RayJob]:
        """Return all jobs."""
        self._check()
        return dict(self.jobs)

    async def stop(self, ray_id: str) -> bool:
        """Stop a job at once."""
        self._check()
        if self.jobs[ray_id].status.is_terminal:
            return False
        self.jobs[ray_id] = RayJob(ray_id, JobStatus.STOPPED, "stopped by the user")
        return True

    async def delete(self, ray_id: str) -> None:
        """Forget a job."""
        self.jobs.pop(ray_id, None)

    def _check(self) -> None:
        if self.down:
            raise UnavailableError("Ray is down")

    # === Test methods ===

    def end(self, ray_id: str, status: JobStatus, message: str = "") -> None:
        """Let a job end."""
        self.jobs[ray_id] = RayJob(ray_id, status, message)


@dataclass(slots=True)
class FakeServing:
    """Serve, whose applications run at once."""

    applied: dict[str, tuple[Service, ModelVersion, Lease]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)

    async def open(self) -> None:
        """Do nothing: the farm's own application is not shown."""

    async def apply(self, services: Sequence[tuple[Service, ModelVersion, Lease]]) -> None:
        """Run exactly these."""
        self.applied = {each[0].app_name: each for each in services}

    async def apps(self) -> Mapping[str, ServeApp]:
        """Return what runs."""
        return {
            name: ServeApp(name, name not in self.failing, name in self.failing, "broken")
            for name in self.applied
        }


@dataclass
class FakeWatch:
    """A watch that finds what the test puts in."""

    found: list[Event] = field(default_factory=list)

    async def sweep(self, leases: Sequence[Lease]) -> Sequence[Event]:
        """Return and forget what was put in."""
        found, self.found = self.found, []
        return found
