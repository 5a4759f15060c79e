"""Milli-GPUs, shapes and sizes: parsing what people write and refusing what can never be."""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from cloudfarm.errors import InvalidInputError, InvalidShapeError

MILLI = 1000
"""Milli-GPUs in one GPU."""
MIB = 1024**2
GIB = 1024**3
MAX_SLICES = 1024
MAX_GPUS_IN_SLICE = 64
MAX_HOURS = 24 * 366
MAX_GPU_HOURS = 1_000_000_000
"""In milli-GPU-milliseconds this is still below 2**62."""

_SHAPE = re.compile(
    r"\s*(?:(?P<count>\d{1,12})\s*[xX\u00d7]\s*)?(?P<share>\d{1,12}(?:\.\d{1,12})?)\s*", re.ASCII
)
_SIZE = re.compile(
    r"\s*(?P<number>\d{1,15}(?:\.\d{1,6})?)\s*(?P<unit>[KMGT]i?B?|B)?\s*", re.IGNORECASE | re.ASCII
)
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True, slots=True)
class Shape:
    """``count`` slices of ``milli_gpus`` each.

    A slice is either a share of one GPU (1..999 milli), whole GPUs of one host (a multiple of 1000), or no GPU (0).
    """

    count: int
    milli_gpus: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_SLICES:
            raise InvalidShapeError(f"a lease has 1 to {MAX_SLICES} slices, not {self.count}")
        if not 0 <= self.milli_gpus <= MAX_GPUS_IN_SLICE * MILLI:
            raise InvalidShapeError(
                f"a slice has 0 to {MAX_GPUS_IN_SLICE} GPUs, not {self.milli_gpus / MILLI:g}"
            )
        if self.milli_gpus > MILLI and self.milli_gpus % MILLI:
            raise InvalidShapeError(
                f"{self.milli_gpus / MILLI:g} GPUs in one slice: a share lies on one GPU (below 1), "
                "and more than one GPU comes in whole GPUs; ask for several slices instead, such as 2x0.75",
            )

    @property
    def total_milli_gpus(self) -> int:
        """Milli-GPUs of all slices together."""
        return self.count * self.milli_gpus

    @property
    def gpus_per_slice(self) -> int:
        """Physical GPUs that one slice touches: 0, 1, or the whole number."""
        return -(-self.milli_gpus // MILLI)

    def __str__(self) -> str:
        share = f"{Decimal(self.milli_gpus) / MILLI:f}"
        return share if self.count == 1 else f"{self.count}x{share}"


def gpu_memory_cap(memory_bytes: int, milli_gpus: int, reserve_percent: int) -> int:
    """Return how much of the memory of each of its GPUs a slice may use that has so many milli-GPUs.

    Of a shared GPU a part is left to the driver, which needs some for each process that uses it; a whole GPU is the
    slice's own. Cut to whole bytes, so that the slices of a GPU together never have more than is not reserved.
    """
    if milli_gpus >= MILLI:
        return memory_bytes
    return memory_bytes * milli_gpus * (100 - reserve_percent) // (100 * MILLI)


def parse_shape(text: str | float) -> Shape:
    """Read ``COUNTxSHARE`` or ``SHARE``: ``2x0.5``, ``0.25``, ``4``, ``0``.

    Raises:
        InvalidShapeError: for anything else, with a sentence that says why.
    """
    written = str(text)
    match = _SHAPE.fullmatch(written)
    if match is None:
        raise InvalidShapeError(
            f"'{written[:40]}' is not a shape; write COUNTxSHARE, such as 2x0.5, or SHARE, such as 0.25"
        )
    milli = Decimal(match["share"]) * MILLI
    if milli != milli.to_integral_value():
        raise InvalidShapeError(
            f"'{written[:40]}': a share is counted in thousandths of a GPU, such as 0.125"
        )
    return Shape(count=int(match["count"] or 1), milli_gpus=int(milli))


def parse_gpus(text: str | float) -> int:
    """Read a number of GPUs, such as a tenant's limit, and return milli-GPUs.

    Raises:
        InvalidInputError: if it is not one.
    """
    try:
        milli = Decimal(str(text).strip()) * MILLI
    except InvalidOperation:
        raise InvalidInputError(f"'{str(text)[:40]}' is not a number of GPUs") from None
    if not milli.is_finite() or milli != milli.to_integral_value() or not 0 <= milli <= 1_000_000 * MILLI:
        raise InvalidInputError(f"a number of GPUs is 0 or more, in thousandths, not {str(text)[:40]}")
    return int(milli)


def parse_bytes(text: str | float) -> int:
    """Read a size such as ``4GiB``, ``512M`` or plain bytes (binary units throughout).

    Raises:
        InvalidInputError: if it is not a size.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise InvalidInputError(
            f"'{str(text)[:40]}' is not a size; write bytes or a number with a unit, such as 4GiB"
        )
    unit = (match["unit"] or "").upper().removesuffix("B").removesuffix("I")
    return int(Decimal(match["number"]) * _UNITS[unit])


def parse_hours(text: str | float) -> int:
    """Read a length in hours, such as ``4`` or ``0.5``, and return milliseconds.

    Raises:
        InvalidInputError: if it is not a positive number of hours of at most a year.
    """
    try:
        hours = Decimal(str(text).strip())
    except InvalidOperation:
        raise InvalidInputError(f"'{str(text)[:40]}' is not a number of hours") from None
    if not hours.is_finite() or not 0 < hours <= MAX_HOURS:
        raise InvalidInputError(f"hours must be above 0 and at most {MAX_HOURS}, not {str(text)[:40]}")
    return max(1, int(hours * 3_600_000))


def parse_gpu_hours(text: str | float) -> int:
    """Read GPU-hours, such as ``0`` or ``48.5``, and return milli-GPU-milliseconds.

    Raises:
        InvalidInputError: if it is not a number from 0 to 1e9.
    """
    try:
        hours = Decimal(str(text).strip())
    except InvalidOperation:
        raise InvalidInputError(f"'{str(text)[:40]}' is not a number of GPU-hours") from None
    if not hours.is_finite() or not 0 <= hours <= MAX_GPU_HOURS:
        raise InvalidInputError(f"GPU-hours are 0 or more and at most {MAX_GPU_HOURS}, not {str(text)[:40]}")
    return int((hours * MILLI * 3_600_000).to_integral_value())


def parse_count(text: str | float, *, name: str, at_least: int = 0, at_most: int = 100_000) -> int:
    """Read a whole number within bounds.

    Raises:
        InvalidInputError: if it is not one.
    """
    try:
        number = Decimal(str(text).strip())
    except InvalidOperation:
        raise InvalidInputError(f"{name}: '{str(text)[:40]}' is not a number") from None
    if not number.is_finite() or number != number.to_integral_value() or not at_least <= number <= at_most:
        raise InvalidInputError(
            f"{name} must be a whole number from {at_least} to {at_most}, not {str(text)[:40]}"
        )
    return int(number)
