"""What a lease node costs, in time until ALIVE and in memory, against stock `ray start --block`.

    python benchmarks/lease_node.py --runs 5 --json

Starts a small head of its own, then alternates both ways (A B A B ...) in one run on one machine, because a
shared machine's speed drifts. Both are observed by the same GCS client. Memory is PSS, so shared pages count
by share; the zygote, which a host has once, is listed apart and as part of the host's total for one and for
four nodes.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "platform"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from cloudfarm.raylayer.launcher import NodeLauncher, NodeSpec, procs

RAY = str(Path(sys.executable).with_name("ray"))
OBJECT_STORE = 100_000_000
SETTLE_S = 4.0
DEADLINE_S = 90.0
MANY = 4


@contextmanager
def head(base: Path, port: int) -> Iterator[str]:
    """Run a head of our own with token authentication; yields the GCS address."""
    token = base / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")
    command = [
        RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--num-gpus=0",
        "--include-dashboard=false", f"--temp-dir={base}/head", f"--object-store-memory={OBJECT_STORE}",
        f"--dashboard-agent-listen-port={port + 1}", f"--metrics-export-port={port + 2}",
        f"--ray-client-server-port={port + 3}", f"--min-worker-port={port + 10}",
        f"--max-worker-port={port + 30}",
    ]  # fmt: skip
    with (base / "head.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"127.0.0.1:{port}"
        wait_for(lambda: alive_names(address), "the head")
        yield address
    finally:
        kill_all(tree(process.pid))
        process.wait()


@cache
def gcs_client(address: str) -> Any:
    """Return one client for all looks: making one costs more than a look."""
    from ray._raylet import GcsClient  # noqa: PLC0415

    return GcsClient(address=address)


def alive_names(address: str) -> set[str]:
    """Return the names of the nodes that the GCS calls ALIVE; empty while there is no GCS."""
    try:
        infos = gcs_client(address).get_all_node_info(timeout=5)
    except Exception:  # noqa: BLE001 - the GCS is not there yet
        return set()
    return {info.node_name for info in infos.values() if info.state == 0}


def wait_for(done: Callable[[], Any], what: str) -> None:
    """Poll until something holds: the GCS gives an outsider no event."""
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        if time.monotonic() > deadline:
            message = f"{what} did not come up"
            raise TimeoutError(message)
        time.sleep(0.01)


def tree(pid: int) -> set[int]:
    """Return a process and all below it."""
    return procs.descendants([pid], procs.snapshot())


def kill_all(pids: set[int]) -> None:
    """Kill processes that we started, and wait."""
    processes = procs.snapshot()
    procs.kill_and_wait([processes[pid] for pid in pids if pid in processes], 10)


def pss_mb(pids: set[int]) -> float:
    """Return the sum of proportional set sizes."""
    return sum(map(procs.pss_bytes, pids)) / 1e6


def rss_mb(pids: set[int]) -> float:
    """Return the sum of resident set sizes, which counts shared pages once for each process."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids) / 1e6


def run_stock(address: str, base: Path, run: int, ports: int) -> dict[str, float]:
    """Start and end one node the stock way."""
    name = f"stock-{run}"
    command = [
        RAY, "start", "--block", f"--address={address}", f"--node-name={name}", "--num-cpus=1",
        "--num-gpus=1", "--memory=1000000000", f"--object-store-memory={OBJECT_STORE}",
        f"--temp-dir={base}/s{run}",
        f"--labels=lease={name}", f"--dashboard-agent-listen-port={ports}",
        f"--metrics-export-port={ports + 1}",
        f"--runtime-env-agent-port={ports + 2}", f"--dashboard-agent-grpc-port={ports + 3}",
        f"--node-manager-port={ports + 4}", f"--object-manager-port={ports + 5}",
        f"--min-worker-port={ports + 6}", f"--max-worker-port={ports + 39}", *own_address(address),
    ]  # fmt: skip
    began = time.monotonic()
    with (base / "stock.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: name in alive_names(address), name)
        alive_s = round(time.monotonic() - began, 3)
        time.sleep(SETTLE_S)
        pids = tree(process.pid)
        result = {"alive_s": alive_s, "pss_mb": pss_mb(pids), "rss_mb": rss_mb(pids), "processes": len(pids)}
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)
        result["end_s"] = time.monotonic() - began
        kill_all(pids)
    finally:
        process.kill()
    return result


def own_address(address: str) -> list[str]:
    """Return what makes a stock node listen where the head does; of 127.0.0.1 Ray makes the outer address."""
    ip = address.rpartition(":")[0]
    return [] if ip == "127.0.0.1" else [f"--node-ip-address={ip}"]


