"""The past, as far as decisions look back: what quotas have used, and what has been asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cloudfarm.domain.lease import Ask, Lease
from cloudfarm.domain.ledger import LedgerEntry
from cloudfarm.domain.quota import QuotaTree, quota_of
from cloudfarm.domain.status import EndReason
from cloudfarm.ports import UnitOfWork
from cloudfarm.scheduler.history import Memory, Use, past_shares
from cloudfarm.steward.view import Run

EVERY_MS = 60_000
"""How old what is read from the ledger may be; half-lives are days."""
ASKS = 1000
"""How many asks are looked back at."""
IN_ITS_OWN_TIME = frozenset(
    {
        EndReason.RELEASED,
        EndReason.EXPIRED,
        EndReason.JOB_FINISHED,
        EndReason.SERVICE_DELETED,
        EndReason.SCALED_DOWN,
    }
)
"""Ends that say how long a lease was wanted."""
HALF_LIVES = 10
"""What is older counts less than a thousandth."""


@dataclass(slots=True)
class Past:
    """Reads the ledger now and then."""

    memory: Memory
    _read_ms: int = 0
    _entries: Sequence[LedgerEntry] = field(default_factory=tuple)
    asks: tuple[Ask, ...] = ()
    """The newest asks."""
    runs: tuple[Run, ...] = ()
    """How long those of them ran that are over."""

    async def read(self, uow: UnitOfWork, now_ms: int) -> None:
        """Read the ledger and the newest leases if they were last read too long ago."""
        if now_ms - self._read_ms >= EVERY_MS:
            since_ms = now_ms - HALF_LIVES * self.memory.half_life_ms
            self._entries = await uow.ledger.list(from_ms=max(0, since_ms))
            newest = await uow.leases.list(limit=ASKS)
            self.asks = tuple(lease.ask for lease in newest)
            self.runs = tuple(_runs(newest))
            self._read_ms = now_ms

    def shares(
        self, leases: Sequence[Lease], tree: QuotaTree, capacity_milli_gpus: int, now_ms: int
    ) -> Mapping[str, float]:
        """Return the decayed past use of every quota, with what runs now, as shares of the farm."""
        ended = [
            Use(quota_of(entry.tenant, entry.project), entry.milli_gpus, entry.start_ms, entry.end_ms)
            for entry in self._entries
        ]
        running = [
            Use(quota_of(lease.tenant, lease.project), lease.milli_gpus, lease.started_ms, now_ms)
            for lease in leases
            if lease.started_ms is not None
        ]
        return past_shares([*ended, *running], tree, capacity_milli_gpus, now_ms, self.memory)


def _runs(leases: Iterable[Lease]) -> Iterator[Run]:
    for lease in leases:
        if lease.reason in IN_ITS_OWN_TIME and lease.started_ms is not None and lease.ended_ms is not None:
            ran_ms = lease.ended_ms - lease.started_ms
            yield Run(lease.tenant, lease.kind, ran_ms, lease.ask.duration_ms)
