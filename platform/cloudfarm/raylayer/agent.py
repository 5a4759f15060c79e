"""The host agent: one actor a host, which carries out the steward's orders there and tells the truth about the host.

It keeps nothing in memory that it could not find again: lease nodes are found by the launcher, the highest epoch
seen lies in a file. It may be killed and restarted at any time.
"""

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import ray

from cloudfarm.domain.host import Host, NodeMeter, NodePhase, NodeTruth
from cloudfarm.domain.lease import Slice
from cloudfarm.errors import FencedError, HostError, NotFoundError, UnavailableError
from cloudfarm.raylayer.gpus import device_env, discover
from cloudfarm.raylayer.launcher import LauncherError, NodeLauncher, NodeRecord, NodeSpec
from cloudfarm.raylayer.launcher.spec import Namespace
from cloudfarm.raylayer.node_deaths import NodeDeaths
from cloudfarm.raylayer.paths import PORTS_OF_NODE, FarmPaths
from cloudfarm.settings import Settings

log = logging.getLogger(__name__)

CONFIG_ENV = "CLOUDFARM_HOST"
NAMESPACES: Mapping[str, Sequence[Namespace]] = {
    "best": ("root", "user", "none"),
    "user": ("user", "none"),
    "none": ("none",),
}
"""Kinds of namespaces to try for each value of the setting ``isolation``, best first."""
GOODBYE_S = 2.0
WAITING = "waiting"
"""The threads of calls that wait for nodes: many starts at once must not keep the steward from seeing the host."""
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What a base node tells the agent that runs on it, through its environment."""

    id: str
    index: int
    """Which host on this machine it is; its ports follow from it."""
    gcs_address: str
    node_ip: str
    state_dir: str
    internal_port_base: int
    isolation: str
    gpus: int | None
    """Simulated GPUs; None for the real ones."""
    cpus: int | None
    memory_bytes: int | None

    @classmethod
    def of(cls, settings: Settings, *, host: str, index: int, gcs_address: str) -> "HostConfig":
        """Return the configuration of the ``index``-th host of this machine."""
        return cls(
            id=host,
            index=index,
            gcs_address=gcs_address,
            node_ip=settings.bind_address,
            state_dir=str(settings.state_dir),
            internal_port_base=settings.internal_port_base,
            isolation=settings.isolation,
            gpus=settings.gpus,
            cpus=settings.cpus,
            memory_bytes=settings.memory_bytes,
        )

    @property
    def paths(self) -> FarmPaths:
        """Where the host's files are, and its ports."""
        return FarmPaths(Path(self.state_dir), self.internal_port_base)

    def to_env(self) -> dict[str, str]:
        """Return the environment of the base node."""
        return {CONFIG_ENV: json.dumps(asdict(self))}

    @classmethod
    def from_env(cls) -> "HostConfig":
        """Read what :meth:`to_env` wrote.

        Raises:
            HostError: on a node that is not a host's base node.
        """
        text = os.environ.get(CONFIG_ENV)
        if text is None:
            raise HostError(
                "this Ray node is not a Cloudfarm host: its environment has no host configuration"
            )
        return cls(**json.loads(text))


