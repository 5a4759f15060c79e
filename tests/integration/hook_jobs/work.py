"""A tenant's script: stock Ray code that knows nothing of Cloudfarm. It prints where its parts ran."""

# ruff: noqa: PLC0415 - a job prints, and Train is imported only where it is used

import json
import sys
import time

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

SEEN: dict[str, list[str]] = {}


def here() -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote
def task() -> str:
    time.sleep(0.3)
    return here()


@ray.remote(num_cpus=0)
def nested() -> list[str]:
    return [here(), *ray.get([task.remote() for _ in range(4)])]


@ray.remote
class Actor:
    def where(self) -> str:
        return here()

    def child(self) -> str:
        return ray.get(Actor.options(num_cpus=0).remote().where.remote())


def every_node() -> list[dict]:
    """Look at the whole cluster, past what the hook shows."""
    return ray._private.state.state._connect_and_get_accessor().get_node_table()


def tasks() -> None:
    """More tasks than one node takes, and tasks that ask to be spread."""
    SEEN["task"] = ray.get([task.remote() for _ in range(12)])
    SEEN["spread"] = ray.get(
        [task.options(scheduling_strategy="SPREAD", num_cpus=0).remote() for _ in range(6)]
    )


def core() -> None:
    """Nested tasks, actors, placement groups."""
    SEEN["env"] = ray.get([task.options(runtime_env={"env_vars": {"PYTHONPATH": "/nowhere"}}).remote()])
    SEEN["nested"] = [node for nodes in ray.get([nested.remote() for _ in range(3)]) for node in nodes]
    actors = [Actor.options(num_cpus=0).remote() for _ in range(4)]
    SEEN["actor"] = ray.get([actor.where.remote() for actor in actors])
    SEEN["actor of actor"] = ray.get([actor.child.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    group = placement_group([{"CPU": 1}] * 2, strategy="SPREAD")
    ray.get(group.ready(), timeout=30)
    strategy = PlacementGroupSchedulingStrategy(group)
    SEEN["placement group"] = ray.get([task.options(scheduling_strategy=strategy).remote() for _ in range(2)])
    ray.util.remove_placement_group(group)


def choices() -> None:
    """What a script may say about the place itself."""
    mine = {here()}
    others = [node["NodeID"] for node in every_node() if node["Alive"] and node["NodeID"] not in mine]
    soft = [NodeAffinitySchedulingStrategy(node, soft=True) for node in others]
    SEEN["soft affinity"] = ray.get([task.options(num_cpus=0, scheduling_strategy=s).remote() for s in soft])
    home = NodeAffinitySchedulingStrategy(here(), soft=False)
    SEEN["hard affinity"] = [ray.get(task.options(num_cpus=0, scheduling_strategy=home).remote())]
    SEEN["own selector"] = [ray.get(task.options(label_selector={"lease": "B"}).remote())]
    fallback = [{"label_selector": {"lease": "B"}}]
    SEEN["fallback"] = [
        ray.get(
            task.options(label_selector={"zone": "none"}, fallback_strategy=fallback).remote(), timeout=30
        )
    ]
    ip = ray.util.get_node_ip_address()
    SEEN["host"] = [ray.get(task.options(resources={f"node:{ip}": 0.01}).remote())]
    refused = []
    for node in others:
        try:
            ray.get(
                task.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), num_cpus=0
                ).remote()
            )
        except RuntimeError as error:
            refused.append(str(error))
    print("REFUSED", json.dumps(refused))


