"""Fixtures of the contract tests: each port's fake beside its real implementations.

``store``          a store with two tenants, in memory, on SQLite and on PostgreSQL
``other``          the same data as another process has it: its own connections
``url``            a migrated database, on SQLite and on PostgreSQL
``empty_url``      a database with nothing in it, on SQLite and on PostgreSQL
``sqlite_url``     a migrated SQLite database
``postgresql_url`` a migrated PostgreSQL database
``farm``           None for the fakes of Hosts, RayJobs, Serving and Watch, else a real farm without a steward
``epoch``          a steward's epoch, higher than any before
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from cloudfarm.domain.tenant import Tenant
from cloudfarm.ports import Store
from cloudfarm.store import SqlStore, migrate
from cloudfarm.store.rows import metadata
from cloudfarm.testing.memory_store import MemoryStore

from .bare_farm import EPOCHS, BareFarm

SQL = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def postgres_farm(postgres):
    name = postgres.create()
    asyncio.run(migrate(postgres.url(name)))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "farm.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def sqlite_url(sqlite_template, tmp_path):
    path = shutil.copy(sqlite_template, tmp_path / "farm.db")
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgres, postgres_farm):
    # Emptied, which takes 0.05 s, rather than made anew, which takes a second. As a replica, so that the
    # triggers that keep the ledger from being emptied do not fire.
    statements = ["SET session_replication_role = replica"]
    statements += [f"DELETE FROM {table.name}" for table in metadata.sorted_tables]  # noqa: S608 - our own names
    statements += ["INSERT INTO farm (id, epoch, stopping) VALUES (1, 0, false)"]
    postgres.run("psql", "-q", "-d", postgres_farm, "-c", "; ".join(statements))
    return postgres.url(postgres_farm)


@pytest.fixture(params=SQL)
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=SQL)
def empty_url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server = request.getfixturevalue("postgres")
    return server.url(server.create())


@pytest.fixture(params=["memory", *SQL])
def any_url(request):
    """The URL of a migrated database, or None for the store in memory."""
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
async def store(any_url) -> AsyncIterator[Store]:
    opened = MemoryStore() if any_url is None else await SqlStore.open(any_url)
    async with opened.begin() as uow:
        await uow.tenants.add(Tenant("kaist", "KAIST", created_ms=1))
        await uow.tenants.add(Tenant("snu", "서울대학교", created_ms=2))
        await uow.commit()
    yield opened
    await opened.close()


@pytest.fixture
async def other(any_url, store) -> AsyncIterator[Store]:
    opened = store if any_url is None else await SqlStore.open(any_url)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def bare_farm() -> Iterator[BareFarm]:
    farm = BareFarm.make()
    try:
        farm.start()
        yield farm
    finally:
        farm.remove()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.own_farm)])
def farm(request) -> BareFarm | None:
    """The farm whose ports are tested, or None for the fakes."""
    return None if request.param == "fake" else request.getfixturevalue("bare_farm")


@pytest.fixture
def epoch() -> int:
    return next(EPOCHS)
