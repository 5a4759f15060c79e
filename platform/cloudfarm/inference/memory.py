"""How much memory a process may use, wherever it runs."""

import os
from pathlib import Path

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Control groups v2 and v1; within a lease node these are the node's."""


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
