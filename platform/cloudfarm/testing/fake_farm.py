"""Hosts, Ray and Serve in memory, with knobs for their faults. Each fake implements one of the ports.

``tests/contract`` holds them to what the real ones do on a running farm.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloudfarm.domain.host import Gpu, Host, NodeMeter, NodePhase, NodeTruth
from cloudfarm.domain.lease import Grade, Lease, Slice
from cloudfarm.domain.status import Event, JobStatus
from cloudfarm.domain.workload import Job, RayJob
from cloudfarm.errors import (
    CloudfarmError,
    ConflictError,
    FencedError,
    HostError,
    NotFoundError,
    UnavailableError,
)
from cloudfarm.ports import RayJobs
from cloudfarm.testing.clock import ManualClock

log = logging.getLogger(__name__)

GIB = 1024**3
RAYLET_LOG = "raylet.out"
"""A file that the log folder of every node has."""


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
    labels: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    """Of every node that was ever started."""
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
    busy: set[str] = field(default_factory=set)
    """Hosts whose nodes are at work: a drained one stays, where an idle one goes at once."""
    drained: list[tuple[str, str, int]] = field(default_factory=list)
    _starts: Counter[str] = field(default_factory=Counter)
    """By name: how often a node was started, wherever."""
    _seen_ms: dict[str, int] = field(default_factory=dict)

    async def observe(self) -> Sequence[Host]:
        """Return every host as its knobs have it."""
        self._let_drained_go()
        nodes_on: dict[str, list[NodeTruth]] = {}
        for (where, _), node in sorted(self.nodes.items()):
            nodes_on.setdefault(where, []).append(node)
        found = []
        for host in self.hosts.values():
            if host.id in self.silent:
                if host.id in self._seen_ms:
                    found.append(replace(host, reachable=False, seen_ms=self._seen_ms[host.id]))
                continue
            self._seen_ms[host.id] = self.clock.now_ms()
            nodes = tuple(nodes_on.get(host.id, ()))
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
        key = (piece.host, piece.name)
        if key in self.nodes:
            return
        phase = NodePhase.UP
        if piece.host in self.slow:
            phase = NodePhase.STARTING
        if piece.host in self.broken:
            phase = NodePhase.EXITED
        self._starts[piece.name] += 1
        self.nodes[key] = NodeTruth(
            name=piece.name,
            lease_id=labels["lease"],
            phase=phase,
            node_id=self._node_id(key) if phase is NodePhase.UP else None,
            started_ms=self.clock.now_ms(),
            isolation="fake",
            reason="broken" if phase is NodePhase.EXITED else "",
        )
        self.labels[key] = labels
        self.logs[piece.name, RAYLET_LOG] = f"the raylet of {piece.name} starts\n".encode()

    async def drain_node(
        self, host: str, node_id: str, *, deadline_ms: int, epoch: int, message: str
    ) -> None:
        """Note the drain; the node goes as soon as its host is not busy."""
        self._fence(host, epoch)
        self.drained.append((host, node_id, deadline_ms))

    async def kill_node(self, host: str, name: str, *, epoch: int) -> NodeMeter | None:
        """Remove the node, unless the host is sticky."""
        self._fence(host, epoch)
        if host in self.sticky:
            raise HostError(f"{host} cannot kill {name}")
        known = self.nodes.pop((host, name), None)
        for key in [key for key in self.logs if key[0] == name]:
            del self.logs[key]
        return None if known is None else NodeMeter(cpu_ms=1000, peak_memory_bytes=GIB)

    async def read_log(self, host: str, name: str, file: str, *, max_bytes: int) -> bytes:
        """Return the end of a log of a node that was not killed yet."""
        self._reach(host)
        try:
            text = self.logs[name, file]
        except KeyError:
            raise NotFoundError(f"{name} has no log {file}") from None
        return text[max(0, len(text) - max_bytes) :]

    def _node_id(self, key: tuple[str, str]) -> str:
        """Return Ray's id of a node, which is another one each time that it is started."""
        again = self._starts[key[1]] - 1
        return f"ray-{key[1]}" + (f".{again}" if again else "")

    def _reach(self, host: str) -> None:
        if host not in self.hosts:
            raise HostError(f"host {host} is not in the cluster")
        if host in self.silent:
            raise HostError(f"{host} does not answer")

    def _fence(self, host: str, epoch: int) -> None:
        self._reach(host)
        if epoch < self.epochs.get(host, 0):
            raise FencedError(f"{host} takes no orders of epoch {epoch}")
        self.epochs[host] = epoch

    def _let_drained_go(self) -> None:
        drained = {(where, node_id) for where, node_id, _ in self.drained}
        for (where, name), node in list(self.nodes.items()):
            if (where, node.node_id) in drained and where not in self.busy | self.silent:
                self._exit((where, name), "drained")

    def _exit(self, key: tuple[str, str], reason: str) -> None:
        if self.nodes[key].phase is not NodePhase.EXITED:
            self.nodes[key] = replace(self.nodes[key], phase=NodePhase.EXITED, reason=reason)

    # === Test methods ===

    def forget(self) -> None:
        """Know of no host, as a steward does that has just started and has not heard from any."""
        self._seen_ms.clear()

    def quicken(self) -> None:
        """Let hosts be slow no longer: what they have begun to start is up."""
        self.slow.clear()
        for key, node in self.nodes.items():
            if node.phase is NodePhase.STARTING:
                self.nodes[key] = replace(node, phase=NodePhase.UP, node_id=self._node_id(key))

    def lose(self, name: str) -> None:
        """Let a node die by itself; its host knows of it until it is killed."""
        for key in list(self.nodes):
            if key[1] == name:
                self._exit(key, "its raylet died")

    def wipe(self, name: str) -> None:
        """Let a node vanish with everything that its host knew of it."""
        for key in list(self.nodes):
            if key[1] == name:
                del self.nodes[key]