def view() -> None:
    """What the script sees of the cluster, and what Data and an elastic Train run may count on."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        DefaultAutoscalingCoordinator,
    )
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
        TrainAutoscalingCoordinatorClient,
    )

    SEEN["nodes"] = [node["NodeID"] for node in ray.nodes()]
    total, free = ray.cluster_resources(), ray.available_resources()
    print("TOTAL", json.dumps({"CPU": total["CPU"], "GPU": total["GPU"], "free GPU": free["GPU"]}))

    train = TrainAutoscalingCoordinatorClient("a run")
    train.send_resource_request(
        ScalingConfig(num_workers=4, use_gpu=True, resources_per_worker={"GPU": 1}), 4
    )
    reserved = ray.get(train._autoscaling_coordinator.get_reserved_resources.remote("a run"))
    SEEN["reserved by train"] = list(reserved)
    print("TRAIN_GPUS", sum(bundle.get("GPU", 0) for bundle in reserved.values()))
    train.cancel_resource_request()

    data = DefaultAutoscalingCoordinator("a dataset")
    data.request_resources([], 30, request_remaining=["CPU"])
    reserved = ray.get(data._autoscaling_coordinator.get_reserved_resources.remote("a dataset"))
    SEEN["reserved by data"] = list(reserved)
    print("DATA_CPUS", sum(bundle.get("CPU", 0) for bundle in reserved.values()))
    data.cancel_request()


def data() -> None:
    """Ray Data: reads, map tasks, an actor pool, a shuffle."""

    class Where:
        def __call__(self, batch: dict) -> dict:
            batch["node"] = [here()] * len(batch["id"])
            return batch

    rows = (
        ray.data.range(64, override_num_blocks=8)
        .map_batches(lambda batch: {**batch, "first": [here()] * len(batch["id"])})
        .map_batches(Where, concurrency=2, num_cpus=0.5)
        .random_shuffle()
        .take_all()
    )
    SEEN["data task"] = sorted({row["first"] for row in rows})
    SEEN["data actor"] = sorted({row["node"] for row in rows})


def train() -> None:
    """Ray Train as in its tutorial: two workers that want a GPU each."""
    import ray.train
    import ray.train.torch
    import torch
    from ray.train import Checkpoint, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        import tempfile

        model = ray.train.torch.prepare_model(torch.nn.Linear(4, 1))
        device = ray.train.torch.get_device()
        loss = model(torch.ones(2, 4, device=device)).sum()
        loss.backward()
        nodes = [None] * ray.train.get_context().get_world_size()
        torch.distributed.all_gather_object(nodes, here())
        with tempfile.TemporaryDirectory() as folder:
            ray.train.report(
                {"nodes": nodes, "device": str(device), "backend": torch.distributed.get_backend()},
                checkpoint=Checkpoint.from_directory(folder),
            )

    trainer = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(num_workers=2, use_gpu=True),
        run_config=RunConfig(name="hook"),
    )
    result = trainer.fit()
    SEEN["train worker"] = result.metrics["nodes"]
    print("TRAIN", json.dumps({**result.metrics, "path": result.path}))


def served() -> None:
    """Ray Serve as in its tutorial, beside the farm's own applications."""
    from ray import serve

    @serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1})
    class Where:
        def __call__(self) -> list[str]:
            return [here(), ray.get(task.options(num_cpus=0).remote())]

    handle = serve.run(Where.bind(), name="kaist.where", route_prefix="/where")
    SEEN["replica"] = [node for _ in range(8) for node in handle.remote().result(timeout_s=30)]
    serve.delete("kaist.where")
    refused = []
    for touch in (lambda: serve.run(Where.bind(), name="farm"), lambda: serve.delete("farm"), serve.shutdown):
        try:
            touch()
        except RuntimeError as error:
            refused.append(str(error))
    print("SERVE_REFUSED", json.dumps(refused))


PARTS = {
    "tasks": tasks,
    "core": core,
    "choices": choices,
    "view": view,
    "data": data,
    "train": train,
    "serve": served,
}


def main() -> None:
    ray.init()
    SEEN["driver"] = [here()]
    for part in sys.argv[1].split(","):
        start = time.time()
        PARTS[part]()
        print(f"{part}: {time.time() - start:.1f} s", flush=True)
    leases = {node["NodeID"]: node["Labels"].get("lease", "none") for node in every_node()}
    print(
        "SEEN", json.dumps({part: sorted({leases[node] for node in nodes}) for part, nodes in SEEN.items()})
    )


if __name__ == "__main__":
    main()
