"""Connections: which driver, which settings, and why."""

from pathlib import Path
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cloudfarm.errors import InvalidInputError, UnavailableError

CONNECT_S = 10
"""How long a server may take to answer at first."""
WAIT_S = 10
"""How long a statement waits for another's lock."""
IDLE_S = 15
"""How long PostgreSQL lets a transaction stand idle: a frozen steward must not keep its successor waiting."""
ANSWER_S = 60
"""How long a statement may take: the server may have gone without a word."""
READERS = 5
"""Connections for reading (and on PostgreSQL for writing) in one process."""

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}


def make_engines(url: str) -> tuple[AsyncEngine, AsyncEngine]:
    """Return the engines for writing and for reading; on PostgreSQL they share their connections.

    Raises:
        InvalidInputError: if the URL is not one of a database that the farm can use.
        UnavailableError: if there is no folder for the file.
    """
    parsed = read_url(url)
    if parsed.get_backend_name() == "sqlite":
        folder = Path(parsed.database or "").absolute().parent
        if not folder.is_dir():
            # Found out here: when SQLite cannot open its file, the driver's thread outlives the event loop.
            raise UnavailableError(f"there is no folder {folder} for the database")
        # One connection for writing: SQLite has one writer at a time anyway, and the pool's queue is fair and
        # wakes the next at once, where SQLite's busy handler sleeps and tries again.
        return _sqlite(parsed, begin="BEGIN IMMEDIATE", size=1), _sqlite(parsed, begin="BEGIN", size=READERS)
    engine = create_async_engine(
        parsed.difference_update_query(["sslmode"]),
        pool_size=READERS,
        max_overflow=READERS,
        connect_args=_asyncpg_arguments(parsed),
    )
    # A reader sees one moment of the farm through all its queries, as on SQLite.
    readers = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return engine, readers


def read_url(url: str) -> URL:
    """Return a database URL with the driver that the farm uses.

    Raises:
        InvalidInputError: if the farm cannot use it.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidInputError(
            "the database URL cannot be read"
        ) from None  # it may hold a password: not shown
    driver = _DRIVERS.get(parsed.drivername.removesuffix("+aiosqlite").removesuffix("+asyncpg"))
    if driver is None:
        raise InvalidInputError(
            f"{parsed.drivername} is not a database of the farm; use sqlite:// or postgresql://"
        )
    if driver == _DRIVERS["sqlite"] and parsed.database in (None, "", ":memory:"):
        raise InvalidInputError("the database must be a file, such as sqlite:////var/lib/cloudfarm/farm.db")
    return parsed.set(drivername=driver)


def _sqlite(url: URL, *, begin: str, size: int) -> AsyncEngine:
    # isolation_level=None: the driver begins no transaction by itself, the listener below does. Its own BEGIN
    # is deferred: of two writers that first read, the one that writes second would be refused at once.
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        connect_args={"timeout": WAIT_S, "isolation_level": None},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        # FULL: a commit is on the disk before it is answered. With NORMAL a power cut could undo the last
        # ledger entries and, worse, an epoch that hosts have already seen.
        cursor.execute("PRAGMA synchronous = FULL")
        if begin == "BEGIN":
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "invalidate")
    def _on_invalidate(connection: Any, _record: Any, _error: Any) -> None:
        # A cancelled statement's connection is closed, but while its cursor is referred to from anywhere (a
        # traceback, say) SQLite only defers that, and the write lock stays.
        connection.rollback()

    @event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _asyncpg_arguments(url: URL) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "timeout": CONNECT_S,
        "command_timeout": ANSWER_S,
        "server_settings": {
            "application_name": "cloudfarm",
            "jit": "off",  # compiling costs more than any of these small queries
            "lock_timeout": f"{WAIT_S}s",
            "idle_in_transaction_session_timeout": f"{IDLE_S}s",
        },
    }
    if "sslmode" in url.query:  # libpq's word, which operators know, for what asyncpg calls ssl
        arguments["ssl"] = url.query["sslmode"]
    return arguments
