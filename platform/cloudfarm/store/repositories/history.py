"""What happened and what it cost: the append-only tables."""

from collections.abc import Sequence

from cloudfarm.domain.ledger import LedgerEntry
from cloudfarm.domain.status import Event
from cloudfarm.store import rows
from cloudfarm.store.records import Records
from cloudfarm.store.transaction import Transaction


class SqlLedger:
    """See :class:`cloudfarm.ports.LedgerRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self._records = Records(transaction, rows.ledger, LedgerEntry, "ledger entry")

    async def append(self, entry: LedgerEntry) -> None:
        """Store an entry.

        Raises:
            AlreadyExistsError: if the segment of the lease has one.
            InvalidInputError: if the amount is not that of the interval.
        """
        await self._records.insert(
            entry,
            taken=f"segment {entry.segment} of lease {entry.lease_id} is in the ledger already",
        )

    async def list(
        self,
        *,
        tenant: str | None = None,
        lease_id: str | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Sequence[LedgerEntry]:
        """Return entries that touch the interval, which does not hold its end, by start."""
        table = rows.ledger
        where = [] if tenant is None else [table.c.tenant == tenant]
        if lease_id is not None:
            where.append(table.c.lease_id == lease_id)
        if from_ms is not None:
            # An entry of no length touches the interval that holds its instant. The first condition says less
            # than the second, but it is the one that the index serves.
            where += [table.c.end_ms >= from_ms, (table.c.end_ms > from_ms) | (table.c.start_ms >= from_ms)]
        if until_ms is not None:
            where.append(table.c.start_ms < until_ms)
        return await self._records.list(*where, by=[table.c.start_ms, table.c.lease_id, table.c.segment])


class SqlEvents:
    """See :class:`cloudfarm.ports.EventRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self._records = Records(transaction, rows.events, Event, "event")

    async def append(self, event: Event) -> None:
        """Store an event."""
        await self._records.insert(event)

    async def append_all(self, events: Sequence[Event]) -> None:
        """Store events, in their order."""
        await self._records.insert_all(events)

    async def list(
        self,
        *,
        tenant: str | None = None,
        subject: str | None = None,
        limit: int = 100,
    ) -> Sequence[Event]:
        """Return the newest events, newest first."""
        table = rows.events
        where = [] if tenant is None else [table.c.tenant == tenant]
        if subject is not None:
            where.append(table.c.subject == subject)
        return await self._records.list(*where, by=[table.c.id.desc()], limit=limit)
