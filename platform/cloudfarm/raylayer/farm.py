"""A farm on this machine: bring the head, the hosts and the steward up, and take everything down again.

Idempotent: ``up`` on a running farm changes nothing; after a crash it clears what is left and starts anew, and the
steward then finds out from the store and the hosts what was lost.
"""

import contextlib
import fcntl
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cloudfarm.errors import ConflictError, UnavailableError
from cloudfarm.raylayer.agent import NAMESPACES, HostConfig
from cloudfarm.raylayer.launcher import NodeLauncher, NodeSpec
from cloudfarm.raylayer.paths import PORTS_OF_NODE, FarmPaths, read_or_make_secret
from cloudfarm.settings import Settings

log = logging.getLogger(__name__)
Progress = Callable[[str], None]

_MIB = 1024**2
HEAD = "head"
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class LocalFarm:
    """The processes of one farm on this machine."""

    settings: Settings
    progress: Progress = log.info

    @property
    def paths(self) -> FarmPaths:
        """Where its files are."""
        return FarmPaths.of(self.settings)

    @property
    def url(self) -> str:
        """The front door."""
        return f"http://{self.settings.bind_address}:{self.settings.port}"

    @property
    def gcs_address(self) -> str:
        """Ray's control service."""
        return f"{self.settings.bind_address}:{self.paths.gcs_port}"

    def host_ids(self) -> list[str]:
        """Ids of the hosts on this machine."""
        return [f"h{index}" for index in range(self.settings.hosts)]

    # Up

    def up(self, *, prepare: Callable[[], None], build_steward: Callable[[], Any]) -> None:
        """Bring everything up and return when the front door answers; nothing changes if it does already.

        Args:
            prepare: called before anything is started, while no other command can start or stop this farm.
            build_steward: returns a steward; called in its own process, whenever that is started.

        Raises:
            UnavailableError: if it does not come up; what was started is taken down again.
            ConflictError: if the farm is being started or stopped elsewhere, or another one has its address.
        """
        self.paths.make()
        with self._lock():
            if self.is_healthy():
                if self.left_running():
                    return
                raise ConflictError(
                    f"another farm answers at {self.url}: end that one, or choose another port"
                )
            self.progress("clearing what an earlier run left")
            self._clear()
            read_or_make_secret(self.paths.ray_token_file)
            self._write_settings()
            prepare()
            try:
                self._start(build_steward)
            except BaseException:
                self._clear()
                raise

    def _start(self, build_steward: Callable[[], Any]) -> None:
        self.start_nodes()
        self.progress("starting the steward and the front door")
        self._start_steward(build_steward)
        self._await_front_door()

    def start_nodes(self) -> None:
        """Start the head and the hosts and return when they are up: a cluster without a steward."""
        control = self._control_launcher()
        self.progress("starting the head")
        control.start(self._head_spec())
        control.wait_up(HEAD, READY_TIMEOUT_S)
        names = []
        for index, host in enumerate(self.host_ids()):
            self.progress(f"starting host {host}")
            control.start(self._base_spec(index, host))
            names.append(f"base-{host}")
        for name in names:
            control.wait_up(name, READY_TIMEOUT_S)

    def _start_steward(self, build_steward: Callable[[], Any]) -> None:
        # Ray reads its environment while it is imported, and this process may have imported it long ago.
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "cloudfarm.raylayer.start_steward", self.gcs_address],
                input=pickle.dumps(build_steward),
                env={**os.environ, **self._ray_env()},
                capture_output=True,
                timeout=READY_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"the steward did not start within {READY_TIMEOUT_S:.0f} s") from None
        if done.returncode:
            log.error("starting the steward: %s", done.stderr.decode(errors="replace"))
            raise UnavailableError(
                f"the steward did not start: {done.stderr.decode(errors='replace').strip()[-500:]}"
            )

    def _await_front_door(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.is_healthy():
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"the front door did not answer at {self.url} within {READY_TIMEOUT_S:.0f} s"
                )
            time.sleep(0.2)  # there is no event for a port that begins to listen

    def is_healthy(self) -> bool:
        """Whether the front door answers."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def join(self, gcs_address: str, host: str) -> None:
        """Make this machine a host of a farm whose head runs elsewhere; the steward finds it by its labels.

        Raises:
            UnavailableError: if the head cannot be reached, or there is no cluster token in the state folder.
        """
        self.paths.make()
        if not self.paths.ray_token_file.exists():
            raise UnavailableError(f"copy the head's ray-token to {self.paths.ray_token_file} first")
        with self._lock():
            self._write_settings()
            launcher = self._control_launcher()
            phases = {record.name: record.phase for record in launcher.records()}
            name = f"base-{host}"
            if phases.get(name) == "exited":
                launcher.kill(name)
            if (
                phases.get(name) != "up"
            ):  # its lease nodes are left alone: the steward knows which are still wanted
                launcher.start(self._base_spec(0, host, gcs_address))
            launcher.wait_up(name, READY_TIMEOUT_S)

    # Down

    def down(self) -> None:
        """Stop every process of the farm on this machine; the state stays."""
        self.paths.make()
        with self._lock():
            self._clear()
            shutil.rmtree(self.paths.runtime_dir, ignore_errors=True)

    def left_running(self) -> list[str]:
        """Return what of the farm still runs on this machine, by name."""
        return [
            record.name
            for launcher in self._launchers()
            for record in launcher.records()
            if record.phase != "exited"
        ]

    def _clear(self) -> None:
        # Leases first: their capacity is what must not be left; then hosts; the head last, which others report to.
        for launcher in self._launchers():
            for record in sorted(launcher.records(), key=lambda record: record.name == HEAD):
                launcher.kill(record.name)
            launcher.stop_zygote()
        shutil.rmtree(self.paths.runtime_dir, ignore_errors=True)
        self.paths.make()

    # Parts

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with self.paths.lock_file.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError("this farm is being started or stopped by another command") from None
            yield

    def _write_settings(self) -> None:
        self.paths.settings_file.write_text(self.settings.model_dump_json())

    def _launchers(self) -> list[NodeLauncher]:
        hosts = self.paths.state_dir / "hosts"
        folders = sorted(path for path in hosts.iterdir() if path.is_dir()) if hosts.is_dir() else []
        return [*(self._launcher(folder) for folder in folders), self._control_launcher()]

    def _launcher(self, folder: Path) -> NodeLauncher:
        environ = {**os.environ, **self._ray_env()}
        return NodeLauncher(folder, namespaces=NAMESPACES[self.settings.isolation], environ=environ)

    def _control_launcher(self) -> NodeLauncher:
        return self._launcher(self.paths.state_dir / "control")

    def _ray_env(self, gcs_address: str | None = None) -> dict[str, str]:
        env = self.paths.ray_env(self.settings.bind_address, gcs_address or self.gcs_address)
        return {**env, "CLOUDFARM_ROLE": "control"}

    def _head_spec(self) -> NodeSpec:
        return NodeSpec(
            name=HEAD,
            gcs_address=self.gcs_address,
            node_ip=self.settings.bind_address,
            cpus=0,
            gpus=0,
            memory_bytes=0,
            object_store_bytes=256 * _MIB,
            labels={"farm": "control", "role": "head"},
            # What serves everybody comes before what leases compute: those are as nice as their host's agent, which is
            # as nice as Ray makes an actor.
            env={**self._ray_env(), "RAY_worker_niceness": "0"},
            temp_dir=str(self.paths.node_dir(HEAD)),
            worker_ports=self.paths.head_ports(),
            isolate=False,
            dashboard_port=self.paths.dashboard_port,
        )

    def _base_spec(self, index: int, host: str, gcs_address: str | None = None) -> NodeSpec:
        first, _ = self.paths.host_ports(index)
        config = HostConfig.of(
            self.settings, host=host, index=index, gcs_address=gcs_address or self.gcs_address
        )
        return NodeSpec(
            name=f"base-{host}",
            gcs_address=config.gcs_address,
            node_ip=self.settings.bind_address,
            cpus=0,
            gpus=0,
            memory_bytes=0,
            object_store_bytes=96 * _MIB,
            labels={"farm": "control", "role": "host", "host": host},
            env={**self._ray_env(gcs_address), **config.to_env()},
            temp_dir=str(self.paths.node_dir(f"b{index}")),
            worker_ports=(first, first + PORTS_OF_NODE - 1),
            isolate=False,
        )
