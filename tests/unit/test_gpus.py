"""What a host offers, and what a slice is shown of its GPUs and may use of them."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from cloudfarm.domain.host import Gpu
from cloudfarm.domain.lease import Grade, Slice
from cloudfarm.domain.quantities import GIB, MIB
from cloudfarm.errors import HostError
from cloudfarm.raylayer.gpus import Machine, device_env, discover, parse_nvidia_smi
from cloudfarm.steward.placing import with_gpu_memory
from cloudfarm.testing.fake_farm import make_host
from cloudfarm.testing.farm import MemoryFarm

SMI = "0, NVIDIA H200, 143771, GPU-aa\n1, NVIDIA H200, 143771, GPU-bb\n"
GPUS = (Gpu(0, "NVIDIA H200", 143771, "GPU-aa"), Gpu(1, "NVIDIA H200", 143771, "GPU-bb"))


def machine(grade: Grade) -> Machine:
    return Machine(gpus=GPUS, cpus=8, memory_bytes=1, grade=grade)


def granted(milli: int, gpu_indices: tuple[int, ...] = (1,), reserve_percent: int = 3) -> Slice:
    piece = Slice("l1", 0, "h0", gpu_indices, milli, 1, GIB)
    return with_gpu_memory(piece, replace(make_host("h0"), gpus=GPUS), reserve_percent)


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


def test_real_gpus_are_never_replaced_by_simulated_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert discover(None, None, None).grade is Grade.SIMULATED  # there is no nvidia-smi
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '{SMI}'\n")
    smi.chmod(0o700)
    assert discover(None, None, None).gpus == GPUS
    smi.write_text("#!/bin/sh\necho Failed to initialize NVML\nexit 18\n")
    with pytest.raises(HostError, match="Failed to initialize NVML"):
        discover(None, None, None)
    assert discover(2, None, None).grade is Grade.SIMULATED


@pytest.mark.parametrize(
    ("grade", "milli", "expected"),
    [
        (Grade.ALLOCATOR, 500, {"CUDA_VISIBLE_DEVICES": "1", "CLOUDFARM_GPU_MEMORY_FRACTION": "0.485"}),
        (Grade.ALLOCATOR, 1000, {"CUDA_VISIBLE_DEVICES": "1"}),
        (
            Grade.MPS,
            250,
            {
                "CUDA_VISIBLE_DEVICES": "1",
                "CLOUDFARM_GPU_MEMORY_FRACTION": "0.2425",
                "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=34864M",
                "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
            },
        ),
        (Grade.SIMULATED, 500, {"CUDA_VISIBLE_DEVICES": "1", "CLOUDFARM_SIMULATED_GPUS": "1"}),
    ],
)
def test_a_slice_sees_its_gpu_capped_to_its_share(grade: Grade, milli: int, expected: dict) -> None:
    assert device_env(machine(grade), granted(milli)) == expected


def test_a_slice_without_a_gpu_sees_none() -> None:
    assert device_env(machine(Grade.ALLOCATOR), granted(0, ()))["CUDA_VISIBLE_DEVICES"] == ""


def test_a_process_is_told_its_share_exactly_whatever_the_reserve() -> None:
    for reserve_percent in range(51):
        for milli in (1, 7, 111, 333, 500, 810, 999):
            env = device_env(machine(Grade.ALLOCATOR), granted(milli, reserve_percent=reserve_percent))
            told = Fraction(env["CLOUDFARM_GPU_MEMORY_FRACTION"])
            assert told == Fraction(milli * (100 - reserve_percent), 100_000)


@pytest.mark.parametrize(
    ("milli", "gpu_indices", "cap"),
    [
        (0, (), 0),
        (500, (1,), 143771 * MIB * 485 // 1000),
        (1000, (0,), 143771 * MIB),
        (2000, (0, 1), 2 * 143771 * MIB),
    ],
)
def test_a_slice_may_use_the_memory_of_its_gpus(milli: int, gpu_indices: tuple[int, ...], cap: int) -> None:
    assert granted(milli, gpu_indices).gpu_memory_bytes == cap


async def test_a_lease_is_granted_with_what_its_slices_may_use() -> None:
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("whole", "2x1")
    await farm.request("part", "2x0.25")
    await farm.settle()
    assert [piece.gpu_memory_bytes for piece in (await farm.lease("whole")).slices] == [16 * GIB] * 2
    cap = 16 * GIB * 2425 // 10000
    assert [piece.gpu_memory_bytes for piece in (await farm.lease("part")).slices] == [cap] * 2
