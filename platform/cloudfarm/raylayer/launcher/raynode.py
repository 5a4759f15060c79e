"""Starting Ray's own processes from a fork that has Ray imported; runs in children of a node's init."""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cloudfarm.raylayer.launcher import procs
from cloudfarm.raylayer.launcher.spec import NodeSpec

STANDIN = Path(__file__).with_name("standin.py")
REGISTERED_WITHIN_S = 30.0  # as long as Ray's Node itself waits
POLL_S = 0.01


def preload() -> None:
    """Import everything that the node starter and the agents import, once, in the zygote.

    Imports only: nothing here may start a thread or open a connection, or the forks would inherit half of it.
    One package of Ray's is left to the agent, which imports it in milliseconds: while imported, it makes an
    OpenTelemetry meter, which from then on starts threads in every fork.
    """
    import grpc.aio  # noqa: F401, PLC0415
    import ray._private.log_monitor  # noqa: PLC0415
    import ray._private.node  # noqa: PLC0415
    import ray.dashboard.agent  # noqa: PLC0415
    import ray.dashboard.http_server_agent  # noqa: PLC0415
    from ray.dashboard import modules  # noqa: PLC0415

    for _, name, _ in pkgutil.walk_packages(modules.__path__, f"{modules.__name__}."):
        if not name.startswith(f"{modules.__name__}.aggregator."):
            importlib.import_module(name)
    # The runtime-env agent is a script that imports its neighbours by their bare names.
    here = str(Path(ray.__file__).parent / "_private" / "runtime_env" / "agent")
    sys.path.insert(0, here)
    import runtime_env_agent  # type: ignore[import-not-found]  # noqa: F401, PLC0415
    import runtime_env_consts  # type: ignore[import-not-found]  # noqa: F401, PLC0415

    sys.path.remove(here)


