"""`NodeLauncher`: start, find, meter and kill lease nodes on one host."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloudfarm.raylayer.launcher import cgroups, procs, state
from cloudfarm.raylayer.launcher.census import Census, init_alive, make_record
from cloudfarm.raylayer.launcher.errors import LauncherError
from cloudfarm.raylayer.launcher.spec import Namespace, NodeRecord, NodeSpec, NodeUsage
from cloudfarm.raylayer.launcher.zygote_client import ZygoteClient, forwarded

KILL_TIMEOUT_S = 60.0
STATUS_SIZE = 65536
ROOT_CGROUP = "cloudfarm"
KEPT = ("session_latest", state.NODE_LOG)
"""What stays in a node's directory beside the logs of its sessions."""


class NodeLauncher:
    """Lease nodes of one farm on this host. Blocking and thread-safe; keeps nothing in memory.

    Args:
        state_dir: survives restarts of the caller; one per farm and host.
        namespaces: which kinds may be tried, best first. ``("none",)`` and ``("user",)`` force a grade.
        use_cgroups: False leaves every node without limits.
        environ: the operator's environment, of which nodes inherit a short list (`zygote_client.FORWARDED`).
        on_end: called with the name of each node of which nothing is left, before the name may be used again.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        namespaces: Sequence[Namespace] = ("root", "user", "none"),
        use_cgroups: bool = True,
        environ: Mapping[str, str] | None = None,
        on_end: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._where = state.StateDir(Path(state_dir).resolve())
        self._where.prepare()
        self._namespaces = list(namespaces)
        self._hierarchies = cgroups.Hierarchies.detect() if use_cgroups else cgroups.Hierarchies("none")
        self._environ = dict(os.environ if environ is None else environ)
        self._on_end = on_end
        self._zygote = ZygoteClient(self._where, self._environ)

    # Starting

    def warm_up(self) -> int:
        """Start the zygote now, so that the first lease does not wait for it. Returns its pid."""
        return self._zygote.ensure()

    def start(self, spec: NodeSpec) -> NodeRecord:
        """Start a node; returns as soon as its init runs (phase ``starting``), see `wait_up`.

        Idempotent by name: a node that runs is returned as it is. One that has exited must be killed first,
        which clears what is left of it. A start that fails leaves nothing behind.
        """
        spec.validate()
        with self._where.lock(f"node-{spec.name}"):
            if spec.name in self._where.names() | Census.take(self._where).marked.keys():
                return self._existing(spec)
            self._check_host(spec)
            try:
                self._start(spec)
            except OSError as error:
                self._kill(spec.name, 0)
                raise _os_error(spec.name, error) from error
            except LauncherError:
                self._kill(spec.name, 0)
                raise
            return self._record(spec.name, locked=True)

    def _existing(self, spec: NodeSpec) -> NodeRecord:
        record = self._record(spec.name, locked=True)
        if record.phase == "exited":
            raise LauncherError(
                f"Lease node {spec.name} has exited ({record.reason}) and was not killed yet.",
                reason="exited",
            )
        return record

    def _check_host(self, spec: NodeSpec) -> None:
        """Refuse what is known to fail: a directory in use, a taken port. Ray would find out after 30 s."""
        temp_dir = Path(spec.temp_dir)
        try:
            if temp_dir.exists() and not _is_spent(temp_dir):
                raise LauncherError(
                    f"{temp_dir} is in use; each node needs its own.", reason="temp_dir_in_use"
                )
        except OSError as error:
            raise _os_error(spec.name, error) from error
        for port in spec.bound_ports():
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((spec.node_ip, port))
                except OSError as error:
                    where = f"port {port} on {spec.node_ip}"
                    message = f"Lease node {spec.name}: {where} is not free ({error.strerror})."
                    raise LauncherError(message, reason="port_in_use") from error

    def _start(self, spec: NodeSpec) -> None:
        """Write down what is wanted, make the control group, order the node; `_kill` undoes each step."""
        start_id = uuid.uuid4().hex
        files = self._where.files(spec.name, spec.temp_dir)
        files.home.mkdir(parents=True)
        for folder in (state.MIRROR, state.SCRATCH):
            (Path(spec.temp_dir) / folder).mkdir(parents=True, exist_ok=True)
        files.write(state.SPEC, {"spec": asdict(spec), "start_id": start_id, "started_at": time.time()})
        limits: dict[str, int] = {}
        cgroup = self._cgroup(spec.name)
        caged = spec.isolate and cgroup.hierarchies.kind != "none"
        if caged:
            limits = cgroup.create(cpus=spec.cpus, memory_bytes=spec.memory_bytes, pids=spec.pids_limit)
        reply = self._zygote.order(
            {
                "spec": asdict(spec),
                "env": self._node_environ(spec),
                "start_id": start_id,
                "modes": self._namespaces if spec.isolate else ["none"],
                "cgroup": cgroup.hierarchies.kind if caged else "none",
                "join": cgroup.join_paths() if caged else [],
                "binds": cgroup.binds() if caged else [],
                "limits": limits,
            }
        )
        if "error" in reply:
            log = state.tail(Path(spec.temp_dir) / state.NODE_LOG)
            reason = "disk_full" if reply.get("errno") == errno.ENOSPC else "launch_failed"
            raise LauncherError(f"Lease node {spec.name}: {reply['error']}.", reason=reason, log_tail=log)

    def _node_environ(self, spec: NodeSpec) -> dict[str, str]:
        return {
            **forwarded(self._environ),
            "TMPDIR": str(Path(spec.temp_dir) / state.SCRATCH),
            **spec.env,
            state.MARKER_NODE: spec.name,
            state.MARKER_FARM: self._where.farm,
            state.MARKER_HOME: spec.temp_dir,
        }

    def wait_up(self, name: str, timeout_s: float) -> NodeRecord:
        """Wait until the node is ALIVE in the GCS.

        A node that fails to start is cleared away and `LauncherError` (``node_failed``) raised with the end
        of its log. After the time is over ``timeout`` is raised and the node left as it is: it may be waited
        for again.
        """
        deadline = time.monotonic() + timeout_s
        record = self._record(name)
        while record.phase == "starting" and time.monotonic() < deadline:
            self._wait_status(record, deadline)
            record = self._record(name)
        if record.phase == "starting":
            log = state.tail(Path(record.spec.temp_dir) / state.NODE_LOG)
            raise LauncherError(
                f"Lease node {name} is not up after {timeout_s} s.", reason="timeout", log_tail=log
            )
        if record.phase == "exited":
            log = self._failure_log(record)
            status = self._files(name).read(state.STATUS) or {}
            reason = "disk_full" if status.get("errno") == errno.ENOSPC else "node_failed"
            self.kill(name)
            raise LauncherError(f"Lease node {name}: {record.reason}.", reason=reason, log_tail=log)
        return record

    def _wait_status(self, record: NodeRecord, deadline: float) -> None:
        """Wait for the node's init to speak or to end; the truth is read afterwards in either case."""
        proc = procs.read_proc(record.pid) if record.pid else None
        fd = procs.open_pidfd(proc) if proc else None
        if fd is None:  # another caller is just about to start it; there is no event of that
            time.sleep(0.02)
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, contextlib.suppress(OSError):
                sock.connect(str(Path(record.spec.temp_dir) / state.INIT_SOCKET))
                sock.send(b"wait")
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                if sock.recv(STATUS_SIZE):
                    return
            procs.wait_gone(
                [fd], max(0.0, deadline - time.monotonic())
            )  # its socket is closed before it has ended
        finally:
            os.close(fd)

    def _failure_log(self, record: NodeRecord) -> str:
        temp_dir = Path(record.spec.temp_dir)
        files = [temp_dir / state.NODE_LOG]
        for name in ("raylet.err", "raylet.out", "dashboard_agent.log", "runtime_env_agent.log"):
            files.extend(temp_dir.glob(f"session_2*/logs/{name}"))
        tails = ((file.name, state.tail(file, 1500)) for file in files)
        return "\n".join(f"[{name}] {text}" for name, text in tails if text)

    # Finding

    def records(self) -> list[NodeRecord]:
        """Return every node of this farm on this host, as it is now.

        From the state directory, verified against the processes (pid and start time), plus whatever carries a
        node's marker or sits in one of the farm's control groups: a node whose files are lost is found too,
        and its files are restored from the copy in its temp directory.
        """
        census = Census.take(self._where)
        names = (
            self._where.names() | census.marked.keys() | cgroups.names(self._hierarchies, self._cgroup_parent)
        )
        return [self._record(name, census) for name in sorted(names)]

    def _record(self, name: str, census: Census | None = None, *, locked: bool = False) -> NodeRecord:
        """Return the truth about one node. ``locked``: the caller holds its lock: nobody else starts it."""
        census = census or Census.take(self._where)
        files = self._files(name, census)
        cgroup = self._cgroup(name)
        pids = census.node_pids(name, files.read(state.INIT), cgroup)
        if not pids and files.read(state.SPEC) is None and not cgroup.exists():
            raise LauncherError(f"There is no lease node {name}.", reason="no_such_node")
        being_started = False
        if not locked:
            with self._where.lock(f"node-{name}", wait=False) as free:
                being_started = not free
        return make_record(name, files, cgroup, pids, being_started=being_started)

    def _files(self, name: str, census: Census | None = None) -> state.NodeFiles:
        """Return the node's files, restored from their mirror if the state directory was lost."""
        home = self._where.files(name, None)
        wanted = home.read(state.SPEC)
        if wanted:
            return self._where.files(name, wanted["spec"]["temp_dir"])
        temp_dir = (census or Census.take(self._where)).homes.get(name)
        files = self._where.files(name, temp_dir)
        if files.mirror and (files.mirror / state.SPEC).exists():
            files.home.mkdir(parents=True, exist_ok=True)
            for file in (state.STATUS, state.INIT, state.SPEC):
                data = state.read_json(files.mirror / file)
                if data is not None:
                    state.write_json(files.home / file, data)
        return files

    def usage(self, name: str) -> NodeUsage:
        """Return what the node uses: from its control group, else summed over its processes."""
        cgroup = self._cgroup(name)
        usage = cgroup.usage()
        if usage is not None:
            return usage
        census = Census.take(self._where)
        pids = census.node_pids(name, self._files(name, census).read(state.INIT), cgroup)
        if not pids:
            raise LauncherError(f"There is no lease node {name}.", reason="no_such_node")
        memory = sum(procs.pss_bytes(pid) for pid in pids)
        return NodeUsage(sum(procs.cpu_seconds(pid) for pid in pids), memory, None, len(pids), "proc")

    # Ending

    def kill(self, name: str, grace_s: float = 0) -> None:
        """End the node with everything in it; returns when nothing is left. Unknown names are fine.

        With ``grace_s`` the raylet is asked first (SIGTERM: it tells the GCS and ends its workers). Session
        logs stay in the temp directory for the caller to archive; sockets, spilled objects, runtime
        environments and the node's own /dev/shm go.
        """
        with self._where.lock(f"node-{name}"):
            try:
                self._kill(name, grace_s)
            except OSError as error:
                raise _os_error(name, error) from error

    def _kill(self, name: str, grace_s: float) -> None:
        files = self._files(name)
        wanted = files.read(state.SPEC)
        init = files.read(state.INIT)
        cgroup = self._cgroup(name)
        if grace_s > 0 and init is not None:
            self._ask_to_end(init, grace_s)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while True:
            census = Census.take(self._where)
            pids = census.node_pids(name, init, cgroup)
            if not pids:
                break
            if time.monotonic() > deadline:
                raise LauncherError(
                    f"Lease node {name}: processes {sorted(pids)} cannot be killed.", reason="unkillable"
                )
            self._kill_once(census, pids, init, cgroup)
        cgroup.remove()
        if wanted:
            _clear_temp_dir(Path(wanted["spec"]["temp_dir"]))
        self._on_end(name)
        self._where.forget(name)

    def _kill_once(
        self, census: Census, pids: set[int], init: dict[str, Any] | None, cgroup: cgroups.Cgroup
    ) -> None:
        """Kill what was found. The caller looks again: what was not frozen may have forked meanwhile."""
        cgroup.kill_all()
        targets = [census.processes[pid] for pid in pids]
        if init and init["namespace"] == "none" and len(pids) > 1:
            # The init goes last: it is the subreaper, and without it an orphan would leave the tree unseen.
            targets = [proc for proc in targets if proc.pid != init["pid"]]
        cgroup.freeze(True)
        for proc in targets:
            procs.send_kill(proc)
        cgroup.freeze(False)
        procs.kill_and_wait(targets, 2.0)

    def _ask_to_end(self, init: dict[str, Any], grace_s: float) -> None:
        """SIGTERM the node's raylet and wait for its init, which ends with it."""
        own = procs.read_proc(int(init["pid"])) if init_alive(init) else None
        if own is None:
            return
        fd = procs.open_pidfd(own)
        if fd is None:
            return
        try:
            for proc in procs.snapshot().values():
                if proc.ppid == own.pid and proc.comm == "raylet":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(proc.pid, signal.SIGTERM)
            procs.wait_gone([fd], grace_s)
        finally:
            os.close(fd)

    def kill_pid(self, name: str, pid: int) -> bool:
        """Kill one process by its pid inside the node; False if there is none. Never the node's init."""
        census = Census.take(self._where)
        init = self._files(name, census).read(state.INIT)
        for own in census.node_pids(name, init, self._cgroup(name)):
            if procs.pid_within(own) == pid and not (init and own == init["pid"]):
                return procs.send_kill(census.processes[own])
        return False

    def stop_zygote(self) -> None:
        """End the zygote (nodes are not touched) and remove the farm's empty control groups."""
        self._zygote.stop()
        cgroups.remove_farm(self._hierarchies, self._cgroup_parent)

    @property
    def _cgroup_parent(self) -> str:
        return f"{ROOT_CGROUP}/{self._where.farm}"

    def _cgroup(self, name: str) -> cgroups.Cgroup:
        return cgroups.Cgroup(self._hierarchies, f"{self._cgroup_parent}/{name}")


def _is_spent(temp_dir: Path) -> bool:
    """Say whether the directory is empty or holds only what `_clear_temp_dir` leaves."""
    others = [entry for entry in temp_dir.iterdir() if entry.name not in KEPT]
    return all(
        _is_session(entry) and [inner.name for inner in entry.iterdir()] == ["logs"] for entry in others
    )


def _is_session(entry: Path) -> bool:
    return entry.name.startswith("session_2") and entry.is_dir() and not entry.is_symlink()


def _clear_temp_dir(temp_dir: Path) -> None:
    """Keep the logs and remove the rest: it was spent when the node started, so all of it is the node's."""
    if not temp_dir.is_dir():
        return
    for entry in temp_dir.iterdir():
        if _is_session(entry):
            for inner in entry.iterdir():
                if inner.name != "logs":
                    _remove(inner)
        elif entry.name not in KEPT:
            _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _os_error(name: str, error: OSError) -> LauncherError:
    reason = "disk_full" if error.errno == errno.ENOSPC else "os_error"
    return LauncherError(f"Lease node {name}: {error}.", reason=reason)
