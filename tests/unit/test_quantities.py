"""Shapes, sizes and hours: whatever a person writes is read exactly or refused with a sentence."""

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.domain.quantities import (
    GIB,
    MAX_GPU_HOURS,
    MAX_GPUS_IN_SLICE,
    MAX_HOURS,
    MAX_SLICES,
    MILLI,
    Shape,
    gpu_memory_cap,
    parse_bytes,
    parse_count,
    parse_gpu_hours,
    parse_gpus,
    parse_hours,
    parse_shape,
)
from cloudfarm.errors import InvalidInputError, InvalidShapeError

counts = st.integers(1, MAX_SLICES)
shares = st.integers(0, MILLI) | st.integers(1, MAX_GPUS_IN_SLICE).map(lambda gpus: gpus * MILLI)
scalars = st.text() | st.floats() | st.integers() | st.booleans() | st.none()


@given(counts, shares)
def test_every_shape_is_read_back_from_what_it_prints(count, milli):
    shape = Shape(count, milli)
    assert parse_shape(str(shape)) == shape
    assert shape.total_milli_gpus == count * milli
    assert (shape.gpus_per_slice == 0) == (milli == 0)


@given(counts, shares, st.sampled_from(["x", "X", "\N{MULTIPLICATION SIGN}", " x "]))
def test_ways_to_write_a_shape(count, milli, times):
    assert parse_shape(f" {count}{times}{Decimal(milli) / MILLI} ") == Shape(count, milli)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_a_shape_exists_or_is_refused(count, milli):
    may_be = (
        1 <= count <= MAX_SLICES
        and 0 <= milli <= MAX_GPUS_IN_SLICE * MILLI
        and (milli <= MILLI or milli % MILLI == 0)
    )
    if may_be:
        Shape(count, milli)
    else:
        with pytest.raises(InvalidShapeError):
            Shape(count, milli)


@given(scalars)
def test_nothing_that_is_written_crashes_a_parser(text):
    for parse in (parse_shape, parse_bytes, parse_hours):
        try:
            value = parse(text)
        except InvalidInputError:
            continue  # whatever else it raised would fail here
        assert isinstance(value, Shape) or value >= 0


@given(st.decimals(min_value=0, max_value=64, places=3))
def test_thousandths_are_exact(gpus):
    milli = int(gpus * MILLI)
    if milli <= MILLI or milli % MILLI == 0:
        assert parse_shape(str(gpus)).milli_gpus == milli


@given(
    st.integers(0, 10**6),
    st.sampled_from([("", 0), ("B", 0), ("K", 1), ("KiB", 1), ("M", 2), ("mb", 2), ("GiB", 3), ("T", 4)]),
)
def test_sizes(number, unit):
    name, power = unit
    assert parse_bytes(f"{number}{name}") == number * 1024**power


@given(st.floats(min_value=1e-3, max_value=MAX_HOURS))
def test_hours_lose_less_than_a_millisecond(hours):
    assert abs(parse_hours(hours) - hours * 3_600_000) <= 1


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "-inf", "1e9", "", "four", str(MAX_HOURS + 1)])
def test_no_hours(hours):
    with pytest.raises(InvalidInputError):
        parse_hours(hours)


@pytest.mark.parametrize("count", ["1.5", "-1", "nan", "", "x", "101"])
def test_no_count(count):
    with pytest.raises(InvalidInputError, match="cpus"):
        parse_count(count, name="cpus", at_most=100)


@pytest.mark.parametrize(("text", "milli"), [("0", 0), ("1", 1000), (2.5, 2500), ("0.001", 1), (4, 4000)])
def test_numbers_of_gpus(text, milli):
    assert parse_gpus(text) == milli


@pytest.mark.parametrize("text", ["\u0663", "2x\u0663", "0.\u0665"])
def test_only_ascii_digits_are_a_shape(text):
    with pytest.raises(InvalidShapeError):
        parse_shape(text)


@given(st.integers(0, MAX_GPU_HOURS * MILLI * 3_600_000))
def test_gpu_hours_come_back_exactly(milli_gpu_ms):
    assert parse_gpu_hours(f"{Decimal(milli_gpu_ms) / MILLI / 3_600_000:f}") == milli_gpu_ms


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e10", "", "long"])
def test_no_gpu_hours(text):
    with pytest.raises(InvalidInputError, match="GPU-hours"):
        parse_gpu_hours(text)


@given(
    memory_bytes=st.integers(0, 2**40),
    cuts=st.sets(st.integers(1, MILLI - 1), min_size=1),
    reserve_percent=st.integers(0, 50),
)
def test_the_slices_of_a_shared_gpu_leave_the_reserve_to_the_driver(memory_bytes, cuts, reserve_percent):
    shares = [end - begin for begin, end in pairwise(sorted({0, MILLI, *cuts}))]
    caps = [gpu_memory_cap(memory_bytes, share, reserve_percent) for share in shares]
    left = Decimal(memory_bytes) * (100 - reserve_percent) / 100
    assert sum(shares) == MILLI
    assert sum(caps) <= left
    assert all(0 <= left * share / MILLI - cap < 1 for share, cap in zip(shares, caps, strict=True))


@pytest.mark.parametrize(
    ("milli", "reserve_percent", "cap"),
    [
        (500, 3, 388 * GIB // 10),
        (500, 0, 40 * GIB),
        (999, 50, 999 * GIB * 40 // 1000),
        (1000, 3, 80 * GIB),
        (0, 3, 0),
    ],
)
def test_what_of_80_gib_a_slice_may_use(milli, reserve_percent, cap):
    assert gpu_memory_cap(80 * GIB, milli, reserve_percent) == cap
