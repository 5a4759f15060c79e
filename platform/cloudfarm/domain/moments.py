"""Moments that people write, such as when a reservation begins."""

import re
from datetime import UTC, datetime, timedelta

from cloudfarm.errors import InvalidInputError

MAX_DAYS_AHEAD = 365
"""How far ahead room may be reserved."""

_MOMENT = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:Z|[+-]\d{2}:[0-5]\d)", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_DAY_MS = 86_400_000


def parse_not_before(text: str, *, now_ms: int) -> int:
    """Read a time to come, in ISO 8601 with its zone, and return milliseconds.

    Raises:
        InvalidInputError: if it is none, has no zone, has passed, or is too far ahead.
    """
    written = text.strip()
    try:
        moment = datetime.fromisoformat(written) if _MOMENT.fullmatch(written) else None
    except ValueError:
        moment = None  # February 30th, say
    if moment is None:
        raise InvalidInputError(
            f"not_before: '{written[:40]}' is not a time with its zone; write it as 2026-11-22T09:00+09:00"
        )
    at_ms = (moment - _EPOCH) // _MS
    if at_ms < now_ms:
        raise InvalidInputError(f"not_before: {written} has passed")
    if at_ms > now_ms + MAX_DAYS_AHEAD * _DAY_MS:
        raise InvalidInputError(f"not_before: {written} is more than {MAX_DAYS_AHEAD} days ahead")
    return at_ms
