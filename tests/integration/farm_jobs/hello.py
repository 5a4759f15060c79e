"""A tenant's script: two tasks that want a GPU each."""

import ray


@ray.remote(num_gpus=1)
def which() -> str:
    return ray.get_runtime_context().get_node_id()


ray.init()
print("nodes", len(set(ray.get([which.remote() for _ in range(8)]))), flush=True)
