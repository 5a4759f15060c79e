"""Defaults that stock code needs on a farm: shared storage, the right raylet without PID namespaces, one address."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from cloudfarm.raylayer.hook import HookError


def default_storage_path(constants: Any) -> None:
    """Make the lease's shared storage what Train and Tune use when the script names no `storage_path`.

    Both `RunConfig`s, and `tune.run`, read this one constant. A path given by the script is never touched.

    Raises:
        HookError: The constant is gone.
    """
    if not hasattr(constants, "DEFAULT_STORAGE_PATH"):
        raise HookError(
            "ray.train.constants has no DEFAULT_STORAGE_PATH: the lease's storage cannot be the default"
        )
    constants.DEFAULT_STORAGE_PATH = os.environ["CLOUDFARM_STORAGE_PATH"]


def name_runs_by_job(config: Any) -> None:
    """Name Train runs that have no name by their job and their order in it, instead of by the time.

    Ray Train resumes a run of the same name: so a job that is sent to Ray again goes on where it was.

    Raises:
        HookError: Ray names runs otherwise than the hook knows.
    """
    if not hasattr(config, "date_str"):
        raise HookError("ray.train.v2.api.config has no date_str: preempted runs could not be resumed")
    numbers = itertools.count(1)
    config.date_str = lambda: f"{os.environ['CLOUDFARM_JOB']}-{next(numbers)}"


def listen_on_own_address(replica: Any) -> None:
    """Make Serve's replicas listen on their node's address only, where their callers look for them.

    Each has a gRPC server for other replicas, which Serve opens on every address of the machine.

    Raises:
        HookError: Serve opens it otherwise than the hook knows.
    """
    if not hasattr(replica, "add_port_to_grpc_server"):
        raise HookError("ray.serve._private.replica has changed: replicas would listen on every address")
    add_port = replica.add_port_to_grpc_server

    def add_port_here(server: Any, address: str) -> Any:
        """Open the address's port on the node's own address."""
        import ray.util  # noqa: PLC0415 - the module that is patched has imported it

        host, port = ray.util.get_node_ip_address(), address.rpartition(":")[2]
        return add_port(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    replica.add_port_to_grpc_server = add_port_here


def join_own_raylet(services: Any) -> None:
    """Make a driver attach to the raylet of its own lease node, where it can see those of the whole host.

    `ray.init()` looks at all raylets of the process table and prefers the head's. Each lease node has a temp
    dir of its own, so the raylet's command line tells them apart. And what starts a job's driver looks for
    any cluster on the host, although its environment names the one that it belongs to.

    Raises:
        HookError: `CLOUDFARM_NODE_SESSION` or the cluster's address is missing, or Ray finds raylets in a way
        that the hook does not know.
    """
    temp_dir, address = os.environ.get("CLOUDFARM_NODE_SESSION"), os.environ.get("RAY_ADDRESS")
    if not temp_dir:
        raise HookError("CLOUDFARM_NO_PIDNS=1 needs CLOUDFARM_NODE_SESSION: the temp dir of this lease node")
    if not address:
        raise HookError("CLOUDFARM_NO_PIDNS=1 needs RAY_ADDRESS: the cluster that this lease node is in")
    known = ("find_node_ids", "_is_raylet_process", "find_gcs_addresses")
    if not all(hasattr(services, name) for name in known):
        raise HookError("ray._private.services has changed: the driver could join another lease's raylet")
    home = Path(temp_dir).resolve()

    def find_own_node_id() -> set[str]:
        """Return the id of the raylet whose session lies in the lease node's temp dir."""
        import psutil  # noqa: PLC0415 - Ray has imported its own copy by now

        found = set()
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"]  # None where access is denied
            if not command or not services._is_raylet_process(command):  # noqa: SLF001
                continue
            flags = dict(
                part.lstrip("-").split("=", 1) for part in command if part.startswith("-") and "=" in part
            )
            if home in Path(flags["session_dir"]).resolve().parents:
                found.add(flags["node_id"])
        return found

    def find_own_gcs_address() -> set[str]:
        """Return the address of the cluster that this lease node is in."""
        return {address}

    find_own_gcs_address.cache_clear = lambda: None  # type: ignore[attr-defined] # Ray calls it
    services.find_node_ids = find_own_node_id
    services.find_gcs_addresses = find_own_gcs_address
