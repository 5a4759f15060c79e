"""The pieces of answers, on their way from a replica to the front door: all answers over one TCP connection.

As a stream of Serve's each piece would be a message of gRPC, and every token costs one. Here a request is a call that
streams nothing, and ends with its answer; with it goes a courier, which brings the pieces to a mailbox at the front
door. All that a replica has to send in one turn of its event loop, such as a token for each request in the engine's
batch, is one frame.

A frame is its length and a JSON list of items, ``[secret, piece]`` or ``[secret, number of pieces]`` at the end, or
``[secret, null]`` where there is an end before that. The secret is the answer's own, so nobody else can send a piece of
it; nothing but JSON is read from a connection.
"""

import asyncio
import json
import logging
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from cloudfarm.domain.generation import Piece

SHOW_TIMEOUT_S = 10.0
"""How long whoever connects may take to show the secret of an answer."""
END_TIMEOUT_S = 10.0
SILENT_S, PROBE_S, PROBES = 10, 5, 3
"""A replica that says nothing for so long is probed so often: one whose host has gone without a word is found gone."""
_KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
"""How long the last pieces may take when the call has ended, or nobody reads any more."""
_MOST_BYTES = 1 << 26
_MOST_CHOICES, _MOST_TEXT = 1000, 1 << 24
"""Of an answer that wait at the front door: many more than any has, lest a replica fill its memory."""
_HEADER = struct.Struct("!I")
_SECRET_BYTES = 16

_lines: dict[tuple[asyncio.AbstractEventLoop, str, int], "asyncio.Task[_Line]"] = {}
"""Connections of this process to front doors."""

log = logging.getLogger(__name__)


class Courier:
    """Brings the pieces of one answer to its mailbox; goes to the replica with the request."""

    def __init__(self, address: str, port: int, secret: str) -> None:
        self._address, self._port, self.secret = address, port, secret
        self._sent = 0

    async def bring(self, piece: Piece) -> None:
        """Send a piece.

        Raises:
            OSError: the front door has gone.
        """
        self._sent += 1
        said = (piece.index, piece.text, piece.tokens, piece.prompt_tokens, piece.finish_reason)
        await (await self._line()).send((self.secret, said))

    async def end(self) -> None:
        """Say that this was all; raises as :meth:`bring`."""
        await (await self._line()).send((self.secret, self._sent))

    async def stop(self) -> None:
        """Say that there will be no more, although it was not all."""
        if self._sent:
            with suppress(OSError):  # then the front door has gone, and nobody is to be told
                await (await self._line()).send((self.secret, None))

    async def _line(self) -> "_Line":
        key = asyncio.get_running_loop(), self._address, self._port
        opening = _lines.get(key)
        if opening is None:
            opening = _lines[key] = asyncio.create_task(_open_line(self._address, self._port))
            opening.add_done_callback(lambda opened: _forget(key, opened))
        return opening.result() if opening.done() else await asyncio.shield(opening)


