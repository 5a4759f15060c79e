"""Placement: nothing is over-committed, gangs are whole, the same input gives the same placement."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.quantities import Shape, parse_shape
from cloudfarm.testing.fake_farm import GIB, make_host
from cloudfarm.testing.naive_placement import Rooms, ever_fits, place


def ask(shape: str, cpus: int = 1, memory_bytes: int = GIB, **more) -> Ask:
    return Ask(shape=parse_shape(shape), cpus=cpus, memory_bytes=memory_bytes, duration_ms=3_600_000, **more)


def test_two_halves_lie_on_two_gpus() -> None:
    placed = place(Rooms.of([make_host("h0"), make_host("h1")], ()), "l1", ask("2x0.5"))
    assert placed is not None
    assert [(piece.host, piece.gpu_indices) for piece in placed] == [("h0", (0,)), ("h0", (1,))]


def test_replicas_may_share_a_gpu() -> None:
    placed = place(Rooms.of([make_host("h0")], ()), "l1", ask("4x0.25", distinct_gpus=False))
    assert placed is not None
    assert {piece.gpu_indices for piece in placed} == {(0,)}


def test_a_gang_that_does_not_fit_takes_nothing() -> None:
    rooms = Rooms.of([make_host("h0")], ())
    assert place(rooms, "l1", ask("3x1")) is None
    assert place(rooms, "l2", ask("2x1")) is not None


def test_whole_gpus_of_one_slice_lie_on_one_host() -> None:
    hosts = [make_host("h0", 2), make_host("h1", 4)]
    placed = place(Rooms.of(hosts, ()), "l1", ask("3"))
    assert placed is not None
    assert placed[0].host == "h1"
    assert placed[0].gpu_indices == (0, 1, 2)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (ask("4"), False),
        (ask("2"), True),
        (ask("5x0.5"), False),  # five distinct GPUs of four
        (ask("4x1"), True),
        (ask("1", cpus=17), False),
        (ask("1", memory_bytes=65 * GIB), False),
        (ask("1", gpu_model="H200"), False),
        (ask("0", cpus=16), True),
    ],
)
def test_ever_fits(wanted: Ask, fits: bool) -> None:
    assert ever_fits([make_host("h0"), make_host("h1")], wanted) is fits


shares = st.one_of(st.integers(0, 1000), st.sampled_from([2000, 3000]))


@given(st.lists(st.tuples(st.integers(1, 4), shares, st.integers(1, 4), st.booleans()), max_size=30))
def test_nothing_is_ever_over_committed(wishes) -> None:
    hosts = [
        make_host("h0", 2, cpus=8, memory_bytes=8 * GIB),
        make_host("h1", 4, cpus=8, memory_bytes=8 * GIB),
    ]
    rooms = Rooms.of(hosts, ())
    held = []
    for number, (count, milli, cpus, distinct) in enumerate(wishes):
        wanted = Ask(Shape(count, milli), cpus, GIB, 1000, distinct_gpus=distinct)
        placed = place(rooms, f"l{number}", wanted)
        if placed is None:
            continue
        assert len(placed) == count
        if distinct:
            gpus = [(piece.host, gpu) for piece in placed for gpu in piece.gpu_indices]
            assert len(gpus) == len(set(gpus))
        held.extend(placed)
    for room in rooms.by_host.values():
        assert all(0 <= free <= 1000 for free in room.free_milli)
        assert room.free_cpus >= 0
        assert room.free_memory_bytes >= 0
    fresh = Rooms.of(hosts, held)
    assert fresh.by_host == rooms.by_host
