"""Connections of clients that are slow, or many: uvicorn's own protocol waits for a request's head for ever."""

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
)  # of uvicorn[standard], which ray[serve] brings

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 5\r\n"
    b"content-length: 29\r\nconnection: close\r\n\r\ntoo many connections are open"
)
_MOST = 1 << 15
MOST_HEAD_BYTES = 1 << 18
"""Of a request, and what has been read with its end; httptools itself knows no limit."""


def most_connections() -> int:
    """Return for how many clients there are descriptors: half of the process's, as it has other uses for them."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if descriptors == resource.RLIM_INFINITY else min(_MOST, descriptors // 2)


class GuardedProtocol(HttpToolsProtocol):
    """Closes a connection whose next request has no whole head in time or in so many bytes, and those beyond a number.

    Between an answer and the first byte of the next request uvicorn's own timer runs (``timeout_keep_alive``).
    """

    head_timeout_s: float
    most: int
    _overdue: asyncio.TimerHandle | None = None
    _head_bytes: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin, and wait for a head."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_TOO_MANY)
            transport.close()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Read."""
        super().data_received(data)
        self._watch()
        self._head_bytes = 0 if self._overdue is None else self._head_bytes + len(data)
        if self._head_bytes > MOST_HEAD_BYTES:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Let the timer run as long as a head is awaited. More bytes of it do not set it back."""
        is_ours = self.transport.get_protocol() is self  # and no WebSocket's by now
        if not is_ours or (self.cycle is not None and not self.cycle.response_complete):
            self._stop_watching()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _stop_watching(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
