"""Which GPUs a host has, real or simulated, and what isolation it can give them."""

import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil

from cloudfarm.domain.host import Gpu
from cloudfarm.domain.lease import Grade, Slice
from cloudfarm.domain.quantities import MIB, MILLI
from cloudfarm.errors import HostError

SIMULATED_MODEL = "SIM"
SIMULATED_MEMORY_MIB = 16 * 1024
_QUERY = "index,name,memory.total,uuid"


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine offers to leases."""

    gpus: tuple[Gpu, ...]
    cpus: int
    memory_bytes: int
    grade: Grade
    """The best grade for a share of a GPU here."""


def discover(simulated_gpus: int | None, cpus: int | None, memory_bytes: int | None) -> Machine:
    """Return the machine, with so many simulated GPUs, or with the real ones where None is given.

    A machine without an NVIDIA driver and without a number gets 4 simulated GPUs. Simulated hosts may offer more CPUs
    than there are: their cores are as simulated as their GPUs.

    Raises:
        HostError: if the real ones cannot be told.
    """
    real = real_gpus() if simulated_gpus is None else ()
    if real:
        return Machine(
            gpus=real,
            cpus=cpus or os.cpu_count() or 1,
            memory_bytes=memory_bytes or psutil.virtual_memory().total,
            grade=Grade.MPS if mps_is_running() else Grade.ALLOCATOR,
        )
    count = 4 if simulated_gpus is None else simulated_gpus
    gpus = tuple(Gpu(index, SIMULATED_MODEL, SIMULATED_MEMORY_MIB, f"SIM-{index}") for index in range(count))
    return Machine(
        gpus=gpus,
        cpus=cpus or max(4, 4 * count),
        memory_bytes=memory_bytes or psutil.virtual_memory().total,
        grade=Grade.SIMULATED,
    )


def real_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that the driver reports; none if there is no driver.

    Raises:
        HostError: if there is a driver and it fails.
    """
    if shutil.which("nvidia-smi") is None:
        return ()
    run = subprocess.run(
        ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if run.returncode != 0:
        said = (run.stderr or run.stdout).strip()
        raise HostError(
            f"nvidia-smi fails on this host ({said}): repair it, or let CLOUDFARM_GPUS say how many GPUs to simulate"
        )
    return parse_nvidia_smi(run.stdout)


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Read the lines of ``nvidia-smi --query-gpu=index,name,memory.total,uuid --format=csv,noheader,nounits``."""
    found = []
    for line in text.splitlines():
        index, model, memory_mib, uuid = (part.strip() for part in line.split(","))
        found.append(Gpu(int(index), model, int(memory_mib), uuid))
    return tuple(found)


def mps_is_running() -> bool:
    """Whether an MPS control daemon runs where its pipe folder says."""
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")  # noqa: S108 - NVIDIA's own default
    return os.path.exists(os.path.join(pipe, "control"))  # noqa: PTH110, PTH118


def device_env(machine: Machine, piece: Slice) -> dict[str, str]:
    """Return the environment that shows a slice its GPUs, and no others, capped to what it may use.

    MPS takes its limits as ``device=size`` of the devices as the client numbers them, which is from 0.
    """
    by_index = {gpu.index: gpu for gpu in machine.gpus}
    chosen = [by_index[index] for index in piece.gpu_indices]
    if machine.grade is Grade.SIMULATED:
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in chosen),
            "CLOUDFARM_SIMULATED_GPUS": "1",
        }
    env = {"CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in chosen)}
    if 0 < piece.milli_gpus < MILLI:
        # A share in thousandths less a reserve in percent has five decimals: nothing is rounded up.
        fraction = piece.gpu_memory_bytes / (chosen[0].memory_mib * MIB)
        env["CLOUDFARM_GPU_MEMORY_FRACTION"] = f"{fraction:.5f}".rstrip("0")
        if machine.grade is Grade.MPS:
            env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={piece.gpu_memory_bytes // MIB}M"
            env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{max(1, piece.milli_gpus // 10)}"
    return env
