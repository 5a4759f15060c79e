"""What vLLM's cache of keys and values gets on a GPU that other leases use, too.

Left to itself vLLM measures the memory that is free on the whole device before and after a trial run: what neighbours
take or give back meanwhile it takes for its own, and it ends, or its cache grows beyond the lease's share. So the cache
is computed from what is known: the share, the weights, the slots for adapters. Nothing here has run on a GPU yet.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors

_RESERVE_BYTES = 2 << 30
"""For a batch's activations, CUDA's graphs and its context."""
_LEAST_CACHE_BYTES = 1 << 28
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_SERVED_BYTES = 2
"""Of a floating-point number: vLLM serves all of these as float16 or bfloat16."""
_STORED_BYTES: Mapping[str, int] = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
"""Of a number of a quantised model, which stays as it is; one byte if it is not named."""

Array = tuple[str, tuple[int, ...]]
"""Type and shape, as a safetensors file names them."""


def arrays_of(folder: Path) -> list[Array]:
    """Return every array of the safetensors files of a checked folder, of which only the headers are read."""
    found: list[Array] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as arrays:
            slices = [arrays.get_slice(name) for name in arrays.keys()]  # noqa: SIM118 - no mapping
            found += [(each.get_dtype(), tuple(each.get_shape())) for each in slices]
    return found


def gpu_cache_bytes(share_bytes: int, arrays: Iterable[Array], *, adapters: int, rank: int) -> int | None:
    """Return what the cache gets of a lease's share of a GPU; None: vLLM has no room in it.

    Args:
        share_bytes: what vLLM may use.
        arrays: the model's.
        adapters: slots for adapters on every matrix, in the GPU's memory from the start.
        rank: of those.
    """
    weights = slots = 0
    for dtype, shape in arrays:
        weights += math.prod(shape) * (_SERVED_BYTES if dtype in _FLOATS else _STORED_BYTES.get(dtype, 1))
        if len(shape) == 2:  # noqa: PLR2004 - a matrix
            slots += adapters * rank * sum(shape) * _SERVED_BYTES
    cache = share_bytes - weights - slots - _RESERVE_BYTES
    return cache if cache >= _LEAST_CACHE_BYTES else None
