"""Leases."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from cloudfarm.domain.lease import Lease
from cloudfarm.store import rows
from cloudfarm.store.records import Records
from cloudfarm.store.transaction import Transaction


class SqlLeases:
    """See :class:`cloudfarm.ports.LeaseRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self.records = Records(transaction, rows.leases, Lease, "lease")

    async def add(self, lease: Lease) -> None:
        """Store a new lease."""
        await self.records.insert(lease)

    async def get(self, lease_id: str) -> Lease:
        """Return a lease."""
        return await self.records.get(lease_id)

    async def list(
        self,
        *,
        tenant: str | None = None,
        revision_id: str | None = None,
        open_only: bool = False,
        limit: int | None = None,
    ) -> Sequence[Lease]:
        """Return leases oldest first (with ``limit``: the newest so many, oldest first)."""
        where = [] if tenant is None else [rows.leases.c.tenant == tenant]
        if revision_id is not None:
            where.append(rows.leases.c.revision_id == revision_id)
        if open_only:
            where.append(rows.OPEN_LEASES)
        return await self.records.oldest_first(*where, limit=limit)

    async def list_open(self, known: Mapping[str, Lease]) -> Sequence[Lease]:
        """Return open leases oldest first, of those in ``known`` only what has changed read anew."""
        table = rows.leases
        query = select(table.c.id, table.c.version).where(rows.OPEN_LEASES)
        found = await self.records.transaction.read(query.order_by(table.c.created_ms, table.c.id))
        versions = [tuple(row) for row in found]
        news = [key for key, version in versions if key not in known or known[key].version != version]
        if 2 * len(news) > len(versions):
            return await self.list(open_only=True)
        fresh = {lease.id: lease for lease in await self.records.get_all(news)}
        return [fresh.get(key) or known[key] for key, _ in versions]

    async def update(self, lease: Lease) -> None:
        """Store changed fields other than ``status``, guarded by the version."""
        await self.records.update(lease, step=False)

    async def update_all(self, leases: Sequence[Lease]) -> set[str]:
        """As :meth:`update` for different leases; return the ids of those left out."""
        return await self.records.update_all(leases, step=False)