class HostAgent:
    """Runs as a Ray actor with several threads; every method may be called at the same time as any other."""

    def __init__(self) -> None:
        config = HostConfig.from_env()
        self._config = config
        self._paths = config.paths
        self._machine = discover(config.gpus, config.cpus, config.memory_bytes)
        self._dir = self._paths.host_dir(self._config.id)
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._deaths = NodeDeaths(config.gcs_address)
        self._launcher = NodeLauncher(
            self._dir, namespaces=NAMESPACES[config.isolation], on_end=self._tell_dead
        )
        self._launcher.warm_up()
        self._starting: dict[str, int] = {}
        """Nodes ordered, neither up nor killed since, and when."""
        self._failed: dict[str, NodeTruth] = {}
        self._failing_lock = threading.Lock()
        self._epoch_lock = threading.Lock()
        self._start_lock = threading.Lock()

    def observe(self) -> Host:
        """Return this host with every lease node that is really here."""
        return Host(
            id=self._config.id,
            gpus=self._machine.gpus,
            cpus=self._machine.cpus,
            memory_bytes=self._machine.memory_bytes,
            grade=self._machine.grade,
            nodes=(*map(_truth, self._launcher.records()), *self._failed.values()),
            seen_ms=time.time_ns() // 1_000_000,
        )

    def start_node(self, piece: Slice, epoch: int, labels: Mapping[str, str], env: Mapping[str, str]) -> None:
        """Start the lease node of a slice and return while it comes up; a second order changes nothing.

        Raises:
            FencedError: if a newer steward has given orders here.
            HostError: if the node cannot be started.
        """
        self._fence(epoch)
        with self._start_lock:  # two orders at once must not choose the same ports
            records = self._launcher.records()
            if piece.name in self._failed or any(record.name == piece.name for record in records):
                return
            spec = NodeSpec(
                name=piece.name,
                gcs_address=self._config.gcs_address,
                node_ip=self._config.node_ip,
                cpus=piece.cpus,
                gpus=len(piece.gpu_indices),
                memory_bytes=piece.memory_bytes,
                object_store_bytes=max(96 * _MIB, piece.memory_bytes // 5),
                labels=dict(labels),
                env={
                    **self._paths.ray_env(self._config.node_ip, self._config.gcs_address),
                    **env,
                    **device_env(self._machine, piece),
                },
                temp_dir=str(self._paths.node_dir(piece.name)),
                worker_ports=self._free_ports(records, piece.cpus),
            )
            try:
                self._starting[piece.name] = time.time_ns() // 1_000_000
                self._launcher.start(spec)
            except LauncherError as error:
                raise HostError(f"{self._config.id}: {error}") from error

    @ray.method(concurrency_group=WAITING)  # type: ignore[untyped-decorator]  # ray has no types here
    def wait_up(self, name: str, timeout_s: float) -> None:
        """Return when the node is up or has failed, or after the timeout."""
        if name not in self._starting:
            return  # the launcher would clear a node away that has ended, and its logs
        try:
            self._launcher.wait_up(name, timeout_s)
            self._starting.pop(name, None)
        except LauncherError as error:
            log.warning("%s is not up: %s", name, error)
            if error.reason in ("node_failed", "disk_full"):
                self._note_failure(name, str(error).partition("\n")[0])  # its owner reads it: no traces

    def _note_failure(self, name: str, reason: str) -> None:
        """Say that a node failed and why until the steward has it killed: the launcher has cleared it away."""
        lease_id = name.rpartition("-")[0]
        with self._failing_lock:
            started_ms = self._starting.pop(name, None)
            if started_ms is None:
                return  # it was killed while its failure was being found out, and must not come back
            self._failed[name] = NodeTruth(name, lease_id, NodePhase.EXITED, None, started_ms, reason=reason)

    def kill_node(self, name: str, epoch: int) -> NodeMeter | None:
        """Kill a lease node with everything in it; returns what it used, when nothing of it is left.

        Raises:
            FencedError: if a newer steward has given orders here.
            HostError: if something of it cannot be killed.
        """
        self._fence(epoch)
        with self._failing_lock:
            self._starting.pop(name, None)
            self._failed.pop(name, None)
        meter = self._meter(name)
        try:
            # The raylet may say goodbye and end its workers; what it has no time for the cluster is told then.
            self._launcher.kill(name, GOODBYE_S)
        except LauncherError as error:
            raise HostError(f"{self._config.id}: {error}") from error
        shutil.rmtree(self._paths.node_dir(name), ignore_errors=True)  # its logs are archived by now
        return meter

    def _tell_dead(self, name: str) -> None:
        try:
            self._deaths.tell(name)
        except UnavailableError as error:
            log.warning("%s", error)  # it is gone all the same, and the cluster will miss it

    def _meter(self, name: str) -> NodeMeter | None:
        try:
            used = self._launcher.usage(name)
        except LauncherError as error:
            log.info("%s cannot be metered: %s", name, error)
            return None
        return NodeMeter(
            cpu_ms=int(used.cpu_s * 1000), peak_memory_bytes=used.peak_memory_bytes or used.memory_bytes
        )

    def kill_pid(self, name: str, pid: int, epoch: int) -> bool:
        """Kill one process of a lease node by its id inside the node's namespace; False if it is gone."""
        self._fence(epoch)
        return self._launcher.kill_pid(name, pid)

    def read_log(self, name: str, file: str, max_bytes: int) -> bytes:
        """Return the end of a file of the node's Ray log folder.

        Raises:
            NotFoundError: if there is none.
        """
        if "/" in file or file.startswith("."):
            raise NotFoundError("no such log")
        sessions = sorted(
            self._paths.node_dir(name).glob("session_2*"), key=lambda path: path.stat().st_mtime
        )
        for session in reversed(sessions):
            path = session / "logs" / file
            if path.is_file():
                with path.open("rb") as log_file:
                    log_file.seek(max(0, path.stat().st_size - max_bytes))
                    return log_file.read(max_bytes)
        raise NotFoundError(f"{name} has no log {file}")

    def check_epoch(self, epoch: int) -> None:
        """Raise FencedError if a newer steward has given orders here."""
        self._fence(epoch)

    def _fence(self, epoch: int) -> None:
        path = self._dir / "epoch"
        with self._epoch_lock:
            seen = int(path.read_text()) if path.exists() else 0
            if epoch < seen:
                raise FencedError(f"host {self._config.id} takes orders of epoch {seen}, not of {epoch}")
            if epoch > seen:
                aside = Path(f"{path}.new")
                aside.write_text(str(epoch))
                aside.replace(path)

    def _free_ports(self, records: list[NodeRecord], cpus: int) -> tuple[int, int]:
        """Return the first gap between the nodes' ranges that is large enough for a node with so many CPUs."""
        first, last = self._paths.host_ports(self._config.index)
        size = max(PORTS_OF_NODE, PORTS_OF_NODE // 2 + 2 * cpus)
        start = first + PORTS_OF_NODE  # the first ones are the base node's
        for low, high in sorted(record.spec.worker_ports for record in records):
            if start + size <= low:
                break
            start = max(start, high + 1)
        if start + size - 1 > last:
            raise HostError(f"{self._config.id}: no {size} ports are left for another lease node")
        return start, start + size - 1


def _truth(record: NodeRecord) -> NodeTruth:
    parts = [f"{record.namespace} namespace" if record.namespace != "none" else "no namespace"]
    parts.append(f"cgroup {record.cgroup}" if record.cgroup != "none" else "no cgroup")
    return NodeTruth(
        name=record.spec.name,
        lease_id=record.spec.labels.get("lease", ""),
        phase=NodePhase(record.phase),
        node_id=record.node_id,
        started_ms=int(record.started_at * 1000),
        isolation=", ".join(parts),
        reason=record.reason or "",
    )


def host_name() -> str:
    """Return this machine's name as a host id."""
    return socket.gethostname().split(".")[0].lower()
