"""The farm's records in SQLite or PostgreSQL. Rows and SQLAlchemy types never leave this package."""

from cloudfarm.store.engine import SqlStore
from cloudfarm.store.schema import migrate

__all__ = ["SqlStore", "migrate"]
