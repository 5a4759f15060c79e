"""What the repositories of all records share: rows to dataclasses and back, and the guarded update."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Column, ColumnElement, Select, Table, bindparam, insert, select, update

from cloudfarm.errors import NotFoundError, StaleError, TransitionError
from cloudfarm.store.transaction import Transaction

R = TypeVar("R")
AT_ONCE = 1000
"""Rows of one statement: neither database takes any number of parameters."""


class Versioned(Protocol):
    """A lease, a job, a service or a revision."""

    @property
    def id(self) -> str:
        """The record's id."""

    @property
    def version(self) -> int:
        """The stored version that this record was made from."""

    @property
    def status(self) -> Any:
        """Where it stands."""


@cache
def _layout(table: Table, kind: type) -> tuple[Sequence[Column[Any]], bool, Select[Any]]:
    """Return the columns of a kind of records, whether a row has all fields in their order, and the query of them all.

    Made of rows that have, a thousand records take half the time.
    """
    names = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    columns = [table.c[name] for name in names if name in table.c]
    return columns, len(columns) == len(names), select(*columns)


class Records(Generic[R]):
    """The rows of one table as frozen dataclasses; columns and fields have the same names.

    Args:
        transaction: where to read and write.
        table: of the records.
        kind: the dataclass.
        what: how a person calls one.
    """

    def __init__(self, transaction: Transaction, table: Table, kind: type[R], what: str) -> None:
        self.transaction = transaction
        self.table = table
        self.what = what
        self._make: Callable[..., R] = kind
        self._fields, self._is_whole, self._query = _layout(table, kind)  # type: ignore[arg-type]

    async def insert(self, record: R, *, taken: str = "") -> None:
        """Store a new record; ``taken`` is what AlreadyExistsError says of a unique value that is there."""
        values = self.values(record)
        await self.transaction.write(
            insert(self.table).values(values),
            taken=taken or f"there is a {self.what} {values.get('id')} already",
        )

    async def insert_all(self, records: Sequence[R]) -> None:
        """Store new records."""
        if records:
            await self.transaction.write(insert(self.table), [self.values(record) for record in records])

    async def find(self, *where: ColumnElement[bool]) -> R | None:
        """Return the record that meets all conditions, or None."""
        return next(iter(await self.list(*where)), None)

    async def get(self, record_id: str) -> R:
        """Return a record by id; raises NotFoundError."""
        found = await self.find(self.table.c.id == record_id)
        if found is None:
            raise self.missing(record_id)
        return found

    async def list(
        self,
        *where: ColumnElement[bool],
        by: Sequence[ColumnElement[Any]] = (),
        limit: int | None = None,
    ) -> Sequence[R]:
        """Return the records that meet all conditions, in the order of ``by``."""
        query = self._query.where(*where).order_by(*by).limit(limit)
        rows = await self.transaction.read(query)
        if self._is_whole:
            return [self._make(*row) for row in rows]
        names = [column.name for column in self._fields]
        return [self._make(**dict(zip(names, row, strict=True))) for row in rows]

    async def get_all(self, ids: Sequence[str]) -> Sequence[R]:
        """Return the records of some ids that there are, in any order."""
        found: list[R] = []
        for first in range(0, len(ids), AT_ONCE):
            found += await self.list(self.table.c.id.in_(ids[first : first + AT_ONCE]))
        return found

    async def oldest_first(self, *where: ColumnElement[bool], limit: int | None = None) -> Sequence[R]:
        """Return records by age; with ``limit`` the newest so many."""
        age = (self.table.c.created_ms, self.table.c.id)
        if limit is None:
            return await self.list(*where, by=age)
        newest = await self.list(*where, by=[column.desc() for column in age], limit=limit)
        return newest[::-1]

    async def update(self, record: Versioned, *, step: bool) -> None:
        """Store a record if its version is still the stored one, and count the version up.

        Args:
            record: of this table.
            step: whether this is a status change; else the status must be the stored one.

        Raises:
            NotFoundError: if there is no such record.
            StaleError: if somebody else changed it meanwhile.
            TransitionError: if it has another status and ``step`` is not set.
        """
        table = self.table
        values = {**self.values(record), "version": record.version + 1}
        del values["id"]
        guard = [table.c.id == record.id, table.c.version == record.version]
        if not step:
            del values["status"]
            guard.append(table.c.status == record.status)
        done = await self.transaction.write(update(table).where(*guard).values(values))
        if done.rowcount == 1:
            return
        stored = await self.transaction.read(select(table.c.version).where(table.c.id == record.id))
        version = stored.scalar_one_or_none()
        if version is None:
            raise self.missing(record.id)
        if version != record.version:
            raise StaleError(f"{self.what} {record.id} has changed meanwhile", id=record.id)
        raise self._other_status(record)

    async def update_all(self, records: Sequence[Versioned], *, step: bool) -> set[str]:
        """As :meth:`update` for many different records; return the ids of those left out, as stale or not there.

        Raises:
            TransitionError: if one has another status and ``step`` is not set.
        """
        left_out: set[str] = set()
        # Rows are held in the order of their ids: two that do this at once cannot wait for each other.
        ordered = sorted(records, key=lambda record: record.id)
        for first in range(0, len(ordered), AT_ONCE):
            left_out |= await self._update_some(ordered[first : first + AT_ONCE], step=step)
        return left_out

    async def _update_some(self, records: Sequence[Versioned], *, step: bool) -> set[str]:
        table = self.table
        ids = [record.id for record in records]
        query = select(table.c.id, table.c.version, table.c.status).where(table.c.id.in_(ids))
        found = await self.transaction.read(query.order_by(table.c.id).with_for_update())
        stored = {row.id: row for row in found}
        left_out = {
            record.id
            for record in records
            if record.id not in stored or stored[record.id].version != record.version
        }
        kept = [record for record in records if record.id not in left_out]
        values = [{**self.values(record), "version": record.version + 1} for record in kept]
        for record, each in zip(kept, values, strict=True):
            if not step and stored[record.id].status is not record.status:
                raise self._other_status(record)
            each["at_id"] = each.pop("id")
        if values:
            await self.transaction.write(update(table).where(table.c.id == bindparam("at_id")), values)
        return left_out

    def values(self, record: Any) -> dict[str, Any]:
        """Return a record as column values."""
        return {column.name: getattr(record, column.name) for column in self._fields}

    def _other_status(self, record: Versioned) -> TransitionError:
        return TransitionError(
            f"{self.what} {record.id}: an update may not change the status; store a transition"
        )

    def missing(self, record_id: str) -> NotFoundError:
        """Return the error for a record that is not there."""
        return NotFoundError(f"there is no {self.what} {record_id}")