def start_node(spec: NodeSpec, init_socket: str, report_fd: int) -> None:
    """Start the raylet and report in JSON: its pid, the Ray node id and what to run next, or the error.

    This process then ends; the raylet becomes a child of the node's init, which watches it.
    """
    signal.signal(signal.SIGCHLD, _fail_early)
    try:
        report = _start_node(spec, init_socket)
    except OSError as error:
        report = {"error": f"{type(error).__name__}: {error}", "errno": error.errno}
        traceback.print_exc()
    except Exception as error:  # noqa: BLE001 - whatever it is, the init must hear of it
        report = {"error": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
    os.write(report_fd, json.dumps(report).encode())


class ServerEndedError(Exception):
    """The raylet or the GCS ended while the node was starting."""


def _fail_early(*_: object) -> None:
    """On SIGCHLD: raise if the raylet has died. Ray itself would wait its 30 s for a node that cannot come.

    Not a RuntimeError: Ray's waiting loop takes those for "not yet".
    """
    me = os.getpid()
    for path in procs.PROC.iterdir():
        proc = procs.read_proc(int(path.name)) if path.name.isdigit() else None
        if proc and proc.ppid == me and not proc.alive and proc.comm in ("raylet", "gcs_server"):
            message = f"the {proc.comm} ended during start-up; see its log"
            raise ServerEndedError(message)


def _start_node(spec: NodeSpec, init_socket: str) -> dict[str, Any]:
    from ray._private import ray_constants, services  # noqa: PLC0415
    from ray._private.node import Node  # noqa: PLC0415
    from ray._private.parameter import RayParams  # noqa: PLC0415

    # The one place where Ray decides how the Python of an agent is executed: put the stand-in there. The
    # head's dashboard is no agent: no raylet is its parent, and it spawns helpers of its own.
    stock = services._build_python_executable_command_memory_profileable  # noqa: SLF001

    def command(component: str, *args: Any, **kwargs: Any) -> list[str]:
        if component == ray_constants.PROCESS_TYPE_DASHBOARD:
            found: list[str] = stock(component, *args, **kwargs)
            return found
        return [sys.executable, "-I", "-S", str(STANDIN), init_socket]

    services._build_python_executable_command_memory_profileable = command  # noqa: SLF001
    _look_often_for_new_nodes(services)
    ports = spec.ports
    params = RayParams(
        gcs_address=spec.gcs_address,
        node_ip_address=spec.node_ip,
        node_name=spec.name,
        num_cpus=spec.cpus,
        num_gpus=spec.gpus,
        memory=spec.memory_bytes or None,
        object_store_memory=spec.object_store_bytes,
        labels=dict(spec.labels),
        temp_dir=spec.temp_dir,
        dashboard_agent_listen_port=ports.dashboard_agent,
        metrics_export_port=ports.metrics_export,
        runtime_env_agent_port=ports.runtime_env_agent,
        metrics_agent_port=ports.metrics_agent,
        node_manager_port=ports.node_manager,
        object_manager_port=ports.object_manager,
        min_worker_port=ports.first_worker,
        max_worker_port=ports.last_worker,
        include_log_monitor=False,  # the init forks it, warm, once the node is up
    )
    if spec.dashboard_port:
        params.update(
            gcs_address=None,
            gcs_server_port=int(spec.gcs_address.rpartition(":")[2]),
            include_dashboard=True,
            dashboard_host=spec.node_ip,
            dashboard_port=spec.dashboard_port,
            no_monitor=True,  # the farm's hosts are fixed: nothing is there to scale
        )
    node = Node(params, head=bool(spec.dashboard_port), shutdown_at_exit=False, spawn_reaper=False)
    if params.dashboard_agent_listen_port != ports.dashboard_agent:
        # Ray goes on without the agent's HTTP server when it cannot bind; jobs would then never start here.
        message = f"the dashboard agent could not listen on port {ports.dashboard_agent}"
        raise RuntimeError(message)
    raylet = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process
    log_monitor = [
        str(Path(services.RAY_PATH) / services.RAY_PRIVATE_DIR / "log_monitor.py"),
        f"--session-dir={node.get_session_dir_path()}",
        f"--logs-dir={node.get_logs_dir_path()}",
        f"--gcs-address={spec.gcs_address}",
        f"--node-ip-address={spec.node_ip}",
        f"--logging-rotate-bytes={node.max_bytes}",
        f"--logging-rotate-backup-count={node.backup_count}",
        f"--stdout-filepath={node.get_logs_dir_path()}/log_monitor.out",
        f"--stderr-filepath={node.get_logs_dir_path()}/log_monitor.err",
    ]
    return {
        "raylet_pid": raylet.pid,
        "node_id": node.node_id,
        "session_dir": node.get_session_dir_path(),
        "log_monitor": log_monitor,
    }


def _look_often_for_new_nodes(services: Any) -> None:
    """Let ``Node`` see its raylet in the GCS within milliseconds of its arrival.

    Ray's own look sleeps a whole second between two tries, longer than all the rest of a node's start.
    """
    stock = services.get_node

    def get_node(gcs_address: str, node_id: str) -> Any:
        gcs, wanted = services.GcsClient(address=gcs_address), services.NodeID.from_hex(node_id)
        this_one = services.GetAllNodeInfoRequest.NodeSelector(node_id=wanted.binary())
        deadline = time.monotonic() + REGISTERED_WITHIN_S
        while not gcs.get_all_node_info(timeout=REGISTERED_WITHIN_S, node_selectors=[this_one]):
            if time.monotonic() > deadline:
                break  # the stock look then says what is wrong, in Ray's words
            time.sleep(POLL_S)
        return stock(gcs_address, node_id)

    services.get_node = get_node


def run_agent(arguments: list[str], raylet_pid: int | None) -> int:
    """Run one of Ray's agent scripts in this (forked, warm) process and return its exit status."""
    if raylet_pid is not None:
        _adopt(raylet_pid)
    script, sys.argv = arguments[0], arguments
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
        return code if isinstance(code, int) else int(code is not None)
    except BaseException:  # noqa: BLE001 - the interpreter would print it and exit with 1, and so do we
        traceback.print_exc()
        return 1
    return 0


def _adopt(raylet_pid: int) -> None:
    """Let the agent find its raylet as its parent.

    Ray's agents look for it with ``psutil.Process().parent()``, to die with it and to report its workers.
    Ours is a child of the init; the raylet is the parent of the stand-in.
    """
    import psutil  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415

    me, of_others = os.getpid(), psutil.Process.parent

    def parent(self: psutil.Process) -> psutil.Process | None:
        if self.pid != me:
            return of_others(self)
        try:
            return psutil.Process(raylet_pid)
        except psutil.NoSuchProcess:
            return None

    psutil.Process.parent = parent  # type: ignore[method-assign,unused-ignore]
