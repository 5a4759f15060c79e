"""The one way to the database inside a unit of work."""

from typing import Any

from sqlalchemy import CursorResult, Executable
from sqlalchemy.ext.asyncio import AsyncConnection

from cloudfarm.errors import CloudfarmError
from cloudfarm.store.faults import our_errors


class Transaction:
    """Runs statements in an open transaction and speaks of failures in the farm's words.

    After a failed statement PostgreSQL takes no other and answers COMMIT by rolling back, without an error;
    SQLite would keep the rest. So a transaction in which a statement failed can only be left, on either.
    """

    def __init__(self, connection: AsyncConnection, *, write: bool) -> None:
        self._connection = connection
        self._write = write
        self._over = ""

    @property
    def may_write(self) -> bool:
        """Whether this transaction may change anything (and may therefore hold row locks)."""
        return self._write

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._connection.dialect.name

    async def read(self, statement: Executable) -> CursorResult[Any]:
        """Run a query; all its rows are fetched."""
        return await self._run(statement, None, "")

    async def write(
        self,
        statement: Executable,
        values: list[dict[str, Any]] | None = None,
        *,
        taken: str = "",
    ) -> CursorResult[Any]:
        """Run a statement that changes something.

        Args:
            statement: to run.
            values: its parameters, to run it once for each.
            taken: what to say if a unique value is there already.
        """
        if not self._write:
            raise RuntimeError("this unit of work was begun for reading")
        return await self._run(statement, values, taken)

    async def commit(self) -> None:
        """Keep everything."""
        self._check()
        self._over = "has been committed"
        with our_errors():
            await self._connection.commit()

    async def _run(
        self, statement: Executable, values: list[dict[str, Any]] | None, taken: str
    ) -> CursorResult[Any]:
        self._check()
        try:
            with our_errors(taken):
                return await self._connection.execute(statement, values)
        except CloudfarmError:
            self._over = "has failed"
            raise

    def _check(self) -> None:
        # After a commit the driver would begin anew by itself, and what follows would be lost without a word.
        if self._over:
            raise RuntimeError(f"this unit of work {self._over}; begin another")
