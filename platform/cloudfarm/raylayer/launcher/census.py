"""Which nodes exist on this host, and which processes belong to which: from the kernel, not from memory."""

import time
from dataclasses import dataclass, field
from typing import Any

from cloudfarm.raylayer.launcher import cgroups, procs, state
from cloudfarm.raylayer.launcher.node_init import foreign
from cloudfarm.raylayer.launcher.spec import NodeRecord, NodeSpec, Phase


@dataclass(slots=True)
class Census:
    """One look at the host's processes, reading each one's markers once."""

    where: state.StateDir
    processes: dict[int, procs.Proc]
    marked: dict[str, set[int]] = field(default_factory=dict)
    """Processes by the node whose marker (environment or title) they carry."""
    homes: dict[str, str] = field(default_factory=dict)
    """The temp directories of nodes, learned from the environment of their processes."""

    @classmethod
    def take(cls, where: state.StateDir) -> "Census":
        """Read /proc."""
        census = cls(where, procs.snapshot())
        for pid in census.processes:
            census._read_markers(pid)
        return census

    def _read_markers(self, pid: int) -> None:
        environ = procs.environ(pid)
        name = environ.get(state.MARKER_NODE)
        if name and environ.get(state.MARKER_FARM) == self.where.farm:
            self.marked.setdefault(name, set()).add(pid)
            self.homes[name] = environ.get(state.MARKER_HOME, "")
            return
        words = procs.title(pid).split()
        if len(words) >= 3 and f"{words[0]} " == state.TITLE_NODE and words[2] == self.where.farm:  # noqa: PLR2004
            self.marked.setdefault(words[1], set()).add(pid)

    def node_pids(self, name: str, init: dict[str, Any] | None, cgroup: cgroups.Cgroup) -> set[int]:
        """Return every live process of a node: by group, namespace, marker, and descent from any of them."""
        roots = set(self.marked.get(name, ())) | cgroup.pids()
        if init and init_alive(init):
            roots.add(int(init["pid"]))
            # Only while its init lives: the kernel empties a namespace with its init, and reuses the number.
            inode = init.get("pid_namespace")
            if inode:
                roots |= {pid for pid in self.processes if procs.pid_namespace(pid) == inode}
        stop = foreign(self.processes, state.init_title(name, self.where.farm))
        return procs.descendants(roots - stop, self.processes, stop)


def init_alive(init: dict[str, Any]) -> bool:
    """Say whether the very process of ``init.json`` runs."""
    return init["boot_id"] == procs.boot_id() and procs.is_running(int(init["pid"]), int(init["start_ticks"]))


def make_record(
    name: str, files: state.NodeFiles, cgroup: cgroups.Cgroup, pids: set[int], *, being_started: bool
) -> NodeRecord:
    """Put together what the files say and what is really running."""
    wanted = files.read(state.SPEC) or {}
    spec = NodeSpec.from_dict(wanted["spec"]) if "spec" in wanted else NodeSpec.unknown(name)
    init = files.read(state.INIT)
    status = files.read(state.STATUS) or {}
    alive = init is not None and init_alive(init)
    phase: Phase
    reason: str | None = None
    if alive and status.get("phase") != "exited":  # it writes "exited" a moment before it ends
        phase = "up" if status.get("phase") == "up" else "starting"
    elif init is None and being_started:
        phase = "starting"
    else:
        phase, reason = "exited", _reason(init, status, cgroup, pids)
    return NodeRecord(
        spec=spec,
        pid=int(init["pid"]) if init and alive else None,
        started_at=float((init or wanted).get("started_at", time.time())),
        phase=phase,
        node_id=status.get("node_id"),
        namespace=init["namespace"] if init else "none",
        cgroup=init["cgroup"] if init else "none",
        limits=dict(init["limits"]) if init else {},
        reason=reason,
    )


def _reason(
    init: dict[str, Any] | None, status: dict[str, Any], cgroup: cgroups.Cgroup, pids: set[int]
) -> str:
    if status.get("phase") == "exited":
        reason = str(status.get("reason"))
    elif init is None:
        reason = "the start was interrupted before the node's init existed"
    elif init["boot_id"] != procs.boot_id():
        reason = "the host was rebooted"
    else:
        reason = "the node's init was killed"
    kills = cgroup.oom_kills()
    if kills:
        reason += f" (the kernel killed {kills} process(es) of it at the memory limit)"
    if pids:
        reason += f" ({len(pids)} process(es) of it are left; kill() removes them)"
    return reason
