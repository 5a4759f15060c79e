"""Services that do not start, or fail: what goes wrong again and again is tried again ever later, not at every look."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus
from cloudfarm.steward.scene import scenes_of
from cloudfarm.steward.view import FarmView

FIRST_MS = 5_000
"""How long the first pause is; each one after it is twice as long, up to the longest."""
LONGEST_START_MS, LONGEST_RUN_MS = 300_000, 1_800_000
"""The longest after a lease whose nodes did not start, and after what failed on nodes that did.

The second is longer: what fails is its tenant's to mend, and for each try others may have to make room.
"""


@dataclass(slots=True)
class _Setback:
    longest_ms: int
    times: int = 0
    """In a row."""
    at_ms: int = -1
    """The last."""
    lease_ids: set[str] = field(default_factory=set)

    def count(self, lease_id: str, now_ms: int) -> None:
        """Count what went wrong on a lease, once. Several at the same time count as one."""
        if lease_id not in self.lease_ids:
            self.times += self.at_ms != now_ms
            self.at_ms = now_ms
            self.lease_ids.add(lease_id)

    @property
    def until_ms(self) -> int:
        return self.at_ms + min(FIRST_MS << (self.times - 1), self.longest_ms)


@dataclass(slots=True)
class Setbacks:
    """Remembers them by revision. A steward that has just begun knows of none, and tries at once."""

    _starts: defaultdict[str, _Setback] = field(
        default_factory=lambda: defaultdict(lambda: _Setback(LONGEST_START_MS))
    )
    """Leases whose nodes did not start."""
    _runs: defaultdict[str, _Setback] = field(
        default_factory=lambda: defaultdict(lambda: _Setback(LONGEST_RUN_MS))
    )
    """What ran on nodes that did, and was given up."""

    def look(self, view: FarmView) -> Mapping[str, int]:
        """Return by revision until when it gets no further lease.

        A lease whose nodes did not start is ending for at least one look; one that has started since makes up for all
        of them. What has run makes up for nothing until it has done so for long: it may fail each time after a while.
        """
        self._look_at_starts(view)
        self._look_at_runs(view)
        until_ms: defaultdict[str, int] = defaultdict(int)
        for setbacks in (self._starts, self._runs):
            for revision_id, each in list(setbacks.items()):
                each.lease_ids &= view.leases_by_id.keys()
                if view.now_ms - each.until_ms >= each.longest_ms:
                    del setbacks[revision_id]
                else:
                    until_ms[revision_id] = max(until_ms[revision_id], each.until_ms)
        return dict(until_ms)

    def _look_at_starts(self, view: FarmView) -> None:
        for lease in view.leases:
            if lease.revision_id is None:
                continue
            if lease.status is LeaseStatus.ENDING and lease.reason is EndReason.START_FAILED:
                self._starts[lease.revision_id].count(lease.id, view.now_ms)
                continue
            before = self._starts.get(lease.revision_id)
            if before is not None and lease.started_ms is not None and lease.started_ms >= before.at_ms:
                del self._starts[lease.revision_id]

    def _look_at_runs(self, view: FarmView) -> None:
        for scene in scenes_of(view):
            if scene.needs_restart and scene.standing()[0] is RevisionStatus.FAILED:
                for lease in scene.active:
                    self._runs[scene.revision.id].count(lease.id, view.now_ms)