@dataclass(frozen=True, slots=True)
class Driver:
    """What a submitted job's driver is started with."""

    job: Job
    env: Mapping[str, str]
    label_selector: Mapping[str, str]


@dataclass(slots=True)
class FakeRayJobs:
    """Ray's Jobs API; a submitted job runs until the test ends it."""

    clock: ManualClock
    jobs: dict[str, RayJob] = field(default_factory=dict)
    drivers: dict[str, Driver] = field(default_factory=dict)
    down: bool = False

    async def submit(self, job: Job, *, env: Mapping[str, str], label_selector: Mapping[str, str]) -> None:
        """Run the job, unless Ray knows it already."""
        self._check()
        if job.ray_id not in self.jobs:
            asked = job.resources.get("entrypoint_label_selector", {})
            self.drivers[job.ray_id] = Driver(
                job, {**job.runtime_env.get("env_vars", {}), **env}, {**asked, **label_selector}
            )
            self.jobs[job.ray_id] = RayJob(
                job.ray_id, JobStatus.RUNNING, "running", started_ms=self.clock.now_ms()
            )

    async def list(self) -> Mapping[str, RayJob]:
        """Return all jobs."""
        self._check()
        return dict(self.jobs)

    async def stop(self, ray_id: str) -> bool:
        """Stop a job at once."""
        if self._known(ray_id).status.is_terminal:
            return False
        self.end(ray_id, JobStatus.STOPPED, "stopped by the user")
        return True

    async def delete(self, ray_id: str) -> None:
        """Forget a job."""
        self._check()
        known = self.jobs.get(ray_id)
        if known is not None and not known.status.is_terminal:
            raise ConflictError(f"job {ray_id} is still running")
        self.jobs.pop(ray_id, None)

    def _known(self, ray_id: str) -> RayJob:
        self._check()
        try:
            return self.jobs[ray_id]
        except KeyError:
            raise NotFoundError(f"there is no job {ray_id}") from None

    def _check(self) -> None:
        if self.down:
            raise UnavailableError("Ray is down")

    # === Test methods ===

    def end(
        self, ray_id: str, status: JobStatus, message: str = "", *, driver_exit_code: int | None = None
    ) -> None:
        """Let a job end."""
        self.jobs[ray_id] = replace(
            self.jobs[ray_id],
            status=status,
            message=message,
            ended_ms=self.clock.now_ms(),
            driver_exit_code=driver_exit_code,
        )


@dataclass
class FakeWatch:
    """A watch that finds the jobs that the test lets escape, and stops them."""

    clock: ManualClock
    ray_jobs: RayJobs
    escaped: dict[str, str] = field(default_factory=dict)
    """By ray_id: the lease that each has left."""

    async def sweep(self, leases: Sequence[Lease]) -> Sequence[Event]:
        """Stop what has escaped; what cannot be stopped is found again."""
        tenants = {lease.id: lease.tenant for lease in leases}
        events = []
        for ray_id, lease_id in list(self.escaped.items()):
            message = f"work of job {ray_id} belongs to lease {lease_id} but runs elsewhere; it was stopped"
            events.append(
                Event(self.clock.now_ms(), "watch.stopped", ray_id, tenants.get(lease_id), "steward", message)
            )
            try:
                await self.ray_jobs.stop(ray_id)
                del self.escaped[ray_id]
            except CloudfarmError as error:
                log.warning("job %s strays and cannot be stopped just now: %s", ray_id, error)
        return events

    # === Test methods ===

    def escape(self, ray_id: str, lease_id: str) -> None:
        """Let a job put work outside its lease."""
        self.escaped[ray_id] = lease_id
