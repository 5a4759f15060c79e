"""Time as a port: the farm counts in whole milliseconds since the epoch, UTC."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time; tests advance a manual one instead of sleeping."""

    def now_ms(self) -> int:
        """Return milliseconds since the epoch, UTC."""


class SystemClock:
    """The host's clock."""

    def now_ms(self) -> int:
        """Return milliseconds since the epoch, UTC."""
        return time.time_ns() // 1_000_000


def iso(at_ms: int | None) -> str | None:
    """Return an instant as ISO 8601 in UTC with milliseconds, or None for None."""
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
