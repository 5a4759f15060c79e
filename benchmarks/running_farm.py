"""A farm of the benchmark's own: brought up, measured at rest, used by one tenant, and taken down."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudfarm.client import FarmClient
from cloudfarm.container import load_settings
from cloudfarm.raylayer.farm import LocalFarm
from cloudfarm.raylayer.launcher import NodeLauncher, procs, state

PORT_BASE = 27000
"""The farm takes 2200 ports from here (the head's and one host's); then come those of the stock nodes."""
OWN_PORTS = PORT_BASE + 2200
FRONT_DOOR_PORT = 29990
ADDRESS = "127.0.0.2"
"""Loopback too, but stock `ray start` joins there as it would anywhere: 127.0.0.1 it replaces by the outer one."""
HOST = "h0"
TENANT = "bench"
DEADLINE_S = 120.0
SHAPE = {"gpus": "0.5", "cpus": 1, "memory": "1GB", "hours": 1}
"""A lease of one slice: what one stock node is compared with."""


class BenchmarkError(Exception):
    """Something did not come up; there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class BenchFarm:
    """A running farm of one host with four simulated GPUs, and a tenant of it."""

    local: LocalFarm
    tenant: FarmClient
    base: Path
    """Short folder for what is made beside the farm."""

    @property
    def ray_env(self) -> dict[str, str]:
        """The environment of stock Ray processes that join the farm's own cluster."""
        return {
            **clean_env(),
            **self.local.paths.ray_env(self.local.settings.bind_address, self.local.gcs_address),
        }

    @property
    def dashboard_url(self) -> str:
        """Ray's own Jobs API, behind the front door."""
        return f"http://{self.local.settings.bind_address}:{self.local.paths.dashboard_port}"

    def host_launcher(self) -> NodeLauncher:
        """Return the launcher that sees the host's lease nodes; used for looking only."""
        return NodeLauncher(self.local.paths.host_dir(HOST))

    def control_launcher(self) -> NodeLauncher:
        """Return the launcher that sees the head and the base node; used for looking only."""
        return NodeLauncher(self.local.paths.state_dir / "control")

    @contextmanager
    def lease(self, **ask: Any) -> Iterator[dict[str, Any]]:
        """Hold an active lease, and wait afterwards until nothing of it is left."""
        asked = self.tenant.post("/v1/leases", {**SHAPE, **ask})["id"]
        try:
            lease = self.wait(f"/v1/leases/{asked}", "ACTIVE")
            yield lease
        finally:
            self.tenant.delete(f"/v1/leases/{asked}")
            self.wait(f"/v1/leases/{asked}", "ENDED")

    def wait(self, path: str, status: str) -> dict[str, Any]:
        """Return what is at a path of the API once it has a status."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.tenant.get(path)
            if found["status"] in ("FAILED", "ENDED") and found["status"] != status:
                raise BenchmarkError(f"{path} is {found['status']}: {found['message']}")
            return found if found["status"] == status else None

        found: dict[str, Any] = until(look, f"{path} to be {status}")
        return found

    def node_tree(self, name: str) -> set[int]:
        """Return the processes of a lease node."""
        record = next(record for record in self.host_launcher().records() if record.name == name)
        return procs.descendants([record.pid] if record.pid else [], procs.snapshot())

    def trees(self) -> dict[str, set[int]]:
        """Return the processes of the head, of the base node, and the two zygotes that nodes are forked from."""
        everything = procs.snapshot()
        launchers = {"control": self.control_launcher(), "host": self.host_launcher()}
        found = {
            record.name: procs.descendants([record.pid] if record.pid else [], everything)
            for record in launchers["control"].records()
        }
        for name, folder in {
            "control": self.local.paths.state_dir / "control",
            "host": self._host_dir,
        }.items():
            title = state.zygote_title(state.StateDir(folder.resolve()).farm)
            zygote = {pid for pid in everything if procs.title(pid) == title}
            found = {
                tree: pids - zygote for tree, pids in found.items()
            }  # the host agent's child is its zygote
            found[f"zygote of the {name}"] = zygote
        return found

    def every_pid(self) -> set[int]:
        """Return the processes of all its nodes; another farm may run on the machine as well."""
        records = [*self.control_launcher().records(), *self.host_launcher().records()]
        return procs.descendants([record.pid for record in records if record.pid], procs.snapshot())

    @property
    def _host_dir(self) -> Path:
        return self.local.paths.host_dir(HOST)


@contextmanager
def running_farm() -> Iterator[BenchFarm]:
    """Bring a farm up with one tenant; take everything down again whatever happens.

    Raises:
        BenchmarkError: if something of it is left running.
    """
    base = Path(tempfile.mkdtemp(prefix="cf-bench-", dir="/tmp"))
    cloudfarm = str(Path(sys.executable).with_name("cloudfarm"))
    env = {**clean_env(), "CLOUDFARM_STATE_DIR": str(base / "state")}
    ports = ["--port", str(FRONT_DOOR_PORT), "--internal-port-base", str(PORT_BASE), "--bind", ADDRESS]
    try:
        # In a process of its own, as an operator does it: Ray reads its settings while it is imported.
        run([cloudfarm, "up", "--hosts", "1", "--gpus", "4", *ports], env)
        local = LocalFarm(load_settings(base / "state"))
        with FarmClient(local.url, local.paths.operator_token_file.read_text().strip()) as operator:
            operator.post("/v1/tenants", {"id": TENANT, "title": "Benchmark"})
            made = operator.post("/v1/tokens", {"user": "bench", "role": "admin", "tenant": TENANT})
        with FarmClient(local.url, made["secret"]) as tenant:
            yield BenchFarm(local, tenant, base)
    finally:
        left: list[str] = []
        if (base / "state" / "settings.json").exists():
            run([cloudfarm, "down"], env)
            left = LocalFarm(load_settings(base / "state")).left_running()
        shutil.rmtree(base, ignore_errors=True)
    if left:
        raise BenchmarkError(f"left running: {left}")


def clean_env() -> dict[str, str]:
    """Return the environment without anything that would lead a stock client to another cluster."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CLOUDFARM_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def until(look: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first look that is true; neither Ray nor the API tell of changes by themselves.

    Raises:
        BenchmarkError: if it stays false.
    """
    deadline = time.monotonic() + deadline_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"waited {deadline_s:.0f} s in vain for {what}")
        time.sleep(0.05)
    return found


def run(command: list[str], env: dict[str, str], timeout_s: float = DEADLINE_S) -> str:
    """Run a command and return what it printed.

    Raises:
        BenchmarkError: with its output, if it fails.
    """
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command[:4])} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
