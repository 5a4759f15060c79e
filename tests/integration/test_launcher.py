"""The launcher against a real Ray cluster of its own (ports 21700-21999): nothing may ever be left."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cloudfarm.raylayer.launcher import LauncherError, NodeLauncher, NodeSpec, procs

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PORT = 21700
ADDRESS = f"127.0.0.1:{PORT}"
MODES = ["root", "user", "none"]
pytestmark = [
    pytest.mark.own_farm,
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces and /proc"),
]

LIST_NODES = """
import json
from ray._raylet import GcsClient
infos = GcsClient(address={address!r}).get_all_node_info(timeout=20).values()
print("RESULT", json.dumps({{i.node_name: dict(i.labels) for i in infos if i.state == 0}}))
"""

# An actor on the node starts: a child that ignores SIGTERM, and one that forks twice, leaves the session,
# and may have an empty environment, so that neither its parents nor a marker lead to it.
RUN_NASTY = """
import os, ray, subprocess, sys, tempfile
ray.init(address={address!r}, logging_level="error", log_to_driver=False)

@ray.remote(num_cpus=0, num_gpus=1, label_selector={{"lease": {lease!r}}})
class Nasty:
    def go(self):
        ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
        loop = ignore + "while True: time.sleep(1)"
        self.stubborn = subprocess.Popen([sys.executable, "-c", loop, {tag!r}])
        double = (
            "import os, sys\\n"
            "if os.fork(): os._exit(0)\\n"
            "os.setsid()\\n"
            "if os.fork(): os._exit(0)\\n"
            "os.execve(sys.executable, [sys.executable, '-c', " + repr(loop) + ", {tag!r}], {environ})\\n"
        )
        subprocess.run([sys.executable, "-c", double], check=True)
        tempfile.mkstemp(prefix={tag!r})
        return os.environ["FOO"]

actor = Nasty.options(lifetime="detached", name={tag!r}).remote()
print("RESULT", ray.get(actor.go.remote()))
"""


@dataclass
class Farm:
    base: Path
    environ: dict[str, str]

    def python(self, code: str) -> str:
        """Run Python beside us and return what it prints after RESULT, for Ray prints as well.

        In this process Ray would keep the token of the first cluster for ever.
        """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        (result,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        return result.removeprefix("RESULT ")

    def alive(self) -> dict[str, dict[str, str]]:
        return json.loads(self.python(LIST_NODES.format(address=ADDRESS)))


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    base = Path(tempfile.mkdtemp(prefix="cfA-t", dir="/tmp"))
    token = base / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT / "platform"),
        "SECRET_OF_THE_OPERATOR": "must not be inherited",
    }
    command = [
        RAY, "start", "--head", "--block", f"--port={PORT}", "--num-cpus=0", "--num-gpus=0",
        "--include-dashboard=false", f"--temp-dir={base}/h", "--object-store-memory=100000000",
        f"--dashboard-agent-listen-port={PORT + 1}", f"--metrics-export-port={PORT + 2}",
        f"--ray-client-server-port={PORT + 3}", f"--min-worker-port={PORT + 10}",
        f"--max-worker-port={PORT + 29}",
    ]  # fmt: skip
    with (base / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
    farm = Farm(base, environ)
    try:
        wait_until(lambda: "Ray runtime started" in (base / "head.log").read_text(), 120)
        yield farm
    finally:
        processes = procs.snapshot()
        procs.kill_and_wait([processes[p] for p in procs.descendants([head.pid], processes)], 10)
        head.wait()
        shutil.rmtree(base)


class Rig:
    """A launcher with a state directory of its own, and the means to see what is left."""

    def __init__(self, farm: Farm, **options: object) -> None:
        self.farm = farm
        self.home = Path(tempfile.mkdtemp(prefix="n", dir=farm.base))
        self.options = {"environ": farm.environ, **options}
        self.launcher = self.again()

    def again(self) -> NodeLauncher:
        """A caller that was killed and is started again."""
        return NodeLauncher(self.home / "state", **self.options)

    def spec(self, name: str, slot: int = 0, **changes: object) -> NodeSpec:
        values: dict[str, object] = {
            "name": name, "gcs_address": ADDRESS, "node_ip": "127.0.0.1", "cpus": 1, "gpus": 1,
            "memory_bytes": 1_000_000_000, "object_store_bytes": 80_000_000,
            "labels": {"lease": name, "host": "h0"}, "env": {"FOO": f"foo of {name}"},
            "temp_dir": str(self.home / name), "worker_ports": (PORT + 40 + 40 * slot, PORT + 79 + 40 * slot),
        }  # fmt: skip
        return NodeSpec(**{**values, **changes})

    def up(self, spec: NodeSpec) -> int:
        self.launcher.start(spec)
        pid = self.launcher.wait_up(spec.name, 60).pid
        assert pid is not None
        return pid

    def left(self, name: str) -> list[str]:
        """Every process with any trace of the node, seen with psutil and not with the launcher's eyes."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            try:
                traces = [
                    process.environ().get("CLOUDFARM_NODE") == name,
                    process.cwd() == str(self.home / name),
                ]
            except psutil.Error:
                traces = []
            if f"{self.home}/{name}/" in line or line.startswith(f"cloudfarm-node {name} ") or any(traces):
                found.append(f"{process.pid} {line}")
        return found

    def assert_nothing_left(self, name: str, tag: str = "no tag") -> None:
        assert self.left(name) == []
        assert tagged(tag) == []
        assert name not in {record.name for record in self.launcher.records()}
        assert not [path for path in (self.home / name).rglob("*") if path.is_socket()]
        assert list(Path("/sys/fs/cgroup").glob(f"*/cloudfarm/*/{name}")) == []
        assert list(Path("/sys/fs/cgroup").glob(f"cloudfarm/*/{name}")) == []


