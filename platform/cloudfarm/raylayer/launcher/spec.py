"""What a lease node is asked to be (`NodeSpec`) and what it is (`NodeRecord`, `NodeUsage`)."""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from cloudfarm.raylayer.launcher.errors import LauncherError

Phase = Literal["starting", "up", "exited"]
Namespace = Literal["root", "user", "none"]
CgroupKind = Literal["v1", "v2", "none"]

NAME = re.compile(r"[a-z0-9-]{1,40}")
MAX_TEMP_DIR = 40
"""Ray appends ``/session_<26 characters>_<pid>/sockets/plasma_store``; a socket's path has 107 bytes."""
FIXED_PORTS = 6
"""The first ports of a node's range are its raylet's and agents', the rest its workers'; see `NodePorts`."""
MIN_PORTS = FIXED_PORTS + 10


@dataclass(frozen=True, slots=True)
class NodePorts:
    """The ports of one node, all from its own range, so that two nodes of one host never meet."""

    dashboard_agent: int
    metrics_export: int
    runtime_env_agent: int
    metrics_agent: int
    node_manager: int
    object_manager: int
    first_worker: int
    last_worker: int

    def fixed(self) -> tuple[int, ...]:
        """Return the ports that one process each must be able to bind, the workers' left out."""
        return tuple(getattr(self, f.name) for f in fields(self)[:FIXED_PORTS])


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One lease node (or base node) to start. Plain data; `validate` is called by the launcher."""

    name: str
    gcs_address: str
    node_ip: str
    cpus: int
    gpus: int
    memory_bytes: int
    object_store_bytes: int
    labels: dict[str, str]
    env: dict[str, str]
    temp_dir: str
    worker_ports: tuple[int, int]
    pids_limit: int = 4096
    isolate: bool = True
    dashboard_port: int = 0
    """Not 0: the node is the head; it also runs the GCS, at ``gcs_address``, and the dashboard, here."""

    @property
    def ports(self) -> NodePorts:
        """Return the assignment of the range's ports."""
        first, last = self.worker_ports
        return NodePorts(
            dashboard_agent=first,
            metrics_export=first + 1,
            runtime_env_agent=first + 2,
            metrics_agent=first + 3,
            node_manager=first + 4,
            object_manager=first + 5,
            first_worker=first + FIXED_PORTS,
            last_worker=last,
        )

    def bound_ports(self) -> tuple[int, ...]:
        """Return every port that must be free on the host for the node to start."""
        head = (int(self.gcs_address.rpartition(":")[2]), self.dashboard_port) if self.dashboard_port else ()
        return (*self.ports.fixed(), *head)

    def validate(self) -> None:
        """Raise `LauncherError` (``bad_spec``) naming the first value that can never work."""
        problem = self._problem()
        if problem:
            raise LauncherError(f"Lease node {self.name!r}: {problem}.", reason="bad_spec")

    def _problem(self) -> str | None:
        first, last = self.worker_ports
        checks = (
            (not NAME.fullmatch(self.name), "the name must match [a-z0-9-]{1,40}"),
            (not re.fullmatch(r"[^\s:]+:\d+", self.gcs_address), "gcs_address must be host:port"),
            (min(self.cpus, self.gpus, self.memory_bytes, self.pids_limit) < 0, "an amount is negative"),
            (self.object_store_bytes <= 0, "object_store_bytes must be positive"),
            (not self.temp_dir.startswith("/"), "temp_dir must be absolute"),
            (
                len(self.temp_dir.encode()) > MAX_TEMP_DIR,
                f"temp_dir is longer than {MAX_TEMP_DIR} bytes, so Ray's sockets would not fit into 107",
            ),
            (not 1024 <= first <= last <= 65535, "worker_ports must be (min, max) within 1024..65535"),  # noqa: PLR2004
            (last - first + 1 < MIN_PORTS, f"worker_ports needs at least {MIN_PORTS} ports"),
            (
                any("\0" in k + v or "=" in k for k, v in self.env.items()),
                "env has an impossible key or value",
            ),
        )
        return next((text for wrong, text in checks if wrong), None)

    def to_json(self) -> str:
        """Return the spec as one JSON object."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild a spec; a newer version's keys are dropped, so that a downgrade still finds its nodes."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild a spec from parsed JSON."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["worker_ports"] = tuple(known["worker_ports"])
        return cls(**known)

    @classmethod
    def unknown(cls, name: str) -> Self:
        """Return a stand-in for a node found alive whose spec is lost everywhere; it can only be killed."""
        return cls(name, "unknown:0", "unknown", 0, 0, 0, 0, {}, {}, "", (0, 0))


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """The truth about one node at the moment of asking."""

    spec: NodeSpec
    pid: int | None
    """The node's init as the host sees it; None when only stray processes of it were found."""
    started_at: float
    phase: Phase
    node_id: str | None
    namespace: Namespace
    cgroup: CgroupKind
    limits: dict[str, int] = field(default_factory=dict)
    """The limits that hold in the kernel: ``cpus``, ``memory_bytes``, ``pids``; absent means not limited."""
    reason: str | None = None
    """Why an exited node exited."""

    @property
    def name(self) -> str:
        """Return the node's name."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What a node uses now; peaks only where the kernel keeps them.

    A control group counts threads in ``pids``, /proc counts processes (``source`` says which); memory is what
    the group is charged, or the sum of proportional set sizes.
    """

    cpu_s: float
    memory_bytes: int
    peak_memory_bytes: int | None
    pids: int
    source: Literal["v1", "v2", "proc"]
