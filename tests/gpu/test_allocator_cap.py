"""On a real GPU: a process of a lease cannot allocate beyond its share through torch."""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU"),
]

SCRIPT = """
import torch
total = torch.cuda.get_device_properties(0).total_memory
half = torch.empty(int(total * 0.4), dtype=torch.uint8, device="cuda")
try:
    torch.empty(int(total * 0.2), dtype=torch.uint8, device="cuda")
except torch.cuda.OutOfMemoryError:
    print("capped")
"""


@pytest.mark.parametrize(("fraction", "expected"), [("0.5", "capped"), ("1", "")])
def test_a_share_of_a_gpu_is_capped(fraction: str, expected: str) -> None:
    env = {**os.environ, "CLOUDFARM_LEASE": "ltest", "CLOUDFARM_GPU_MEMORY_FRACTION": fraction}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected
