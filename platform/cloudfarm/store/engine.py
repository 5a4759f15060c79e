"""The store: where units of work come from."""

from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from cloudfarm.store.connections import make_engines
from cloudfarm.store.schema import check_revision
from cloudfarm.store.unit_of_work import SqlUnitOfWork


class SqlStore:
    """See :class:`cloudfarm.ports.Store`. Several processes may have the same database open.

    Args:
        writers: where writing units of work get their connection.
        readers: where the others do.
    """

    def __init__(self, writers: AsyncEngine, readers: AsyncEngine) -> None:
        self._writers = writers
        self._readers = readers

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open a database whose schema is the newest (see :func:`cloudfarm.store.migrate`).

        Args:
            url: ``sqlite:////path/farm.db`` or ``postgresql://user@host/name``; the driver is ours to choose.

        Raises:
            InvalidInputError: if it is another kind of URL.
            UnavailableError: if the database does not answer or has another schema.
        """
        writers, readers = make_engines(url)
        store = cls(writers, readers)
        try:
            await check_revision(readers)
        except BaseException:
            await store.close()
            raise
        return store

    def begin(self, *, write: bool = True) -> SqlUnitOfWork:
        """Return a unit of work to enter with ``async with``; readers never wait for writers."""
        return SqlUnitOfWork(self._writers if write else self._readers, write=write)

    async def close(self) -> None:
        """Let go of every connection."""
        await self._writers.dispose()
        await self._readers.dispose()
