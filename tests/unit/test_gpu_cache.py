"""vLLM's cache on a shared GPU stays in the lease's share, whatever the neighbours do."""

import numpy as np
import pytest
import safetensors.numpy
import torch

from cloudfarm.inference import engine
from cloudfarm.inference.gpu_cache import arrays_of, gpu_cache_bytes

GIB = 1 << 30
MATRIX = ("BF16", (4096, 4096))


def cache(share, arrays, adapters=4, rank=64):
    return gpu_cache_bytes(share, arrays, adapters=adapters, rank=rank)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_the_cache_is_what_weights_adapters_and_reserve_leave(dtype):
    arrays = [(dtype, (4096, 1024)), (dtype, (1024,))]
    weights = 2 * (4096 * 1024 + 1024)
    slots = 4 * 64 * (4096 + 1024) * 2  # of the matrix only
    assert cache(10 * GIB, arrays) == 8 * GIB - weights - slots
    assert cache(10 * GIB, arrays, adapters=0) == 8 * GIB - weights


def test_quantised_numbers_are_kept_as_they_are():
    assert cache(10 * GIB, [("I32", (1024,)), ("F8_E4M3", (1024,)), ("U8", (1024,))]) == 8 * GIB - 6 * 1024


def test_too_small_a_share_is_no_room():
    seven_billion = [MATRIX] * 417
    assert cache(16 * GIB, seven_billion) is None  # 13 GiB of weights
    assert cache(24 * GIB, seven_billion) > 5 * GIB
    assert cache(2 * GIB + GIB // 4, []) == GIB // 4
    assert cache(2 * GIB + GIB // 4 - 1, []) is None


def test_arrays_are_read_from_all_files(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros((3, 2), np.float16)}, tmp_path / "1.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(4, np.int32)}, tmp_path / "2.safetensors")
    assert arrays_of(tmp_path) == [("F16", (3, 2)), ("I32", (4,))]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        ("", (None, True)),  # alone on the GPU vLLM measures for itself
        ("0.5", (9 * GIB - 2 * GIB, True)),
        ("0.1", (None, False)),
    ],
)
def test_the_share_of_a_gpu_decides(tmp_path, monkeypatch, fraction, expected):
    monkeypatch.setenv("CLOUDFARM_GPU_MEMORY_FRACTION", fraction)
    properties = type("Properties", (), {"total_memory": 20 * GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    assert engine._cache(tmp_path, "cuda") == expected
