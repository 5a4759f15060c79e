"""From the zygote to a node's init: the short-lived processes in between.

The zygote forks a *launch* process for each order, so that it never blocks. That one enters the control group
and tries the allowed namespaces, best first, each in a fork of its own because a half-done unshare cannot be
undone:

    zygote -> launch -> attempt -> init (process 1 of the namespace)

The attempt exits at once, so the init belongs to nobody and outlives the caller and the zygote. It waits for
a "go" that the launch process gives only after ``init.json`` is written: a crash in between closes the pipe
and ends it.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudfarm.raylayer.launcher import forks, namespaces, procs, state
from cloudfarm.raylayer.launcher.node_init import NodeInit
from cloudfarm.raylayer.launcher.spec import CgroupKind, Namespace, NodeSpec

MESSAGE = 65536


@dataclass(frozen=True, slots=True)
class Order:
    """What the launcher asks the zygote to do; JSON on the wire."""

    spec: NodeSpec
    env: dict[str, str]
    """The node's whole environment."""
    start_id: str
    modes: list[Namespace]
    cgroup: CgroupKind = "none"
    join: list[str] = field(default_factory=list)
    """The files into which the launch process writes ``0`` to enter the node's control group."""
    binds: list[tuple[str, str]] = field(default_factory=list)
    """(source, target): the node sees its own control group where programs look for the machine's."""
    limits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Order":
        """Rebuild an order from parsed JSON."""
        return cls(**{**data, "spec": NodeSpec.from_dict(data["spec"])})


class StaleOrderError(Exception):
    """The start that this order belongs to was given up meanwhile."""


def launch(order: Order, where: state.StateDir) -> dict[str, Any]:
    """In the launch process: make the node's init and return what ``init.json`` holds. Raises OSError."""
    spec = order.spec
    files = where.files(spec.name, spec.temp_dir)
    forks.set_title(state.init_title(spec.name, where.farm))
    forks.use_environment(order.env)
    forks.use_streams(Path(spec.temp_dir) / state.NODE_LOG)
    os.setsid()
    os.chdir(spec.temp_dir)
    os.umask(0o022)
    for procs_file in order.join:
        Path(procs_file).write_text("0")
    if (files.read(state.SPEC) or {}).get("start_id") != order.start_id:
        raise StaleOrderError(spec.name)
    errors = []
    for mode in order.modes:
        go_read, go_write = os.pipe()
        try:
            pid = _attempt(order, mode, where, go_read)
            init = _identity(pid, mode, order)
            files.write(state.INIT, init)
            os.write(go_write, b"g")
        except OSError as error:
            forks.log(f"namespace mode {mode!r} is not possible: {error}")
            errors.append(error)
            continue
        finally:
            os.close(go_read)
            os.close(go_write)
        return init
    raise errors[-1]


def _identity(pid: int, mode: Namespace, order: Order) -> dict[str, Any]:
    proc = procs.read_proc(pid)
    if proc is None:
        message = f"the node's init (pid {pid}) ended at once"
        raise ProcessLookupError(message)
    return {
        "pid": pid,
        "start_ticks": proc.start_ticks,
        "boot_id": procs.boot_id(),
        "pid_namespace": procs.pid_namespace(pid) if mode != "none" else None,
        "namespace": mode,
        "cgroup": order.cgroup,
        "limits": order.limits,
        "started_at": time.time(),
    }


def _attempt(order: Order, mode: Namespace, where: state.StateDir, go: int) -> int:
    """Fork the attempt, wait, and return the pid of the init it left behind. Raises OSError if refused."""
    read, write = os.pipe()
    child = forks.fork(lambda: _in_attempt(order, mode, where, go, write), keep=(go, write))
    os.close(write)
    answer = _receive(read)
    os.waitpid(child, 0)
    if "pid" not in answer:
        raise OSError(answer.get("errno", 0), answer.get("error", "the launch process died"))
    return int(answer["pid"])


def _in_attempt(order: Order, mode: Namespace, where: state.StateDir, go: int, answer: int) -> int:
    try:
        namespaces.unshare(mode)
        read, write = os.pipe()
        pid = forks.fork(lambda: _in_init(order, mode, where, go, write), keep=(go, write))
        os.close(write)
        result = _receive(read) or {"error": "the node's init died"}
    except OSError as error:
        result = {"error": error.strerror, "errno": error.errno}
    else:
        if "error" not in result:
            result = {"pid": pid}
    os.write(answer, json.dumps(result).encode())
    return 0


def _in_init(order: Order, mode: Namespace, where: state.StateDir, go: int, answer: int) -> int:
    try:
        if mode == "none":
            namespaces.become_subreaper()
            # Its drivers see every raylet of the host: the start-up hook must lead them to their own.
            os.environ.update({"CLOUDFARM_NO_PIDNS": "1", "CLOUDFARM_NODE_SESSION": order.spec.temp_dir})
        else:
            namespaces.furnish()
            for source, target in order.binds:
                namespaces.bind_read_only(source, target)
        files = where.files(order.spec.name, order.spec.temp_dir)
        init = NodeInit(
            order.spec, files, state.init_title(order.spec.name, where.farm), isolated=mode != "none"
        )
    except OSError as error:
        os.write(answer, json.dumps({"error": error.strerror, "errno": error.errno}).encode())
        return 1
    os.write(answer, b'{"ready": true}')
    os.close(answer)
    if not os.read(go, 1):
        return 1
    os.close(go)
    return init.run()


def _receive(fd: int) -> dict[str, Any]:
    """Read one JSON object until the end of the pipe's writers or the message; empty when they died."""
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        data = pipe.read(MESSAGE)
    return json.loads(data) if data else {}
