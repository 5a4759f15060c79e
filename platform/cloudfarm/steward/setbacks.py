"""Leases of services that did not start: what fails again and again is tried again ever later, not at every look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import EndReason, LeaseStatus

FIRST_MS, LONGEST_MS = 5_000, 300_000
"""How long the first pause is; each one after it is twice as long, up to the longest."""


@dataclass(slots=True)
class _Setback:
    times: int = 0
    """In a row."""
    at_ms: int = -1
    """The last."""
    lease_ids: set[str] = field(default_factory=set)

    @property
    def until_ms(self) -> int:
        return self.at_ms + min(FIRST_MS << (self.times - 1), LONGEST_MS)


@dataclass(slots=True)
class Setbacks:
    """Remembers them by revision. A steward that has just begun knows of none, and tries at once."""

    _by_revision: dict[str, _Setback] = field(default_factory=dict)

    def look(self, leases: Sequence[Lease], now_ms: int) -> Mapping[str, int]:
        """Return by revision until when it gets no further lease, from all leases that have not ended.

        A lease whose nodes did not start is ending for at least one look. Several that fail at once count as one; one
        that has started since makes up for all.
        """
        for lease in leases:
            if lease.revision_id is None:
                continue
            known = self._by_revision.get(lease.revision_id)
            if lease.status is LeaseStatus.ENDING and lease.reason is EndReason.START_FAILED:
                known = known or self._by_revision.setdefault(lease.revision_id, _Setback())
                if lease.id not in known.lease_ids:
                    known.times += known.at_ms != now_ms
                    known.at_ms = now_ms
                    known.lease_ids.add(lease.id)
            elif known is not None and lease.started_ms is not None and lease.started_ms >= known.at_ms:
                del self._by_revision[lease.revision_id]
        for revision_id, each in list(self._by_revision.items()):
            each.lease_ids &= {lease.id for lease in leases}
            if now_ms - each.until_ms >= LONGEST_MS:
                del self._by_revision[revision_id]
        return {revision_id: each.until_ms for revision_id, each in self._by_revision.items()}
