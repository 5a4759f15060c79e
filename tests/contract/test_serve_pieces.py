"""Pieces of answers between a replica and the front door: over real sockets, without Serve."""

import asyncio
import json
import os
import pickle
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudfarm.domain.generation import Piece, Refusal
from cloudfarm.raylayer import serve_pieces
from cloudfarm.raylayer.serve_pieces import Courier, Mailbox, Mailboxes

SOON_S = 10.0
TCP_REPAIR = 19
"""Of Linux: a socket that has it is closed without telling the other end."""
PIECES = [
    Piece(prompt_tokens=3),
    Piece(text="서울", tokens=2),
    Piece(text="!", tokens=1, finish_reason="stop"),
]


@pytest.fixture
async def mailboxes(monkeypatch) -> AsyncIterator[Mailboxes]:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(serve_pieces, "END_TIMEOUT_S", 0.2)
    opened = Mailboxes()
    yield opened
    opened.close()
    for key, opening in list(serve_pieces._lines.items()):
        if key[0] is asyncio.get_running_loop():
            opening.result()._transport.close()
            await opening.result().lost


def moved(mailbox: Mailbox) -> Courier:
    """Return a courier as a replica gets it."""
    courier: Courier = pickle.loads(pickle.dumps(mailbox.courier))  # noqa: S301 - our own
    return courier


async def bring(courier: Courier, pieces: Sequence[Piece] = PIECES) -> None:
    for piece in pieces:
        await courier.bring(piece)
    await courier.end()


async def taken(mailbox: Mailbox) -> list[Any]:
    found = []
    while (item := await mailbox.take(SOON_S)) is not None:
        found.append(item)
    return found


def total(pieces: Sequence[Piece]) -> tuple[Any, ...]:
    return (
        "".join(each.text for each in pieces),
        sum(each.tokens for each in pieces),
        sum(each.prompt_tokens for each in pieces),
        [each.finish_reason for each in pieces if each.finish_reason],
    )


def untold(_piece: Piece) -> None:
    """Nobody pays."""


async def connected(mailbox: Mailbox) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(mailbox.courier._address, mailbox.courier._port)


def frame(*items: Any) -> bytes:
    data = json.dumps(items).encode()
    return struct.pack("!I", len(data)) + data


async def sent_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), SOON_S)
    writer.close()


async def test_pieces_come_whole_and_in_order(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        assert not mailbox.is_complete
        _, found = await asyncio.gather(bring(moved(mailbox)), taken(mailbox))
        assert total(found) == total(PIECES)
        assert mailbox.is_complete


async def test_each_piece_is_there_as_soon_as_it_was_brought(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        courier = moved(mailbox)
        for piece in PIECES:
            await courier.bring(piece)
            assert await mailbox.take(SOON_S) == piece


async def test_answers_share_a_connection_and_a_frame(mailboxes: Mailboxes, monkeypatch):
    frames = []
    received = serve_pieces._Delivery.data_received
    monkeypatch.setattr(
        serve_pieces._Delivery,
        "data_received",
        lambda self, data: (frames.append((self, data)), received(self, data)),
    )
    async with mailboxes.one(untold) as first, mailboxes.one(untold) as second:
        couriers = moved(first), moved(second)
        await couriers[0].bring(Piece(text="open"))
        await first.take(SOON_S)
        frames.clear()
        for mark, courier in zip("ab", couriers, strict=True):
            await courier.bring(Piece(text=mark))
        assert [(await box.take(SOON_S)).text for box in (first, second)] == ["a", "b"]
    ((_, data),) = frames
    assert len(json.loads(data[4:])) == 2


async def test_what_nobody_has_taken_is_put_together(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        await bring(
            moved(mailbox), [Piece(text=str(number), tokens=1) for number in range(1000)] + PIECES[2:]
        )
        first = await mailbox.take(SOON_S)
        found = [first, *await taken(mailbox)]
        assert total(found) == ("".join(map(str, range(1000))) + "!", 1001, 0, ["stop"])
        assert len(found) < 100


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            Piece,
            st.integers(0, 2),
            st.text(max_size=3),
            st.integers(0, 3),
            st.integers(0, 3),
            st.none(),
        )
    ),
    st.lists(st.booleans()),
)
def test_nothing_is_lost_or_mixed_by_putting_together(pieces: list[Piece], takes: list[bool]):
    async def run() -> None:
        mailbox, found = Mailbox(Courier("", 0, ""), untold), []
        for number, piece in enumerate(pieces):
            mailbox.put(piece)
            if number < len(takes) and takes[number]:
                found.append(await mailbox.take(SOON_S))
        mailbox.complete(len(pieces))
        found += await taken(mailbox)
        for index in range(3):
            of_choice = [[each for each in some if each.index == index] for some in (pieces, found)]
            assert total(of_choice[0]) == total(of_choice[1])
        assert len(found) <= sum(takes) + 3

    asyncio.run(run())


