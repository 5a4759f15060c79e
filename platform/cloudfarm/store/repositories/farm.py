"""The farm as a whole: the steward's epoch and heartbeat, the operator's wish to stop, and the hosts."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cloudfarm.domain.host import Host
from cloudfarm.errors import FencedError
from cloudfarm.store import rows
from cloudfarm.store.records import Records
from cloudfarm.store.transaction import Transaction

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class FarmState:
    """The farm's one row, and its hosts: see :class:`cloudfarm.ports.UnitOfWork`."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._hosts = Records(transaction, rows.hosts, Host, "host")

    async def take_epoch(self) -> int:
        """Count the epoch up and return it."""
        table = rows.farm
        done = await self._transaction.write(
            update(table).values(epoch=table.c.epoch + 1).returning(table.c.epoch)
        )
        epoch: int = done.scalar_one()
        return epoch

    async def check_epoch(self, epoch: int) -> None:
        """Raise FencedError unless this is the epoch in force; a writer holds it until the commit.

        On PostgreSQL by the row's lock; on SQLite a writer is alone anyway. A higher epoch than the stored
        one is from before the database was put back from a backup: that number may be given out once more.
        """
        query = select(rows.farm.c.epoch)
        if self._transaction.may_write:
            query = query.with_for_update()
        stored: int = (await self._transaction.read(query)).scalar_one()
        if stored != epoch:
            raise FencedError(f"the steward's epoch is {stored}, not {epoch}", epoch=stored)

    async def heartbeat(self, now_ms: int) -> None:
        """Store that the steward observed the farm."""
        await self._transaction.write(update(rows.farm).values(heartbeat_ms=now_ms))

    async def last_heartbeat_ms(self) -> int | None:
        """Return when a steward last observed the farm."""
        found: int | None = (await self._transaction.read(select(rows.farm.c.heartbeat_ms))).scalar_one()
        return found

    async def set_stopping(self, *, stopping: bool) -> None:
        """Store whether the farm is being stopped."""
        await self._transaction.write(update(rows.farm).values(stopping=stopping))

    async def is_stopping(self) -> bool:
        """Return whether the farm is being stopped."""
        found: bool = (await self._transaction.read(select(rows.farm.c.stopping))).scalar_one()
        return found

    async def put_hosts(self, hosts: Sequence[Host]) -> None:
        """Store hosts, new or known; one that is not named stays as it was."""
        if not hosts:
            return
        statement = _INSERT[self._transaction.dialect](rows.hosts)
        changed = {
            column.name: statement.excluded[column.name]
            for column in rows.hosts.c
            if column.name not in ("id", "cordoned")
        }
        statement = statement.on_conflict_do_update(index_elements=[rows.hosts.c.id], set_=changed)
        # Sorted, so that two writers cannot hold one row each and wait for the other's.
        values = [self._hosts.values(host) for host in sorted(hosts, key=lambda host: host.id)]
        await self._transaction.write(statement, values)

    async def set_cordoned(self, host_id: str, *, cordoned: bool) -> None:
        """Store whether new slices are kept off a host."""
        done = await self._transaction.write(
            update(rows.hosts).where(rows.hosts.c.id == host_id).values(cordoned=cordoned)
        )
        if not done.rowcount:
            raise self._hosts.missing(host_id)

    async def forget_host(self, host_id: str) -> None:
        """Remove a host."""
        done = await self._transaction.write(delete(rows.hosts).where(rows.hosts.c.id == host_id))
        if not done.rowcount:
            raise self._hosts.missing(host_id)

    async def hosts(self) -> Sequence[Host]:
        """Return the hosts by id, without nodes."""
        return await self._hosts.list(by=[rows.hosts.c.id])
