"""What a client sends by WebSocket, on its way from the front door to a replica.

A replica calls back for it. In Serve's own proxy that is a call of an actor, whose arguments the actor unpickles. Here
the callback opens a TCP connection to the front door, shows a secret that is good once and for one client, and reads.
The front door reads nothing from such a connection but the secret, and gives nobody a handle on itself.
"""

import asyncio
import logging
import pickle
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

SHOW_TIMEOUT_S = 10.0
"""How long whoever connects may take to show a secret."""
_SECRET_BYTES = 32
_HEADER = struct.Struct("!I?")
"""The length of a message, and whether it is the last one."""
_DISCONNECT = "websocket.disconnect"
_CUT_OFF = {"type": _DISCONNECT, "code": 1006}

log = logging.getLogger(__name__)


class Outlet:
    """Gives a replica the messages of one client; Serve calls it in the replica until the client is gone."""

    def __init__(self, address: str, port: int, secret: bytes) -> None:
        self._address, self._port, self._secret = address, port, secret
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __call__(self, _metadata: Any) -> bytes:
        """Return the next message; without the front door the client is gone, too."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._address, self._port)
                self._streams[1].write(self._secret)
            reader, _ = self._streams
            length, is_last = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            messages = await reader.readexactly(length)
        except (OSError, EOFError):
            self._close()
            return pickle.dumps([_CUT_OFF])
        except BaseException:
            self._close()
            raise
        if is_last:
            self._close()
        return messages

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Inbox:
    """What one client sends, in the front door."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._connected = asyncio.Event()

    async def fill(self, receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        """Send the client's messages on, each when the one before was taken, until the client is gone."""
        await self._connected.wait()
        assert self._streams is not None  # noqa: S101 - set before the event
        _, writer = self._streams
        writer.transport.set_write_buffer_limits(high=0)
        is_last = False
        while not is_last:
            message = await receive()
            is_last = message["type"] == _DISCONNECT
            data = pickle.dumps([dict(message)])
            try:
                writer.write(_HEADER.pack(len(data), is_last) + data)
                await writer.drain()
            except OSError as error:
                # The replica listens no more. Why, its answer says; that the client leaves is still to be seen.
                log.debug("a client's message was not taken: %s", error)

    def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let the replica have it, on a connection that has shown the secret."""
        self._streams = reader, writer
        self._connected.set()

    def close(self) -> None:
        """End the connection, whatever was not taken yet."""
        if self._streams is not None:
            self._streams[1].transport.abort()


class Inboxes:
    """Where replicas fetch what clients send: listens on the node's address alone, and only while there are clients."""

    def __init__(self) -> None:
        self._expected: dict[bytes, Inbox] = {}
        self._clients = 0
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Inbox]:
        """Hold an inbox for a client."""
        secret = secrets.token_bytes(_SECRET_BYTES)
        self._clients += 1
        try:
            inbox = self._expected[secret] = Inbox(Outlet(*await self._listen(), secret))
            try:
                yield inbox
            finally:
                inbox.close()
        finally:
            self._expected.pop(secret, None)
            self._clients -= 1
            if self._server is not None and not self._clients:
                self._server.close()
                self._server = None

    async def _listen(self) -> tuple[str, int]:
        from ray.util import get_node_ip_address  # noqa: PLC0415 - only inside a replica

        async with self._opening:
            if self._server is None:
                self._server = await asyncio.start_server(self._admit, get_node_ip_address(), 0)
        address, port = self._server.sockets[0].getsockname()[:2]
        return address, port

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect whoever shows the secret of an inbox with it."""
        try:
            async with asyncio.timeout(SHOW_TIMEOUT_S):
                secret = await reader.readexactly(_SECRET_BYTES)
        except (TimeoutError, EOFError, OSError):
            secret = b""
        inbox = self._expected.pop(secret, None)
        if inbox is None:
            # A stranger, or a replica whose client has gone meanwhile.
            log.info("%s asks for messages that nobody sends", writer.get_extra_info("peername"))
            writer.transport.abort()
        else:
            inbox.connect(reader, writer)
