"""Time until a lease node is up and what it takes in memory, against `ray start --block` of an equal node.

All in the farm's own cluster and in turns: a lease of the farm, the launcher alone, stock `ray start`. Nothing is
said when a node has settled after its start, so its memory is read after the same pause for all three.
"""

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from benchmarks import lease_node
from benchmarks.figures import Row, Series
from benchmarks.running_farm import OWN_PORTS, BenchFarm
from cloudfarm.raylayer.launcher import NodeLauncher, procs

PORTS_EACH = 40


def idle_memory(farm: BenchFarm) -> tuple[list[Row], dict[str, float]]:
    """Return what a farm takes that has nothing to do: the row, and megabytes by process."""
    time.sleep(lease_node.SETTLE_S)
    parts: dict[str, float] = {}
    sums: dict[str, float] = {}
    for name, pids in farm.trees().items():
        for pid in pids:
            size = lease_node.pss_mb({pid})
            sums[name] = sums.get(name, 0) + size
            part = f"{name}: {program_of(pid)}"
            parts[part] = round(parts.get(part, 0) + size, 1)
    note = ", ".join(f"{name} {size:.0f}" for name, size in sums.items())
    row = Row(2, "idle farm of one host, PSS", "MB", Series.of([sum(sums.values())]), note=note)
    return [row], dict(sorted(parts.items(), key=lambda part: -part[1]))


def program_of(pid: int) -> str:
    """Return a short name of what a process runs."""
    words = procs.title(pid).split()
    scripts = [Path(word).stem for word in words if word.endswith(".py")]
    if words and words[0].startswith("cloudfarm-node"):
        return " ".join(words[:1] + words[3:])  # without the node's name and the farm's mark
    if not words or words[0].startswith(("ray:", "ray-", "cloudfarm")):
        return words[0] if words else "gone"
    return scripts[0] if scripts else Path(words[0]).name


def measure(farm: BenchFarm, runs: int, say: Callable[[str], None]) -> list[Row]:
    """Return the rows of one lease node."""
    asked, leased, lease_pss, alone, stock = [], [], [], [], []
    kept = dict(os.environ)
    env = farm.ray_env  # `lease_node` starts its nodes with what it has itself
    os.environ.clear()
    os.environ.update(env)
    launcher = NodeLauncher(farm.base / "launcher")
    try:
        launcher.warm_up()
        for run in range(runs):
            ports = OWN_PORTS + 2 * PORTS_EACH * (run % 2)
            with farm.lease() as lease:
                asked.append(seconds_between(lease, "created", "started"))
                leased.append(seconds_between(lease, "granted", "started"))
                time.sleep(lease_node.SETTLE_S)
                lease_pss.append(lease_node.pss_mb(farm.node_tree(f"{lease['id']}-0")))
            address = farm.local.gcs_address
            alone.append(lease_node.run_lease(launcher, address, farm.base, run, ports))
            stock.append(lease_node.run_stock(address, farm.base, run, ports + PORTS_EACH))
            say(f"  run {run + 1}: lease {leased[-1]:.2f} s, stock {stock[-1]['alive_s']:.2f} s")
    finally:
        for record in launcher.records():
            launcher.kill(record.name)
        launcher.stop_zygote()
        os.environ.clear()
        os.environ.update(kept)
    stock_s = Series.of([row["alive_s"] for row in stock])
    stock_pss = Series.of([row["pss_mb"] for row in stock])
    zygote = [row["zygote_pss_mb"] for row in alone]
    with_zygote = [node + once for node, once in zip(lease_pss, zygote, strict=True)]
    return [
        Row(1, "lease granted -> nodes up, through the farm", "s", Series.of(leased), stock_s),
        Row(1, "lease asked for -> nodes up, through the farm", "s", Series.of(asked), stock_s),
        Row(1, "launcher alone: start -> node ALIVE", "s", Series.of([r["alive_s"] for r in alone]), stock_s),
        Row(
            1,
            "launcher alone: node ended, nothing left",
            "s",
            Series.of([row["end_s"] for row in alone]),
            Series.of([row["end_s"] for row in stock]),
        ),
        Row(2, "idle lease node, PSS", "MB", Series.of(lease_pss), stock_pss),
        Row(2, "the same with the zygote, which a host has once", "MB", Series.of(with_zygote), stock_pss),
    ]


def seconds_between(lease: dict[str, str], first: str, last: str) -> float:
    """Return the seconds between two instants of a lease's life."""
    return (datetime.fromisoformat(lease[last]) - datetime.fromisoformat(lease[first])).total_seconds()
