"""What the steward remembers of its forecasts: when the last ones were made, and how earlier ones turned out.

It is in memory only: a new steward takes what has been told from the leases themselves, and learns anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cloudfarm.domain.lease import ExpectedStart, Lease
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.calibration import Corrections, learned

EVERY_MS = 30_000
"""How often forecasts are made while somebody waits."""
SOONEST_MS = 5_000
"""If somebody new waits they are made at once, but not sooner than this after the last ones."""


@dataclass(slots=True)
class Foresight:
    """Watches what was told and what came of it."""

    corrections: Corrections = field(default_factory=dict)
    _made_ms: int | None = None
    _known: frozenset[str] = frozenset()
    """Who waited when the last forecasts were made."""
    _told: dict[str, tuple[ExpectedStart, ...]] = field(default_factory=dict)
    """By waiting lease, the newest last."""

    def look(self, leases: Iterable[Lease], now_ms: int) -> Corrections | None:
        """Learn from who has started, and return the corrections if it is time for forecasts; None if it is not."""
        told: dict[str, tuple[ExpectedStart, ...]] = {}
        waiting: set[str] = set()
        for lease in leases:
            before = self._told.get(lease.id, ())
            if lease.status is LeaseStatus.WAITING:
                waiting.add(lease.id)
                is_new = lease.expected_start is not None and lease.expected_start not in before[-1:]
                told[lease.id] = (
                    (*before, lease.expected_start) if is_new and lease.expected_start else before
                )
            elif lease.granted_ms is not None:
                self._learn(before, lease.granted_ms)
        self._told = told
        if not self._is_time(waiting, now_ms):
            return None
        self._made_ms, self._known = now_ms, frozenset(waiting)
        return self.corrections

    def _learn(self, told: tuple[ExpectedStart, ...], granted_ms: int) -> None:
        for each in told:  # a lease counts once, however often it was told
            self.corrections = learned(self.corrections, each, granted_ms, weight=1 / len(told))

    def _is_time(self, waiting: set[str], now_ms: int) -> bool:
        if not waiting:
            return False
        if self._made_ms is None or now_ms - self._made_ms >= EVERY_MS:
            return True
        return now_ms - self._made_ms >= SOONEST_MS and not waiting <= self._known
