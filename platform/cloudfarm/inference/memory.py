"""How much memory a lease may use, and what of it an engine gets for keys and values."""

import math
import os
from pathlib import Path

import torch

from cloudfarm.training.hf_folder import weight_shapes

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Control groups v2 and v1; within a lease node these are the node's."""
_VLLM_BYTES = 5 << 29
"""What vLLM's processes have on a CPU beside weights and cache, with room for adapters, and the lease node."""
OWN_BYTES = 3 << 29
"""What the transformers engine has on a CPU beside weights and cache, reading a prompt of 8,192 tokens, with room for
adapters, and the lease node."""
GPU_PART = 0.9
"""Of what the lease may use; the rest is for what no engine counts."""
LEAST_CACHE_BYTES = 1 << 28
_MOST_CACHE_BYTES = 1 << 30


def memory_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the least of the machine's memory and of the limit that the lease node's control group shows."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _LIMITS:
        try:
            text = (cgroups / name).read_text().strip()
        except OSError:
            continue
        if text != "max":
            found.append(int(text))
    return min(found)


def gpu_memory_fraction() -> float:
    """Return the part of each GPU that the lease may use: what its start-up hook caps torch to."""
    return float(os.environ.get("CLOUDFARM_GPU_MEMORY_FRACTION") or 1)


def float32_bytes(folder: Path) -> int:
    """Return what a model's weights take in float32."""
    shapes = (shape for path in folder.glob("*.safetensors") for shape in weight_shapes(path).values())
    return 4 * sum(map(math.prod, shapes))


def cpu_cache_bytes(memory: int, weights: int) -> int | None:
    """Return what vLLM's cache of keys and values gets of a lease's memory on a CPU; None: vLLM has no room in it."""
    cache = (memory - weights - _VLLM_BYTES) // 2
    return min(cache, _MOST_CACHE_BYTES) if cache >= LEAST_CACHE_BYTES else None


def own_cache_bytes(memory: int, weights: int) -> int:
    """Return what the transformers engine's keys and values get of a lease's memory on a CPU: never nothing."""
    return max(memory - weights - OWN_BYTES, LEAST_CACHE_BYTES)


def own_gpu_cache_bytes() -> int:
    """Return what the transformers engine's keys and values get of the lease's GPU, once the weights are on it."""
    whole = int(torch.cuda.get_device_properties(0).total_memory)
    weights = int(torch.cuda.memory_allocated())
    return max(int(whole * GPU_PART * gpu_memory_fraction()) - weights, LEAST_CACHE_BYTES)
