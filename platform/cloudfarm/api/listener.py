"""The front door's own listening socket, in whatever event loop it is opened in."""

import asyncio
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from cloudfarm.api.connections import GuardedProtocol, most_connections
from cloudfarm.errors import UnavailableError

KEEP_ALIVE_S = 75
"""Longer than the minute for which clients' pools keep connections, so that they close first."""
HEAD_TIMEOUT_S = 30.0
DRAIN_S = 10
"""How long answers that are under way at the end may still take."""


class Listener:
    """Serves an application on an address, which it has for itself.

    It does not share the port (``SO_REUSEPORT``), though a successor could then start before it ends: any process of
    the same user could share it as well, and would be sent requests with their keys.

    Args:
        app: is served.
        address: of this machine.
        port: is listened on.
        max_message_bytes: the most that a client may send in one message of a WebSocket.
        head_timeout_s: how long a client may take for a request's head.
        most: how many connections there may be; None: as many as there are descriptors for.
    """

    def __init__(
        self,
        app: FastAPI,
        address: str,
        port: int,
        *,
        max_message_bytes: int,
        head_timeout_s: float = HEAD_TIMEOUT_S,
        most: int | None = None,
    ) -> None:
        self._address, self._port = address, port
        limits = {"head_timeout_s": head_timeout_s, "most": most_connections() if most is None else most}
        config = uvicorn.Config(
            app,
            http=type("LimitedProtocol", (GuardedProtocol,), limits),  # uvicorn makes one for each connection
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
            ws="websockets-sansio",  # reads no more while a message waits
            ws_max_size=max_message_bytes,
            ws_per_message_deflate=False,  # else a client's few bytes are many messages at once in memory
        )
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to listen; return when requests are answered.

        Raises:
            UnavailableError: if the address cannot be had.
        """
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self._address, self._port))
        except OSError as error:
            listening.close()
            raise UnavailableError(f"cannot listen on {self._address}:{self._port}: {error}") from error
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            self.check()
            await asyncio.sleep(0.01)

    def check(self) -> None:
        """Raise if it does not listen.

        Raises:
            UnavailableError: with the reason, if it has ended.
        """
        if self._serving is None or self._serving.done():
            reason = self._serving.exception() if self._serving is not None else None
            raise UnavailableError(f"the front door does not listen: {reason}")

    async def close(self) -> None:
        """Listen no longer, and return when what was asked is answered, or after a while."""
        if self._serving is not None:
            self._server.should_exit = True
            with suppress(asyncio.CancelledError):
                await self._serving