def node_spec(address: str, base: Path, name: str, ports: int) -> NodeSpec:
    """Return the same node as `run_stock`'s."""
    return NodeSpec(
        name=name, gcs_address=address, node_ip=address.rpartition(":")[0], cpus=1, gpus=1, memory_bytes=1_000_000_000,
        object_store_bytes=OBJECT_STORE, labels={"lease": name}, env={}, temp_dir=f"{base}/{name}",
        worker_ports=(ports, ports + 39),
    )  # fmt: skip


def lease_pids(pid: int | None) -> set[int]:
    """Return the processes of a node, given its init."""
    return tree(pid) if pid else set()


def run_lease(launcher: NodeLauncher, address: str, base: Path, run: int, ports: int) -> dict[str, float]:
    """Start and end one lease node; the zygote is warm, as on a host in service."""
    name = f"lease-{run}"
    began = time.monotonic()
    launcher.start(node_spec(address, base, name, ports))
    wait_for(lambda: name in alive_names(address), name)
    alive_s = round(time.monotonic() - began, 3)
    record = launcher.wait_up(name, DEADLINE_S)
    time.sleep(SETTLE_S)
    pids = lease_pids(record.pid)
    zygote = {launcher.warm_up()}
    result = {
        "alive_s": alive_s, "pss_mb": pss_mb(pids), "rss_mb": rss_mb(pids), "processes": len(pids),
        "zygote_pss_mb": pss_mb(zygote), "cgroup_mb": launcher.usage(name).memory_bytes / 1e6,
    }  # fmt: skip
    began = time.monotonic()
    launcher.kill(name)
    result["end_s"] = time.monotonic() - began
    return result


def run_many(launcher: NodeLauncher, address: str, base: Path, ports: int) -> dict[str, float]:
    """Start several nodes at once: time until the last is up, and the host's total memory."""
    names = [f"many-{index}" for index in range(MANY)]
    began = time.monotonic()
    for index, name in enumerate(names):
        launcher.start(node_spec(address, base, name, ports + 40 * index))
    records = [launcher.wait_up(name, DEADLINE_S) for name in names]
    all_up_s = time.monotonic() - began
    time.sleep(SETTLE_S)
    pids = set().union(*(lease_pids(record.pid) for record in records)) | {launcher.warm_up()}
    result = {"nodes": MANY, "all_up_s": all_up_s, "pss_with_zygote_mb": pss_mb(pids)}
    for name in names:
        launcher.kill(name)
    return result


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--port", type=int, default=21400, help="first of 600 free ports")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="cfA-b", dir="/tmp"))
    launcher: NodeLauncher | None = None
    try:
        with head(base, options.port) as address:
            launcher = NodeLauncher(base / "state")
            began = time.monotonic()
            launcher.warm_up()
            zygote_start_s = round(time.monotonic() - began, 3)
            lease, stock = [], []
            for run in range(options.runs):
                ports = options.port + 40 + 80 * (run % 2)
                lease.append(run_lease(launcher, address, base, run, ports))
                stock.append(run_stock(address, base, run, ports + 40))
            many = run_many(launcher, address, base, options.port + 240)
    finally:
        if launcher is not None:
            for record in launcher.records():
                launcher.kill(record.name)
            launcher.stop_zygote()
        shutil.rmtree(base, ignore_errors=True)
    ours, theirs = medians(lease), medians(stock)
    report = {
        "runs": options.runs, "lease": ours, "stock": theirs, "zygote_start_s": zygote_start_s,
        "alive_ratio": round(ours["alive_s"] / theirs["alive_s"], 3),
        "pss_ratio": round(ours["pss_mb"] / theirs["pss_mb"], 3),
        "pss_ratio_with_zygote": round((ours["pss_mb"] + ours["zygote_pss_mb"]) / theirs["pss_mb"], 3),
        "many": many,
        "alive_s": {"lease": [row["alive_s"] for row in lease], "stock": [row["alive_s"] for row in stock]},
    }  # fmt: skip
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{'median of ' + str(options.runs):24} {'lease node':>12} {'ray start':>12}")
    for key in ("alive_s", "end_s", "pss_mb", "rss_mb", "processes"):
        print(f"{key:24} {ours[key]:12.2f} {theirs[key]:12.2f}")
    print(f"ALIVE in {report['alive_ratio']} of the time; PSS {report['pss_ratio']},", end=" ")
    print(f"{report['pss_ratio_with_zygote']} with the zygote ({ours['zygote_pss_mb']} MB, once a host)")
    print(f"{MANY} nodes at once: up in {many['all_up_s']:.2f} s, {many['pss_with_zygote_mb']:.0f} MB in all")


if __name__ == "__main__":
    main()
