"""The database's schema: brought to the newest revision by Alembic, and checked before use."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from cloudfarm.errors import UnavailableError
from cloudfarm.store.connections import make_engines
from cloudfarm.store.faults import our_errors

HEAD = "0006"
"""The newest revision; a test holds it to the newest file in ``migrations/versions``."""
_LOCK = 0x636C6F7564
"""PostgreSQL's advisory lock of those who migrate: the letters ``cloud``."""
_WAL_ATTEMPTS = 100


async def migrate(url: str) -> None:
    """Bring a database to the newest schema, making it if it is not there. Several may do so at once.

    Raises:
        InvalidInputError: if the URL is not one of a database that the farm can use.
        UnavailableError: if the database does not answer.
    """
    await with_alembic(url, lambda config: command.upgrade(config, "head"))


async def with_alembic(url: str, work: Callable[[Config], None]) -> None:
    """Run Alembic commands in one transaction, alone: all that they do is kept, or nothing."""
    writers, readers = make_engines(url)
    try:
        with our_errors():
            if writers.dialect.name == "sqlite":
                await _use_wal(writers)
            async with writers.begin() as connection:
                if connection.dialect.name == "postgresql":
                    # SQLite's writer is alone from its BEGIN on; here a lock that lasts until the commit.
                    await connection.execute(text("SET LOCAL lock_timeout = 0"))
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                await connection.run_sync(lambda inner: work(_config(inner)))
    finally:
        await writers.dispose()
        await readers.dispose()


async def check_revision(engine: AsyncEngine) -> None:
    """See that a database has the newest schema.

    Raises:
        UnavailableError: otherwise.
    """
    with our_errors():
        async with engine.connect() as connection:
            found = await connection.run_sync(_revision)
    if found != HEAD:
        raise UnavailableError(
            f"the database's schema is {found or 'empty'}, not {HEAD}; migrate it with this version",
        )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found


async def _use_wal(engine: AsyncEngine) -> None:
    # Readers and the writer go on beside each other only with a write-ahead log. The file remembers it. The
    # driver's own connection is used, because the mode cannot be changed inside a transaction.
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        mode = await _set_wal(driver)
    if mode != "wal":
        raise UnavailableError(
            "SQLite cannot keep its write-ahead log there; use a local disk, or PostgreSQL"
        )


async def _set_wal(driver: Any) -> str:
    for _ in range(_WAL_ATTEMPTS):
        try:
            async with driver.execute("PRAGMA journal_mode = WAL") as cursor:
                (mode,) = await cursor.fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY":
                raise
            # Another starter is at the same switch, for which SQLite does not wait; for a BEGIN it does.
            await driver.execute("BEGIN IMMEDIATE")
            await driver.execute("ROLLBACK")
        else:
            return str(mode)
    raise UnavailableError("others have kept SQLite from switching to its write-ahead log")


def _config(connection: Connection) -> Config:
    config = Config()
    # Alembic's configuration takes a per cent sign for the beginning of a variable.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