class _Line(asyncio.Protocol):
    """A replica's end of a connection."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Event()
        self._free.set()
        self.lost = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are, though not by their class

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)
        self._free.set()

    def pause_writing(self) -> None:
        self._free.clear()

    def resume_writing(self) -> None:
        self._free.set()

    async def send(self, item: Any) -> None:
        if not self._items:
            self._loop.call_soon(self._flush)
        self._items.append(item)
        await self._free.wait()
        if self.lost.done():
            raise ConnectionResetError("the front door takes no more")

    def _flush(self) -> None:
        data = json.dumps(self._items).encode()
        self._items = []
        self._transport.write(_HEADER.pack(len(data)) + data)


async def _open_line(address: str, port: int) -> _Line:
    _, line = await asyncio.get_running_loop().create_connection(_Line, address, port)
    return line


def _forget(key: tuple[asyncio.AbstractEventLoop, str, int], opened: "asyncio.Task[_Line]") -> None:
    """Let the next piece open another connection: at once if there is none, else when it is lost."""
    if opened.cancelled() or opened.exception() is not None:
        del _lines[key]
    else:
        opened.result().lost.add_done_callback(lambda _lost: _lines.pop(key, None))


class Mailbox:
    """What has come of one answer, at the front door.

    Args:
        courier: goes to the replica.
        made: told of each piece as it comes.
    """

    def __init__(self, courier: Courier, made: Callable[[Piece], None]) -> None:
        self.courier = courier
        self._made = made
        self.is_complete = False
        """Whether every piece has been taken."""
        self.line: object = None
        """The connection over which pieces come."""
        self._waiting: dict[int, Piece] = {}
        """For each choice what has not been taken yet, put together."""
        self._pieces = 0
        self._is_whole = False
        self._instead: Any = None
        """What the call returned."""
        self._came = asyncio.Event()
        self._end: BaseException | None = None
        self._over = asyncio.Event()
        """Nothing more can come."""

    def put(self, piece: Piece) -> None:
        """Add a piece; to those of its choice that nobody has taken yet."""
        self._made(piece)
        if self._end is not None:
            return  # what is missing before it will not come
        self._pieces += 1
        before = self._waiting.get(piece.index)
        if before is not None:
            piece = Piece(
                piece.index,
                before.text + piece.text,
                before.tokens + piece.tokens,
                before.prompt_tokens + piece.prompt_tokens,
                piece.finish_reason or before.finish_reason,
            )
        self._waiting[piece.index] = piece
        if len(self._waiting) > _MOST_CHOICES or len(piece.text) > _MOST_TEXT:
            self._waiting.clear()
            self.fail(BufferError("more was sent than any answer has"))
        self._came.set()

    def complete(self, pieces: int) -> None:
        """Take note that so many pieces were all."""
        self._over.set()
        if pieces != self._pieces:
            self.fail(ConnectionResetError("pieces were lost on the way"))
        else:
            self._is_whole = True
            self._came.set()

    def stop(self, error: BaseException) -> None:
        """Take note that nothing more will come; raise the error as :meth:`fail` does."""
        self._over.set()
        self.fail(error)

    async def settled(self) -> None:
        """Return when all that was made has come: the replica has said so, or is gone."""
        if self.line is None:
            return  # nothing was made yet, as far as is known
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._over.wait()
        except TimeoutError:
            log.warning(
                "a replica does not say that it has ended an answer; what it makes of it now is not charged"
            )

    def fail(self, error: BaseException) -> None:
        """Raise an error after the pieces that have come, if they were not all."""
        if self._is_whole:
            return
        self._end = self._end or error
        self._came.set()

    def answered(self, call: "asyncio.Task[Any]") -> None:
        """Take note of how the call ended: with an error, with something else instead of pieces, or as it should."""
        if call.cancelled():
            self.fail(ConnectionResetError("the call was cancelled"))
        elif (error := call.exception()) is not None:
            self.fail(error)
        elif call.result() is not None:
            self._instead = call.result()
            self._came.set()
        elif not self._is_whole:
            late = TimeoutError("the last pieces did not come")
            asyncio.get_running_loop().call_later(END_TIMEOUT_S, self.fail, late)

    async def take(self, timeout_s: float) -> Any:
        """Return the next piece, or what the call returned instead; None at the end.

        Raises:
            TimeoutError: if nothing comes in time.
            Exception: what the call raised, or that a piece was lost.
        """
        while not self._waiting:
            if self._end is not None:
                raise self._end
            if self._instead is not None or self._is_whole:
                self.is_complete = self._is_whole
                return self._instead
            self._came.clear()
            async with asyncio.timeout(timeout_s):
                await self._came.wait()
        return self._waiting.pop(next(iter(self._waiting)))


class Mailboxes:
    """Where replicas bring pieces: listens on the node's address alone, from the first answer on."""

    def __init__(self) -> None:
        self.expected: dict[str, Mailbox] = {}
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def one(self, made: Callable[[Piece], None]) -> AsyncIterator[Mailbox]:
        """Hold a mailbox for an answer, which tells of each piece as it comes.

        Whoever leaves before the end has cancelled the call by then, and waits for what was made before that was heard.
        """
        address, port = self._listening() if self._server is not None else await self._listen()
        secret = secrets.token_hex(_SECRET_BYTES)
        mailbox = self.expected[secret] = Mailbox(Courier(address, port, secret), made)
        try:
            try:
                yield mailbox
            finally:
                await mailbox.settled()
        finally:
            del self.expected[secret]

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _listen(self) -> tuple[str, int]:
        from ray.util import get_node_ip_address  # noqa: PLC0415 - only inside a replica

        async with self._opening:
            if self._server is None:
                loop = asyncio.get_running_loop()
                self._server = await loop.create_server(lambda: _Delivery(self), get_node_ip_address(), 0)
        return self._listening()

    def _listening(self) -> tuple[str, int]:
        assert self._server is not None  # noqa: S101 - asked for where there is one
        address, port = self._server.sockets[0].getsockname()[:2]
        return address, port


class _Delivery(asyncio.Protocol):
    """The front door's end of a connection."""

    def __init__(self, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes
        self._received = bytearray()
        self._has_shown = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are, though not by their class
        line = transport.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in zip(_KEEPALIVE, (SILENT_S, PROBE_S, PROBES), strict=True):
            line.setsockopt(socket.IPPROTO_TCP, option, value)
        self._showing = asyncio.get_running_loop().call_later(SHOW_TIMEOUT_S, self._end_strangers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._showing.cancel()
        for mailbox in self._mailboxes.expected.values():
            if mailbox.line is self:
                mailbox.stop(exc or ConnectionResetError("the replica has gone"))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        try:
            while (end := _end_of_frame(received)) <= len(received):
                items = json.loads(received[_HEADER.size : end])
                del received[:end]
                for secret, said in items:
                    self._hand_over(secret, said)
        except (ValueError, TypeError) as bad:
            log.warning("%s sends no pieces: %s", self._transport.get_extra_info("peername"), bad)
            self._transport.abort()

    def _hand_over(self, secret: str, said: Any) -> None:
        mailbox = self._mailboxes.expected.get(secret)
        if mailbox is None:
            return  # the client has gone meanwhile
        self._has_shown = True
        mailbox.line = self
        if said is None:
            mailbox.stop(ConnectionAbortedError("the replica has given up the answer"))
        elif isinstance(said, int):
            mailbox.complete(said)
        else:
            mailbox.put(Piece(*said))

    def _end_strangers(self) -> None:
        if not self._has_shown:
            log.info("%s brings pieces that nobody expects", self._transport.get_extra_info("peername"))
            self._transport.abort()


def _end_of_frame(received: bytearray) -> int:
    """Return where the first frame ends, so far as its length is there."""
    if len(received) < _HEADER.size:
        return _HEADER.size
    (length,) = _HEADER.unpack_from(received)
    if length > _MOST_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return _HEADER.size + int(length)
