"""Driver errors in the farm's own words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cloudfarm.errors import (
    AlreadyExistsError,
    CloudfarmError,
    InvalidInputError,
    NotFoundError,
    StaleError,
    StorageFullError,
    UnavailableError,
)

_SQLITE: dict[str, type[CloudfarmError]] = {
    "SQLITE_FULL": StorageFullError,
    "SQLITE_IOERR_SHMSIZE": StorageFullError,  # the shared-memory file of the WAL could not grow
    "SQLITE_CONSTRAINT_UNIQUE": AlreadyExistsError,
    "SQLITE_CONSTRAINT_PRIMARYKEY": AlreadyExistsError,
    "SQLITE_CONSTRAINT_TRIGGER": AlreadyExistsError,  # the append-only tables' on INSERT
    "SQLITE_CONSTRAINT_FOREIGNKEY": NotFoundError,
    "SQLITE_CONSTRAINT_CHECK": InvalidInputError,
}
_SQLITE_FAMILIES: dict[str, type[CloudfarmError]] = {
    "SQLITE_BUSY": UnavailableError,
    "SQLITE_LOCKED": UnavailableError,
    "SQLITE_CANTOPEN": UnavailableError,
    "SQLITE_IOERR": UnavailableError,
    "SQLITE_READONLY": UnavailableError,
}
_SQLSTATES: dict[str, type[CloudfarmError]] = {
    "23505": AlreadyExistsError,
    "23503": NotFoundError,
    "23514": InvalidInputError,
    "40001": StaleError,  # serialization failure
    "40P01": StaleError,  # deadlock: PostgreSQL let the other one go on
    "53100": StorageFullError,
    "55P03": UnavailableError,  # lock timeout
    "57014": UnavailableError,  # statement cancelled
    "3D000": UnavailableError,  # no such database
}
_SQLSTATE_CLASSES: dict[str, type[CloudfarmError]] = {
    "08": UnavailableError,  # connection
    "22": InvalidInputError,  # a value that does not fit its type
    "25": UnavailableError,  # the server ended a transaction that stood idle
    "28": UnavailableError,  # refused log-in
    "53": UnavailableError,  # too many connections, out of memory
    "57": UnavailableError,  # shutting down, starting up
}
_DETAILS: dict[type[CloudfarmError], str] = {
    AlreadyExistsError: "there is one already",
    NotFoundError: "something that the record refers to is not there",
    InvalidInputError: "the database refused a value",
    StaleError: "another change came between",
    StorageFullError: "the database has no room left",
    UnavailableError: "the database does not answer",
}


@contextmanager
def our_errors(taken: str = "") -> Iterator[None]:
    """Turn what a driver raises inside into the farm's errors.

    Args:
        taken: what to say of a unique value that is there already.

    Raises:
        CloudfarmError: for what the world may do to a database. Other errors are bugs and pass as they are.
    """
    try:
        yield
    except PoolTimeoutError as error:
        raise UnavailableError("the database has been busy for too long") from error
    except (OSError, OverflowError) as error:
        # The drivers raise these bare: a refused connection, and a number of more than 64 bits on SQLite.
        kind = InvalidInputError if isinstance(error, OverflowError) else UnavailableError
        raise kind(f"{_DETAILS[kind]}: {error}") from error
    except (DBAPIError, sqlite3.Error) as error:
        found = kind_of(error)
        if found is None:
            raise
        cause = error.orig if isinstance(error, DBAPIError) else error
        detail = taken if found is AlreadyExistsError and taken else f"{_DETAILS[found]}: {cause}"
        raise found(detail) from error


def kind_of(error: DBAPIError | sqlite3.Error) -> type[CloudfarmError] | None:
    """Return the class of ours that a driver's error is, or None if it is a bug."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        name: str = getattr(cause, "sqlite_errorname", "")
        family = next((kind for prefix, kind in _SQLITE_FAMILIES.items() if name.startswith(prefix)), None)
        return _SQLITE.get(name, family)
    sqlstate: str = getattr(cause, "sqlstate", None) or ""
    known = _SQLSTATES.get(sqlstate, _SQLSTATE_CLASSES.get(sqlstate[:2]))
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return known or (UnavailableError if lost else None)
