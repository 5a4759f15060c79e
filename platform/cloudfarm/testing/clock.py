"""A clock that a test moves by hand."""

from dataclasses import dataclass

START_MS = 1_800_000_000_000


@dataclass(slots=True)
class ManualClock:
    """Tells the time it was set to. Implements :class:`cloudfarm.clock.Clock`."""

    at_ms: int = START_MS

    def now_ms(self) -> int:
        """Return the time it stands at."""
        return self.at_ms

    # === Test methods ===

    def advance(self, ms: int) -> None:
        """Move forward."""
        self.at_ms += ms
