"""The ledger's arithmetic: integer milli-GPU-seconds, one entry a lease segment.

An entry's amount is ``milli_gpus * (end_ms - start_ms) / 1000``, cut to a whole number. A refund is an entry of its own
with negative milli-GPUs, over the time that is given back. A share of an entry between two instants is the
difference of that function at the two, so any way of cutting an entry (by day, say) sums to it exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

DAY_MS = 86_400_000


REFUND = "refund"
"""Kind of an entry that gives back what a preemption destroyed."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What one segment of a lease cost, or what of it is given back. Entries are only ever added."""

    tenant: str
    lease_id: str
    segment: int
    kind: str
    milli_gpus: int
    start_ms: int
    end_ms: int
    milli_gpu_seconds: int
    project: str = ""
    """The lease's."""


def amount(milli_gpus: int, start_ms: int, end_ms: int) -> int:
    """Return milli-GPU-seconds of an interval, cut to a whole number (as SQL does, for refunds too).

    Raises:
        ValueError: if the interval ends before it starts.
    """
    if end_ms < start_ms:
        raise ValueError(f"an interval cannot end ({end_ms}) before it starts ({start_ms})")
    size = abs(milli_gpus) * (end_ms - start_ms) // 1000
    return size if milli_gpus >= 0 else -size


def split(entry: LedgerEntry, boundary_ms: int = DAY_MS) -> Iterator[tuple[int, int]]:
    """Yield ``(day, milli_gpu_seconds)`` for each UTC day the entry touches; the amounts sum to the entry's.

    ``day`` counts whole ``boundary_ms`` since the epoch.
    """
    at = entry.start_ms
    while True:
        day = at // boundary_ms
        until = min((day + 1) * boundary_ms, entry.end_ms)
        share = amount(entry.milli_gpus, entry.start_ms, until) - amount(entry.milli_gpus, entry.start_ms, at)
        yield day, share
        if until >= entry.end_ms:
            return
        at = until
