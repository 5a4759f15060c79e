"""How much services are asked, as the front door counts it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

WINDOW_MS = 30_000
"""How far a peak looks back."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one service is asked."""

    peak: int = 0
    """Most requests under way at once within the window, those that wait for it to start among them."""
    waiting: int = 0
    """Requests that wait for it to start, now."""
    last_request_ms: int = 0
    """When a request was last under way."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What all services are asked."""

    at_ms: int
    since_ms: int
    """Since when it is counted: nothing is known of what was before."""
    loads: Mapping[str, Load] = field(default_factory=dict)
    """By service; one that is missing was asked nothing since."""
    under_way: Mapping[str, int] = field(default_factory=dict)
    """By application: requests that were sent to it and have not ended; one that is missing has none."""
