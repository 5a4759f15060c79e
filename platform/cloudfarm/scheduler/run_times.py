"""How long leases really run: what part of their time limits those that have ended put to use."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.lease import Lease
from cloudfarm.steward.view import Run

Floats = npt.NDArray[np.float64]

PRIOR = tuple(number / 8 for number in range(1, 9))
"""Added to what was seen: where little was, any part of the limit is about as likely as any other."""
ENOUGH = 32
"""So many leases of one tenant and kind speak for themselves; else the kind's, else the farm's are looked at."""


@dataclass(frozen=True, slots=True)
class RunTimes:
    """What part of their limit leases run, as sorted samples: by tenant and kind, by kind, and of all."""

    parts: Mapping[tuple[str, ...], Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: Iterable[Run]) -> "RunTimes":
        """Learn from leases that have ended."""
        found: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for run in runs:
            part = min(1.0, run.ran_ms / max(1, run.limit_ms))
            for key in ((run.tenant, run.kind), (run.kind,), ()):
                found[key].append(part)
        return cls(
            {
                key: np.sort(np.array([*parts, *PRIOR]))
                for key, parts in found.items()
                if len(parts) >= ENOUGH or not key
            }
        )

    def left_ms(self, lease: Lease, ran_ms: int, chances: Floats) -> Floats:
        """Return how much longer a lease runs that has run so long, in the futures of these chances.

        Args:
            lease: that runs, or will.
            ran_ms: how long it has run.
            chances: from 0, as short as any ran, to below 1; with 1 it runs to its limit.
        """
        limit_ms = max(1, ran_ms, lease.ask.duration_ms)
        parts = self._parts(lease)
        gone = int(np.searchsorted(parts, ran_ms / limit_ms, side="right"))
        at = gone + (chances * (len(parts) - gone)).astype(np.int64)
        left: Floats = (np.append(parts, 1.0)[at] * limit_ms - ran_ms).clip(0)
        return left

    def _parts(self, lease: Lease) -> Floats:
        for key in ((lease.tenant, str(lease.kind)), (str(lease.kind),), ()):
            if key in self.parts:
                return self.parts[key]
        return np.array(PRIOR)


def chances(leases: Sequence[Lease], futures: int) -> Floats:
    """Return a row of evenly spread numbers from 0 to 1 for each lease, in an order of its own, and last 1.

    The order comes from the lease's id alone: the same lease has the same luck whenever it is asked, so a forecast
    changes when the farm does.
    """
    seeds = np.array([crc32(lease.id.encode()) << 32 for lease in leases], dtype=np.uint64)
    mixed = np.add.outer(seeds, np.arange(futures, dtype=np.uint64)).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finish
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    order = np.argsort(mixed, axis=1, kind="stable")
    return np.column_stack([(order + 0.5) / futures, np.ones(len(leases))])
