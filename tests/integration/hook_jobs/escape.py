"""A tenant's script that means to leave its lease: it takes the hook off, or starts a driver without it.

usage: escape.py strip|subprocess|sleep LEASE FILE: every piece of work that got out adds a line `what time`
to FILE.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def note(file: str, what: str) -> None:
    with Path(file).open("a") as out:
        out.write(f"{what} {time.time()}\n")


@ray.remote(num_cpus=0, max_retries=0)
def task(file: str) -> None:
    note(file, "task")
    time.sleep(600)


@ray.remote(num_cpus=0, max_restarts=-1)
class Actor:
    def __init__(self, file: str) -> None:
        note(file, "actor")
        time.sleep(600)  # it is found while it is still starting


def break_out(lease: str, file: str) -> None:
    """Put a task, an actor and a placement group on the other lease's node."""
    everywhere = (
        ray._private.state.state._connect_and_get_accessor().get_node_table()
    )  # past what the hook shows
    nodes = [node["NodeID"] for node in everywhere if node["Alive"] and node["Labels"].get("lease") == lease]
    there = NodeAffinitySchedulingStrategy(nodes[0], soft=False)
    held = [
        task.options(scheduling_strategy=there).remote(file),
        Actor.options(scheduling_strategy=there).remote(file),
    ]
    group = placement_group([{"CPU": 0.1}], bundle_label_selector=[{"lease": lease}])
    group.wait(30)
    note(file, "placement_group")
    print("out", len(held), flush=True)
    time.sleep(600)


def main() -> None:
    how, lease, file = sys.argv[1:]
    if how == "subprocess":
        kept = ("PATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS")
        clean = {name: os.environ[name] for name in kept if name in os.environ}
        subprocess.run([sys.executable, __file__, "clean", lease, file], env=clean, check=True)
        return
    ray.init()
    if how == "strip":
        confined = type(ray._private.worker.global_worker.core_worker)
        for method in ("submit_task", "create_actor", "create_placement_group"):
            if method in vars(confined):
                delattr(confined, method)
    if how == "sleep":
        time.sleep(600)
    break_out(lease, file)


if __name__ == "__main__":
    main()
