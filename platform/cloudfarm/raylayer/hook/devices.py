"""Make torch fit the slice: CPU devices for simulated GPUs, a memory cap for shared real ones."""

from __future__ import annotations

import dataclasses
import inspect
import os
from typing import Any

from cloudfarm.raylayer.hook import HookError


def simulate_gpus(device_manager: Any) -> None:
    """Have Ray Train choose CPU devices for a worker to which Ray gave a simulated GPU.

    Raises:
        HookError: Ray Train chooses devices in a way that the hook does not know.
    """
    managers = getattr(device_manager, "SUPPORTED_ACCELERATOR_TORCH_DEVICE_MANAGER", {})
    cpu = getattr(device_manager, "CPUTorchDeviceManager", None)
    if "GPU" not in managers or cpu is None:
        raise HookError("ray.air._internal.device_manager has changed: GPUs cannot be simulated on this Ray")
    managers["GPU"] = cpu


def use_gloo(config: Any) -> None:
    """Have Ray Train connect its workers by gloo: it takes nccl wherever Ray announces GPUs.

    Raises:
        HookError: Ray Train chooses the backend in a way that the hook does not know.
    """
    backend: Any = getattr(config, "_TorchBackend", None)
    on_start = getattr(backend, "on_start", None)
    if on_start is None or "backend_config" not in inspect.signature(on_start).parameters:
        raise HookError(
            "ray.train.torch.config has changed: workers on simulated GPUs cannot be connected by gloo"
        )

    def on_start_with_gloo(self: Any, worker_group: Any, backend_config: Any) -> None:
        if backend_config.backend is None or "nccl" in backend_config.backend:
            backend_config = dataclasses.replace(backend_config, backend="gloo")
        on_start(self, worker_group, backend_config)

    backend.on_start = on_start_with_gloo


def cap_gpu_memory(cuda: Any) -> None:
    """Queue the memory cap for the moment when torch initialises CUDA, on every device then visible.

    The cap is one process's: two processes of a slice may hold it twice. The isolation grade `allocator` adds
    the host agent's watchdog for that reason.

    Raises:
        HookError: The fraction is not in (0, 1], or torch initialises CUDA in a way that the hook does not
        know.
    """
    text = os.environ["CLOUDFARM_GPU_MEMORY_FRACTION"]
    try:
        fraction = float(text)
    except ValueError as error:
        raise HookError(f"CLOUDFARM_GPU_MEMORY_FRACTION={text!r} is not a number") from error
    if not 0 < fraction <= 1:
        raise HookError(f"CLOUDFARM_GPU_MEMORY_FRACTION={text} is not in (0, 1]")
    missing = [
        n for n in ("_lazy_call", "device_count", "set_per_process_memory_fraction") if not hasattr(cuda, n)
    ]
    if missing:
        raise HookError(
            f"torch.cuda has no {missing}: the slice's GPU memory cannot be capped with this torch"
        )

    def cap_every_device() -> None:
        for device in range(cuda.device_count()):
            cuda.set_per_process_memory_fraction(fraction, device)

    # Torch's own queue: a public call would initialise CUDA here and now.
    cuda._lazy_call(cap_every_device)  # noqa: SLF001
