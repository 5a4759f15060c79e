"""What JSON from strangers may hold: text that every database can keep, and finite numbers."""

import math
from typing import Any

from cloudfarm.errors import InvalidInputError

MAX_DEPTH = 64


def check_json(value: Any, *, what: str) -> None:
    """Refuse what Python reads as JSON but nobody else does, or no database keeps.

    Raises:
        InvalidInputError: for NaN and infinities, null bytes, lone surrogates and absurd nesting.
    """
    left: list[tuple[Any, int]] = [(value, 0)]
    while left:
        at, depth = left.pop()
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"{what} is nested more than {MAX_DEPTH} deep")
        if isinstance(at, str):
            check_text(at, what=what)
        elif isinstance(at, float):
            if not math.isfinite(at):
                raise InvalidInputError(f"{what} has a number that is not finite")
        elif isinstance(at, dict):
            for key, item in at.items():
                check_text(key, what=what)
                left.append((item, depth + 1))
        elif isinstance(at, list):
            left.extend((item, depth + 1) for item in at)


def check_text(text: str, *, what: str) -> None:
    """Refuse text that cannot be stored.

    Raises:
        InvalidInputError: for null bytes and lone surrogates.
    """
    if "\0" in text:
        raise InvalidInputError(f"{what} has a null byte in it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{what} has half a character in it (a lone surrogate)") from None
