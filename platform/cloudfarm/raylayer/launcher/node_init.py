"""The init of one node: starts Ray's processes by forking itself, watches the raylet, ends with it.

It is process 1 of the node's PID namespace, so its end kills everything in the node. Without a namespace it
is the tree's subreaper: no double fork leaves the tree, and it kills the tree before it ends. It runs no
threads, because it forks Ray's agents, and it never opens a connection of Ray's for the same reason.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cloudfarm.raylayer.launcher import forks, procs, raynode, state
from cloudfarm.raylayer.launcher.spec import NodeSpec

MAX_REQUEST = 1 << 20
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


class NodeInit:
    """One node, seen from within. `run` returns the exit status when the raylet has ended."""

    def __init__(self, spec: NodeSpec, files: state.NodeFiles, title: str, *, isolated: bool) -> None:
        self._spec = spec
        self._files = files
        self._isolated = isolated
        self._title = title
        self._status: dict[str, Any] = {"phase": "starting"}
        self._raylet: int | None = None
        self._log_monitor: int | None = None
        self._agents: dict[int, socket.socket] = {}
        self._waiters: list[socket.socket] = []
        self._ended: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        # Bound before the launch reports success, so that a caller can always connect and wait.
        self._path = str(Path(spec.temp_dir) / state.INIT_SOCKET)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self._path)
        self._listener.listen(16)
        self._wake, wake_write = socket.socketpair()
        self._wake.setblocking(False)
        wake_write.setblocking(False)
        self._wake_write = wake_write
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write.fileno())

    def run(self) -> int:
        """Start the node and serve until it has ended."""
        self._files.write(state.STATUS, self._status)
        report, report_write = os.pipe()
        forks.fork(lambda: self._in_starter(report_write), keep=(report_write,), tied=True)
        os.close(report_write)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._selector.register(report, selectors.EVENT_READ)
        try:
            while self._status["phase"] != "exited":
                for key, _ in self._selector.select():
                    self._handle(key.fileobj, report)
        finally:
            if not self._isolated:  # in a namespace of its own the kernel does it, when we end
                kill_tree(os.getpid(), self._title)
        return 0

    def _handle(self, ready: Any, report: int) -> None:
        if ready is self._listener:
            connection, _ = self._listener.accept()
            self._selector.register(connection, selectors.EVENT_READ)
        elif ready is self._wake:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
            self._reap()
        elif ready == report:
            self._selector.unregister(report)
            self._reported(os.read(report, MAX_REQUEST))
            os.close(report)
        else:
            self._serve(ready)

    def _in_starter(self, report: int) -> int:
        raynode.start_node(self._spec, self._path, report)
        return 0

    def _in_log_monitor(self, arguments: list[str]) -> int:
        forks.set_title(f"{self._title} log monitor")
        return raynode.run_agent(arguments, None)

    def _set_status(self, phase: str, **facts: Any) -> None:
        """Write the status, then wake those who wait for it."""
        self._status = {"phase": phase, **facts}
        try:
            self._files.write(state.STATUS, self._status)
        except (
            OSError
        ) as error:  # a full disk must not stop the node from ending; the log and the waiters hear of it
            forks.log(f"cannot write the status {self._status}: {error}")
        for waiter in self._waiters:
            self._answer(waiter)
        self._waiters.clear()

    def _answer(self, waiter: socket.socket) -> None:
        with contextlib.suppress(OSError):  # whoever waited may have gone
            waiter.send(json.dumps(self._status).encode())

    # Ray's processes

    def _reported(self, report: bytes) -> None:
        """The starter has finished: the node is up, or failed."""
        facts: dict[str, Any] = json.loads(report) if report else {"error": "the node starter died"}
        if "error" in facts:
            self._set_status("exited", reason=f"start failed: {facts['error']}", errno=facts.get("errno"))
            return
        self._raylet = int(facts["raylet_pid"])
        self._set_status("up", node_id=facts["node_id"], session_dir=facts["session_dir"])
        if self._raylet in self._ended:
            self._raylet_ended(self._ended[self._raylet])
            return
        log_monitor: list[str] = facts["log_monitor"]
        self._log_monitor = forks.fork(lambda: self._in_log_monitor(log_monitor), tied=True)

    def _reap(self) -> None:
        """Collect every child that has ended: our own, and as process 1 also every orphan of the node."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._raylet:
                self._raylet_ended(code)
            elif pid in self._agents:
                self._agent_ended(pid, code)
            elif pid == self._log_monitor:
                forks.log(f"the log monitor ended with {code}")
            elif self._raylet is None:
                self._ended[pid] = code  # may turn out to be the raylet, whose pid we do not know yet

    def _raylet_ended(self, code: int) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        facts = {key: value for key, value in self._status.items() if key != "phase"}
        self._set_status("exited", **facts, reason=f"the raylet {how}")

    def _agent_ended(self, pid: int, code: int) -> None:
        """Let the stand-in end as its agent did; the raylet then decides as if the agent were its own."""
        connection = self._agents.pop(pid)
        with contextlib.suppress(OSError):
            connection.send(str(code if code >= 0 else 128 - code).encode())
        self._drop(connection)

    # Requests

    def _drop(self, connection: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        """Take one message: ``wait`` from a launcher, ``agent`` from a stand-in, or the end of either."""
        try:
            message, fds, _flags, _address = socket.recv_fds(connection, MAX_REQUEST, len(forks.STREAMS))
        except OSError:
            message, fds = b"", []
        if message == b"wait":
            if self._status["phase"] == "starting":
                self._waiters.append(connection)
            else:
                self._answer(connection)
        elif message.startswith(b"agent\0") and len(fds) == len(forks.STREAMS):
            try:
                self._fork_agent(connection, message.split(b"\0")[1:], fds)
            except (
                ValueError,
                KeyError,
                OSError,
            ) as error:  # the stand-in sees the end and ends; the raylet decides
                forks.log(f"cannot fork an agent: {error!r}")
                self._drop(connection)
        else:
            self._connection_ended(connection)
        for fd in fds:
            os.close(fd)

    def _connection_ended(self, connection: socket.socket) -> None:
        for pid, of in self._agents.items():
            if of is connection:  # the raylet killed the stand-in and means the agent
                os.kill(pid, signal.SIGKILL)
                self._selector.unregister(connection)
                return
        if connection in self._waiters:
            self._waiters.remove(connection)
        self._drop(connection)

    def _fork_agent(self, connection: socket.socket, parts: list[bytes], fds: list[int]) -> None:
        count = int(parts[0])
        arguments = [os.fsdecode(part) for part in parts[1 : 1 + count]]
        variables = {
            os.fsdecode(key): os.fsdecode(value)
            for key, _, value in (part.partition(b"=") for part in parts[1 + count :])
        }

        raylet_pid = int(variables["RAY_RAYLET_PID"])

        def run() -> int:
            for stream, fd in zip(forks.STREAMS, fds, strict=True):
                os.dup2(fd, stream)
            forks.close_others()
            forks.use_environment(variables)
            return raynode.run_agent(arguments, raylet_pid)

        self._agents[forks.fork(run, keep=fds, tied=True)] = connection


def kill_tree(root: int, own_title: str) -> None:
    """Kill every descendant of ``root`` until none is left."""
    while True:
        processes = procs.snapshot()
        found = procs.descendants([root], processes, foreign(processes, own_title)) - {root}
        if not found:
            return
        procs.kill_and_wait([processes[pid] for pid in found], 1.0)


def foreign(processes: Iterable[int], own_title: str) -> frozenset[int]:
    """Return the processes where a node's tree ends: zygotes, and all that belongs to other nodes' inits.

    A host agent runs inside a base node, and whatever it daemonises is inherited by that node's subreaper:
    the zygote and the lease nodes must outlive the base node.
    """
    titles = ((pid, procs.title(pid)) for pid in processes)
    return frozenset(
        pid
        for pid, title in titles
        if title.startswith((state.TITLE_NODE, state.TITLE_ZYGOTE)) and not title.startswith(own_title)
    )
