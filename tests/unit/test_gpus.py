"""What a host offers, and what a slice is shown of its GPUs."""

import pytest

from cloudfarm.domain.host import Gpu
from cloudfarm.domain.lease import Grade
from cloudfarm.raylayer.gpus import Machine, device_env, discover, parse_nvidia_smi

SMI = "0, NVIDIA H200, 143771, GPU-aa\n1, NVIDIA H200, 143771, GPU-bb\n"
GPUS = (Gpu(0, "NVIDIA H200", 143771, "GPU-aa"), Gpu(1, "NVIDIA H200", 143771, "GPU-bb"))


def machine(grade: Grade) -> Machine:
    return Machine(gpus=GPUS, cpus=8, memory_bytes=1, grade=grade)


def test_nvidia_smi_is_read() -> None:
    assert parse_nvidia_smi(SMI) == GPUS
    assert parse_nvidia_smi("") == ()


def test_simulated_gpus_come_in_the_number_asked_for() -> None:
    found = discover(3, None, None)
    assert [gpu.index for gpu in found.gpus] == [0, 1, 2]
    assert found.grade is Grade.SIMULATED
    assert found.cpus == 12
    assert discover(0, 7, 99).gpus == ()
    assert (discover(0, 7, 99).cpus, discover(0, 7, 99).memory_bytes) == (7, 99)


@pytest.mark.parametrize(
    ("grade", "milli", "expected"),
    [
        (Grade.ALLOCATOR, 500, {"CUDA_VISIBLE_DEVICES": "1", "CLOUDFARM_GPU_MEMORY_FRACTION": "0.5"}),
        (Grade.ALLOCATOR, 1000, {"CUDA_VISIBLE_DEVICES": "1"}),
        (
            Grade.MPS,
            250,
            {
                "CUDA_VISIBLE_DEVICES": "1",
                "CLOUDFARM_GPU_MEMORY_FRACTION": "0.25",
                "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=35942M",
                "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
            },
        ),
        (Grade.SIMULATED, 500, {"CUDA_VISIBLE_DEVICES": "1", "CLOUDFARM_SIMULATED_GPUS": "1"}),
    ],
)
def test_a_slice_sees_its_gpu_capped_to_its_share(grade: Grade, milli: int, expected: dict) -> None:
    assert device_env(machine(grade), (1,), milli) == expected


def test_a_slice_without_a_gpu_sees_none() -> None:
    assert device_env(machine(Grade.ALLOCATOR), (), 0)["CUDA_VISIBLE_DEVICES"] == ""