@pytest.fixture
def rig(farm: Farm) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**options: object) -> Rig:
        rigs.append(Rig(farm, **options))
        return rigs[-1]

    yield make
    for each in rigs:
        for record in each.launcher.records():
            each.launcher.kill(record.name)
        each.launcher.stop_zygote()


def tagged(tag: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if tag in (process.info["cmdline"] or ())]


def run_nasty(farm: Farm, lease: str, tag: str, *, hidden: bool) -> str:
    environ = "{}" if hidden else "os.environ"
    code = RUN_NASTY.format(address=ADDRESS, lease=lease, tag=tag, environ=environ)
    return farm.python(code)


def wait_until(done: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_two_nodes_at_once_are_alive_with_labels_and_reachable_from_this_host_only(
    farm: Farm, rig: Callable[..., Rig]
) -> None:
    one = rig()
    specs = [one.spec("two-a", 0), one.spec("two-b", 1)]
    with ThreadPoolExecutor(2) as pool:
        pids = list(pool.map(one.up, specs))
    alive = farm.alive()
    for spec, pid in zip(specs, pids, strict=True):
        assert alive[spec.name].items() >= spec.labels.items()
        processes = psutil.Process(pid).children(recursive=True)
        listening = [
            connection.laddr
            for process in processes
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= len(spec.ports.fixed())
        assert {address.ip for address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert all(spec.worker_ports[0] <= address.port <= spec.worker_ports[1] for address in listening)
        raylet = next(process for process in processes if process.name() == "raylet")
        assert raylet.environ()["FOO"] == f"foo of {spec.name}"
        assert "SECRET_OF_THE_OPERATOR" not in raylet.environ()
        usage = one.launcher.usage(spec.name)
        assert 0 < usage.memory_bytes < 1_000_000_000
        assert usage.pids >= len(processes)
    assert {record.node_id for record in one.launcher.records()} != {None}


def test_a_restarted_caller_finds_its_nodes_even_one_whose_starter_was_killed(
    farm: Farm, rig: Callable[..., Rig]
) -> None:
    one = rig()
    spec = one.spec("again")
    code = (
        "import os, sys; from pathlib import Path; from cloudfarm.raylayer.launcher import *\n"
        "NodeLauncher(Path(sys.argv[1])).start(NodeSpec.from_json(sys.argv[2])); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(one.home / "state"), spec.to_json()]
    killed = subprocess.run(command, env=farm.environ, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    restarted = one.again()
    found = restarted.wait_up("again", 120)
    assert found.spec == spec
    assert restarted.start(spec).pid == found.pid, "starting it again must not start another"
    assert [record.phase for record in restarted.records()] == ["up"]


def test_nodes_outlive_the_zygote_and_the_state_directory(rig: Callable[..., Rig]) -> None:
    one = rig()
    pid = one.up(one.spec("orphan"))
    zygote = one.launcher.warm_up()
    os.kill(zygote, signal.SIGKILL)
    shutil.rmtree(one.home / "state" / "nodes")
    restarted = one.again()
    (record,) = restarted.records()
    assert (record.name, record.pid, record.phase) == ("orphan", pid, "up")
    assert record.spec == one.spec("orphan")
    assert (one.home / "state" / "nodes" / "orphan" / "spec.json").exists(), (
        "it must outlive its processes too"
    )
    restarted.kill("orphan")
    one.assert_nothing_left("orphan")
    one.up(one.spec("next"))
    second = one.launcher.warm_up()
    assert second != zygote
    (one.home / "state" / "zygote.sock").unlink()
    assert one.launcher.warm_up() != second
    assert procs.read_proc(second) is None or not procs.read_proc(second).alive
    assert [record.phase for record in one.launcher.records()] == ["up"]


@pytest.mark.parametrize("mode", MODES)
def test_kill_leaves_nothing_of_a_node_with_stubborn_and_hidden_processes(
    farm: Farm, rig: Callable[..., Rig], mode: str
) -> None:
    one = rig(namespaces=(mode,), use_cgroups=mode != "none")
    name, tag = f"nasty-{mode}", f"nasty-tag-{mode}-{os.getpid()}"
    one.up(one.spec(name))
    (record,) = one.launcher.records()
    assert record.namespace == mode
    assert (record.cgroup == "none") == (mode == "none")
    assert run_nasty(farm, name, tag, hidden=True) == f"foo of {name}"
    assert len(tagged(tag)) == 2
    (left,) = [*Path(tempfile.gettempdir()).glob(f"{tag}*"), *(one.home / name).rglob(f"{tag}*")]
    assert left.is_relative_to(one.home / name)
    one.launcher.kill(name)
    one.assert_nothing_left(name, tag)
    assert not left.exists()
    assert list((one.home / name).glob("session_2*/logs/raylet.out")), "the logs stay"


def test_what_is_left_of_a_node_in_the_degraded_mode_is_found_without_its_init(
    farm: Farm, rig: Callable[..., Rig]
) -> None:
    """Here a double fork that also clears its environment would escape: the docs say so."""
    one = rig(namespaces=("none",), use_cgroups=False)
    pid = one.up(one.spec("headless"))
    tag = f"headless-tag-{os.getpid()}"
    run_nasty(farm, "headless", tag, hidden=False)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: one.launcher.records()[0].phase == "exited", 30)
    (record,) = one.launcher.records()
    assert record.reason is not None
    assert record.reason.startswith("the node's init was killed")
    assert len(tagged(tag)) == 1
    one.launcher.kill("headless")
    one.assert_nothing_left("headless", tag)


@pytest.mark.parametrize("mode", ["root", "none"])
def test_a_node_ends_as_one_when_its_raylet_dies(farm: Farm, rig: Callable[..., Rig], mode: str) -> None:
    one = rig(namespaces=(mode,), use_cgroups=False)
    pid = one.up(one.spec("dying"))
    tag = f"dying-tag-{mode}-{os.getpid()}"
    run_nasty(farm, "dying", tag, hidden=True)
    raylet = next(p for p in psutil.Process(pid).children() if p.name() == "raylet")
    raylet.kill()
    wait_until(lambda: not one.left("dying") and not tagged(tag), 60)
    (record,) = one.launcher.records()
    assert (record.phase, record.reason) == ("exited", "the raylet was killed by SIGKILL")
    with pytest.raises(LauncherError) as refused:
        one.launcher.start(one.spec("dying"))
    assert refused.value.reason == "exited"


def test_an_agent_is_missed_by_the_raylet_as_if_it_had_started_it_itself(rig: Callable[..., Rig]) -> None:
    one = rig()
    pid = one.up(one.spec("agent"))
    agent = next(p for p in psutil.Process(pid).children() if "RuntimeEnvAgent" in " ".join(p.cmdline()))
    agent.kill()
    wait_until(lambda: not one.left("agent"), 60)  # it says that it has exited a moment before it has
    assert one.launcher.records()[0].phase == "exited"


def test_a_start_that_fails_says_why_and_leaves_nothing(rig: Callable[..., Rig]) -> None:
    one = rig()
    hungry = one.spec("hungry", memory_bytes=40_000_000)
    one.launcher.start(hungry)
    with pytest.raises(LauncherError) as failed:
        one.launcher.wait_up("hungry", 60)
    assert failed.value.reason == "node_failed"
    assert "object store memory" in str(failed.value), (
        "Ray sees the limit of the node, not the machine's memory"
    )
    one.assert_nothing_left("hungry")

    one.up(one.spec("first"))
    with pytest.raises(LauncherError) as clash:
        one.launcher.start(one.spec("second"))
    assert clash.value.reason == "port_in_use"
    with pytest.raises(LauncherError) as taken:
        one.launcher.start(one.spec("third", 1, temp_dir=str(one.home / "first")))
    assert taken.value.reason == "temp_dir_in_use"
    assert [record.name for record in one.launcher.records()] == ["first"]


def test_a_base_node_and_its_end_leave_lease_nodes_alone(farm: Farm, rig: Callable[..., Rig]) -> None:
    """A host agent runs inside a base node, and so do, as orphans, the zygote and leases it starts."""
    one = rig()
    base = one.spec("base", 0, isolate=False, gpus=0, cpus=0)
    one.up(base)
    inner = rig()
    spec = inner.spec("leased", 1)
    code = (
        "import ray; ray.init(address={address!r}, logging_level='error', log_to_driver=False)\n"
        "from pathlib import Path\n"
        "@ray.remote(num_cpus=0, label_selector={{'lease': 'base'}})\n"
        "def start(state, spec):\n"
        "    from cloudfarm.raylayer.launcher import NodeLauncher, NodeSpec\n"
        "    launcher = NodeLauncher(Path(state))\n"
        "    launcher.start(NodeSpec.from_json(spec))\n"
        "    return launcher.wait_up('leased', 60).pid\n"
        "env = {{'env_vars': {{'PYTHONPATH': {path!r}}}}}\n"
        "print('RESULT', ray.get(start.options(runtime_env=env).remote({state!r}, {spec!r})))\n"
    ).format(
        address=ADDRESS, state=str(inner.home / "state"), spec=spec.to_json(), path=str(ROOT / "platform")
    )
    pid = int(farm.python(code))
    one.launcher.kill("base")
    assert one.left("base") == []
    (record,) = inner.launcher.records()
    assert (record.pid, record.phase) == (pid, "up")