async def test_a_piece_that_was_lost_is_an_error_and_no_shorter_answer(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        courier = moved(mailbox)
        courier._sent = 1
        await bring(courier)
        with pytest.raises(ConnectionResetError, match="lost"):
            await taken(mailbox)
        assert not mailbox.is_complete


async def test_a_replica_that_goes_fails_its_answers_after_what_it_has_sent(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox, mailboxes.one(untold) as other:
        _, writer = await connected(mailbox)
        writer.write(frame([mailbox.courier.secret, [0, "half", 1, 0, None]]))
        assert (await mailbox.take(SOON_S)).text == "half"
        writer.transport.abort()
        with pytest.raises(ConnectionResetError):
            await mailbox.take(SOON_S)
        await bring(moved(other))
        assert total(await taken(other)) == total(PIECES)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop a connection without a word")
async def test_a_replica_whose_host_goes_without_a_word_is_found_gone(mailboxes: Mailboxes, monkeypatch):
    monkeypatch.setattr(serve_pieces, "SILENT_S", 1)
    async with mailboxes.one(untold) as mailbox:
        with socket.create_connection((mailbox.courier._address, mailbox.courier._port)) as line:
            line.sendall(frame([mailbox.courier.secret, [0, "half", 1, 0, None]]))
            assert (await mailbox.take(SOON_S)).text == "half"
            line.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        with pytest.raises(ConnectionResetError):
            await mailbox.take(SOON_S)


async def test_a_replica_cannot_fill_the_front_doors_memory(monkeypatch):
    monkeypatch.setattr(serve_pieces, "_MOST_TEXT", 100)
    monkeypatch.setattr(serve_pieces, "_MOST_CHOICES", 3)
    for flood in ([Piece(text="x" * 10)] * 11, [Piece(number, "x") for number in range(4)]):
        mailbox = Mailbox(Courier("", 0, ""), untold)
        for piece in [*flood, flood[0]]:
            mailbox.put(piece)
        with pytest.raises(BufferError):
            await mailbox.take(SOON_S)


async def test_who_brings_something_else_is_sent_away(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            struct.pack("!I", 3) + b"{{{",
            frame([mailbox.courier.secret, [1, 2, 3, 4, 5, 6, 7]]),
            frame(7),
        ):
            reader, writer = await connected(mailbox)
            writer.write(data)
            await sent_away(reader, writer)


async def test_who_shows_no_secret_is_sent_away(mailboxes: Mailboxes, monkeypatch):
    monkeypatch.setattr(serve_pieces, "SHOW_TIMEOUT_S", 0.01)
    async with mailboxes.one(untold) as mailbox:
        reader, writer = await connected(mailbox)
        writer.write(frame(["0" * 32, [0, "forged", 1, 0, None]]))
        await sent_away(reader, writer)
        await bring(moved(mailbox))
        assert total(await taken(mailbox)) == total(PIECES)


async def test_what_was_made_for_a_client_that_has_gone_is_told_of_until_the_replica_has_ended(
    mailboxes: Mailboxes,
):
    told: list[Piece] = []

    async def aborted(courier: Courier) -> None:
        for piece in PIECES[1:]:
            await courier.bring(piece)
        await courier.stop()

    async with mailboxes.one(told.append) as mailbox:
        courier = moved(mailbox)
        await courier.bring(PIECES[0])
        await mailbox.take(SOON_S)
        aborting = asyncio.create_task(aborted(courier))
    assert told == PIECES
    await aborting
    assert not mailboxes.expected


@pytest.mark.parametrize("ends", ["never", "with the replica"])
async def test_who_has_gone_waits_for_no_replica_that_does_not_end(mailboxes: Mailboxes, monkeypatch, ends):
    monkeypatch.setattr(serve_pieces, "END_TIMEOUT_S", 0.01 if ends == "never" else 60.0)
    told: list[Piece] = []
    least = 1 if ends == "never" else 2
    async with asyncio.timeout(SOON_S), mailboxes.one(told.append) as mailbox:
        courier = moved(mailbox)
        await courier.bring(PIECES[0])
        await mailbox.take(SOON_S)
        await courier.bring(PIECES[1])
        if ends != "never":
            await asyncio.sleep(0)  # it is written at the end of this turn
            (await line_of(courier))._transport.close()  # after what was written
    assert told[:least] == PIECES[:least]


async def test_a_call_that_fails_is_charged_what_comes_of_it_later(mailboxes: Mailboxes):
    told: list[Piece] = []
    async with mailboxes.one(told.append) as mailbox:
        courier = moved(mailbox)
        await courier.bring(PIECES[0])
        await mailbox.take(SOON_S)
        await ended_with(mailbox, KeyError("inside"))
        with pytest.raises(KeyError):
            await mailbox.take(SOON_S)
        await courier.bring(PIECES[1])
        await courier.stop()
    assert told == PIECES[:2]


async def test_what_comes_when_all_was_said_is_thrown_away(mailboxes: Mailboxes, monkeypatch):
    monkeypatch.setattr(serve_pieces, "END_TIMEOUT_S", 0.01)
    async with mailboxes.one(untold) as mailbox:
        courier = moved(mailbox)
        await courier.bring(PIECES[0])
        await mailbox.take(SOON_S)
    async with mailboxes.one(untold) as other:
        await courier.bring(PIECES[1])
        await bring(moved(other))
        assert total(await taken(other)) == total(PIECES)


async def test_without_the_front_door_bringing_fails(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        courier = moved(mailbox)
    mailboxes.close()
    with pytest.raises(OSError):  # noqa: PT011 - as the system puts it
        await courier.bring(PIECES[0])
    assert not [key for key in serve_pieces._lines if key[2] == courier._port]


async def line_of(courier: Courier) -> serve_pieces._Line:
    return await courier._line()


async def test_a_connection_that_was_lost_is_opened_anew(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox, mailboxes.one(untold) as other:
        await bring(moved(mailbox))
        line = await line_of(mailbox.courier)
        line._transport.abort()
        await line.lost
        await bring(moved(other))
        assert total(await taken(other)) == total(PIECES)


async def test_who_waits_for_room_hears_that_the_front_door_has_gone(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        courier = moved(mailbox)
        line = await line_of(courier)
        line.pause_writing()
        bringing = asyncio.create_task(courier.bring(PIECES[0]))
        line._transport.abort()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(bringing, SOON_S)


async def ended_with(mailbox: Mailbox, result: Any) -> None:
    async def call() -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    task = asyncio.create_task(call())
    task.add_done_callback(mailbox.answered)
    await asyncio.wait((task,))


async def test_a_call_may_end_with_something_else_or_an_error(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        await ended_with(mailbox, Refusal("too long"))
        assert await mailbox.take(SOON_S) == Refusal("too long")
    async with mailboxes.one(untold) as mailbox:
        await ended_with(mailbox, KeyError("inside"))
        with pytest.raises(KeyError):
            await mailbox.take(SOON_S)
    async with mailboxes.one(untold) as mailbox:
        await ended_with(mailbox, asyncio.CancelledError())
        with pytest.raises(ConnectionResetError):
            await mailbox.take(SOON_S)


async def test_a_call_that_has_ended_does_not_wait_for_ever_for_its_pieces(mailboxes: Mailboxes, monkeypatch):
    monkeypatch.setattr(serve_pieces, "END_TIMEOUT_S", 0.01)
    async with mailboxes.one(untold) as mailbox:
        await ended_with(mailbox, None)
        with pytest.raises(TimeoutError, match="last pieces"):
            await mailbox.take(SOON_S)


async def test_an_answer_that_has_come_is_whole_however_late_it_is_taken(mailboxes: Mailboxes, monkeypatch):
    monkeypatch.setattr(serve_pieces, "END_TIMEOUT_S", 0.01)
    async with mailboxes.one(untold) as mailbox:
        called = asyncio.create_task(ended_with(mailbox, None))
        await bring(moved(mailbox))
        await mailbox._came.wait()
        await called
        (await line_of(mailbox.courier))._transport.abort()  # the replica has gone
        await asyncio.sleep(0.05)
        assert total(await taken(mailbox)) == total(PIECES)


async def test_pieces_are_told_of_as_they_come_and_not_as_they_are_taken(mailboxes: Mailboxes):
    told, enough = [], asyncio.Event()

    def tell(piece: Piece) -> None:
        told.append(piece)
        if len(told) == len(PIECES):
            enough.set()

    async with mailboxes.one(tell) as mailbox:
        await bring(moved(mailbox))
        await asyncio.wait_for(enough.wait(), SOON_S)
    assert told == PIECES


async def test_a_piece_that_does_not_come_in_time(mailboxes: Mailboxes):
    async with mailboxes.one(untold) as mailbox:
        with pytest.raises(TimeoutError):
            await mailbox.take(0.01)
