"""A real cluster for the contract tests: head, one host with two simulated GPUs, one lease node; and no steward."""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from cloudfarm.domain.host import NodePhase, NodeTruth
from cloudfarm.domain.lease import Slice
from cloudfarm.domain.quantities import GIB
from cloudfarm.ports import Hosts
from cloudfarm.raylayer.farm import LocalFarm
from cloudfarm.raylayer.launcher import NodeLauncher, procs
from cloudfarm.raylayer.paths import read_or_make_secret
from cloudfarm.settings import Settings
from cloudfarm.steward.placing import node_labels
from cloudfarm.testing.factories import make_lease
from tests.processes import eventually, free_port, processes_naming

HOST = "h0"
CPUS = 16
LEASE = make_lease("lease", revision_id="rev", slices=(Slice("lease", 0, HOST, (0,), 1000, 4, 3 * GIB),))
"""The lease of whatever runs in the tests; on the real farm its node is up all the time."""
EPOCHS = itertools.count(1)
"""The host remembers the highest that it has seen, so all tests draw from one sequence."""
ANSWER_TIMEOUT_S = 120.0


async def node(hosts: Hosts, name: str) -> NodeTruth | None:
    """Return a lease node as its host sees it now."""
    return next((each for host in await hosts.observe() for each in host.nodes if each.name == name), None)


async def node_in(hosts: Hosts, name: str, phase: NodePhase) -> NodeTruth:
    """Wait until a lease node is in a phase."""

    async def look() -> NodeTruth | None:
        found = await node(hosts, name)
        return found if found is not None and found.phase is phase else None

    return await eventually(look, f"{name} to be {phase.value}")


class Connected:
    """The process that has the real ports; see ``connected.py``."""

    def __init__(self, local: LocalFarm) -> None:
        state = local.settings.state_dir
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CLOUDFARM_"))}
        ray_env = local.paths.ray_env(local.settings.bind_address, local.gcs_address)
        self._lock = threading.Lock()
        self._pipe, other = Pipe()
        self._log = state / "connected.log"
        with self._log.open("wb") as log, other:  # closed here, so that the end of the process is seen
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.contract.connected", str(state), str(other.fileno())],
                env={**kept, **ray_env, "CLOUDFARM_ROLE": "control"},
                cwd=Path(__file__).parents[2],
                pass_fds=(other.fileno(),),
                stdout=log,
                stderr=log,
            )

    def call(self, *request: Any) -> Any:
        """Have a port's method run there; return, or raise, what it does. Without a request: wait for the process."""
        with self._lock:
            try:
                if request:
                    self._pipe.send(request)
                if not self._pipe.poll(ANSWER_TIMEOUT_S):
                    self._pipe.close()  # a late answer must not be taken for that to another call
                good, answer = self._pipe.recv()
            except (EOFError, OSError):
                text = self._log.read_text()[-4000:]
                raise AssertionError(f"the connected process does not answer {request}: {text}") from None
        if good:
            return answer
        raise answer

    def close(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()


class RemotePort:
    """A port in the connected process."""

    def __init__(self, connected: Connected, name: str) -> None:
        self._connected, self._name = connected, name

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        return lambda *args, **kwargs: asyncio.to_thread(
            self._connected.call, self._name, method, args, kwargs
        )


@dataclass
class BareFarm:
    """The cluster, and the process with the real ports."""

    local: LocalFarm
    connected: Connected | None = None

    @classmethod
    def make(cls) -> "BareFarm":
        state, base = Path(tempfile.mkdtemp(prefix="cf-contract-")), free_port(block=5000)
        settings = Settings(
            state_dir=state, port=base + 4990, internal_port_base=base, hosts=1, gpus=2, cpus=CPUS
        )
        return cls(LocalFarm(settings))

    def port(self, name: str) -> Any:
        return RemotePort(self.connected, name)

    def signal_node(self, name: str, number: int) -> None:
        """Send a signal to the processes of a lease node."""
        launcher = NodeLauncher(self.local.paths.host_dir(HOST))
        (first,) = [record.pid for record in launcher.records() if record.name == name]
        for pid in procs.descendants([first], procs.snapshot()):
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, number)

    def start(self) -> None:
        paths = self.local.paths
        paths.make()
        read_or_make_secret(paths.ray_token_file)
        paths.settings_file.write_text(self.local.settings.model_dump_json())
        self.local.start_nodes()
        self.connected = Connected(self.local)
        self.connected.call()
        asyncio.run(self._start_lease_node())

    async def _start_lease_node(self) -> None:
        hosts = self.port("hosts")

        async def look() -> bool:
            return any(host.reachable for host in await hosts.observe())

        await eventually(look, "the host's agent to answer")
        (piece,) = LEASE.slices
        env = {"CLOUDFARM_LEASE": LEASE.id, "CLOUDFARM_TENANT": LEASE.tenant}
        await hosts.start_node(
            piece, tenant=LEASE.tenant, epoch=next(EPOCHS), labels=node_labels(LEASE, piece), env=env
        )
        await node_in(hosts, piece.name, NodePhase.UP)

    def remove(self) -> None:
        """Take everything down and see that nothing is left."""
        if self.connected is not None:
            self.connected.close()
        self.local.down()
        state = self.local.settings.state_dir
        assert (self.local.left_running(), processes_naming(state)) == ([], [])
        shutil.rmtree(state)
