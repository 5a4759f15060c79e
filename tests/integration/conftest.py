"""Fixtures of the tests that need real processes.

``farm``        a running farm of two hosts with two simulated GPUs each, brought up once by the CLI and shared.
``tenants``     two tenants of it, ``univ`` and ``solar``, each with an admin's token.
``clean_farm``  the farm, with every lease that the test made released and ended afterwards.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloudfarm.client import FarmClient
from tests.processes import free_port, processes_naming, until

BIN = Path(sys.executable).parent
SCRIPTS = Path(__file__).parent / "farm_jobs"
HOOK_SCRIPTS = Path(__file__).parent / "hook_jobs"


@dataclass
class RunningFarm:
    """A farm brought up by the CLI, as a person would."""

    state: Path
    port: int
    port_base: int
    more_env: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def operator(self) -> FarmClient:
        return FarmClient(self.url, (self.state / "operator-token").read_text().strip())

    def env(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CLOUDFARM_"))}
        kept["PATH"] = f"{BIN}:{os.environ['PATH']}"
        return {
            **kept,
            "CLOUDFARM_STATE_DIR": str(self.state),
            "CLOUDFARM_NOTICE_S": "2",
            "COLUMNS": "400",
            **self.more_env,
            **more,
        }

    def cli(self, *args: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(
            [str(BIN / "cloudfarm"), *args],
            env=self.env(**more),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert not check or run.returncode == 0, run.stdout + run.stderr
        return run

    def up(self, *options: str) -> None:
        ports = ["--port", str(self.port), "--internal-port-base", str(self.port_base)]
        self.cli("up", "--hosts", "2", "--gpus", "2", *ports, *options)

    def down(self) -> None:
        self.cli("down", "--wait-s", "20")

    def remove(self) -> None:
        """Take the farm down, see that nothing of it is left, and remove its folder."""
        self.down()
        assert self.leftovers() == []
        shutil.rmtree(self.state)

    def leftovers(self) -> list[int]:
        """Pids of the farm's processes."""
        return processes_naming(self.state)

    def tenant(self, slug: str) -> "Tenant":
        with self.operator as operator:
            if slug not in [tenant["id"] for tenant in operator.get("/v1/tenants")]:
                operator.post("/v1/tenants", {"id": slug, "title": slug})
            made = operator.post("/v1/tokens", {"user": "kim", "role": "admin", "tenant": slug})
        return Tenant(self, slug, made["secret"])

    def processes(self, marker: str) -> list[int]:
        """Pids of this machine whose environment has the marker."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marker.encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def actor_pids(self, title: str) -> list[int]:
        """Pids of this farm's Ray actors by process title, such as ``ray::StewardActor``."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                ours = str(self.state).encode() in (path.parent / "environ").read_bytes()
                if ours and path.read_bytes().startswith(title.encode()):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


@dataclass
class Tenant:
    """One tenant's admin."""

    farm: RunningFarm
    slug: str
    token: str

    @property
    def client(self) -> FarmClient:
        return FarmClient(self.farm.url, self.token)

    def ray(self, *args: str, by: str = "headers", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the stock ``ray`` command line as this tenant."""
        run = subprocess.run(
            self.ray_command(*args),
            env=self.ray_env(by),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert not check or run.returncode == 0, run.stdout + run.stderr
        return run

    def ray_command(self, *args: str) -> list[str]:
        return [str(BIN / "ray"), *args]

    def ray_env(self, by: str = "headers") -> dict[str, str]:
        env = self.farm.env(RAY_API_SERVER_ADDRESS=self.farm.url, RAY_USAGE_STATS_ENABLED="0")
        if by == "headers":
            return {**env, "RAY_JOB_HEADERS": json.dumps({"Authorization": f"Bearer {self.token}"})}
        return {**env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start_job(self, *entrypoint: str, metadata: dict[str, str], files: Path = SCRIPTS) -> str:
        """Submit a job with the stock CLI without waiting for it, and return its submission id."""
        submission_id = f"test_{time.time_ns()}"
        self.ray(
            "job", "submit", "--no-wait", "--submission-id", submission_id, "--metadata-json", json.dumps(metadata),
            "--working-dir", str(files), "--", *entrypoint,
        )  # fmt: skip
        return submission_id

    def job(self, submission_id: str) -> dict[str, Any]:
        with self.client as client:
            return client.get(f"/api/jobs/{submission_id}")

    def logs(self, submission_id: str) -> str:
        with self.client as client:
            return client.get(f"/api/jobs/{submission_id}/logs")["logs"]

    def wait_job(self, submission_id: str, *statuses: str, timeout_s: float = 180.0) -> dict[str, Any]:
        """Wait until a job has one of the statuses (any final one if none is given)."""
        wanted = statuses or ("SUCCEEDED", "FAILED", "STOPPED")

        def look() -> dict[str, Any] | None:
            found = self.job(submission_id)
            return found if found["status"] in wanted else None

        return until(look, f"job {submission_id} to be {wanted}", timeout_s)

    def hold(self, gpus: str, **more: Any) -> dict[str, Any]:
        """Request a lease and wait until it is active."""
        return self.wait_lease(self.ask(gpus, **more)["id"], "ACTIVE")

    def ask(self, gpus: str, **more: Any) -> dict[str, Any]:
        """Request a lease."""
        with self.client as client:
            return client.post("/v1/leases", {"gpus": gpus, "hours": 1, **more})

    def lease(self, lease_id: str) -> dict[str, Any]:
        with self.client as client:
            return client.get(f"/v1/leases/{lease_id}")

    def wait_lease(self, lease_id: str, *statuses: str, timeout_s: float = 60.0) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.lease(lease_id)
            return found if found["status"] in statuses else None

        return until(look, f"lease {lease_id} to be {statuses}", timeout_s)

    def release(self, lease_id: str) -> dict[str, Any]:
        with self.client as client:
            client.delete(f"/v1/leases/{lease_id}")
        return self.wait_lease(lease_id, "ENDED")

    def release_all(self) -> None:
        with self.client as client:
            for service in client.get("/v1/services"):
                client.delete(f"/v1/services/{service['name']}")
            for lease in client.get("/v1/leases", open_only=True):
                if lease["kind"] != "service" and lease["target"] == "RUN" and lease["status"] != "ENDING":
                    client.delete(f"/v1/leases/{lease['id']}")
            until(lambda: not client.get("/v1/leases", open_only=True), "every lease to end")


def raylet_of(farm: RunningFarm, lease_id: str) -> int:
    """Return the pid of the raylet of a lease with one node."""
    (raylet,) = (
        pid
        for pid in farm.processes(f"CLOUDFARM_LEASE={lease_id}")
        if b"raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return raylet


def new_farm(name: str) -> RunningFarm:
    state = Path(tempfile.mkdtemp(prefix=f"cf-{name}-"))
    base = free_port(block=5000)
    return RunningFarm(state=state, port=base + 4990, port_base=base)


@pytest.fixture(scope="session")
def farm() -> Iterator[RunningFarm]:
    running = new_farm("test")
    running.up()
    yield running
    running.remove()


@pytest.fixture(scope="session")
def tenants(farm: RunningFarm) -> tuple[Tenant, Tenant]:
    return farm.tenant("univ"), farm.tenant("solar")


@pytest.fixture
def clean_farm(farm: RunningFarm, tenants: tuple[Tenant, Tenant]) -> Iterator[RunningFarm]:
    yield farm
    for tenant in tenants:
        tenant.release_all()
