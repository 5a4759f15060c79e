"""Control groups, version 2 or 1, for one node: ``<mount>/cloudfarm/<farm>/<node>``.

Version 2 is used when its hierarchy is writable and has the controllers; else every writable version 1
hierarchy that helps. On version 1 the same relative path is made in each hierarchy, and ``freezer`` stops a
fork bomb while it is being killed.
"""

import contextlib
import errno
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cloudfarm.raylayer.launcher.spec import CgroupKind, NodeUsage

PERIOD_US = 100_000
V2_CONTROLLERS = ("cpu", "memory", "pids")
V1_CONTROLLERS = ("cpu", "memory", "pids", "cpuacct", "freezer")
REMOVE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """The hierarchies of this host that we may write: one (v2) or one per controller (v1)."""

    kind: CgroupKind
    mounts: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> Self:
        """Find out by mount table and permission; a read-only mount (in a container) counts as none."""
        v2: Path | None = None
        v1: dict[str, Path] = {}
        for line in (mountinfo or Path("/proc/self/mountinfo").read_text()).splitlines():
            before, _, after = line.partition(" - ")
            where, (kind, _, options) = Path(before.split()[4]), after.split()[:3]
            if kind == "cgroup2":
                v2 = where
            elif kind == "cgroup":
                v1.update({name: where for name in options.split(",") if name in V1_CONTROLLERS})
        if v2 and set(V2_CONTROLLERS) <= set(_read(v2 / "cgroup.controllers").split()) and _writable(v2):
            return cls("v2", {"": v2})
        v1 = {name: where for name, where in v1.items() if _writable(where)}
        return cls("v1", v1) if {"cpu", "memory", "pids"} & set(v1) else cls("none")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The control group of one node."""

    hierarchies: Hierarchies
    path: str
    """Relative to each mount, e.g. ``cloudfarm/1f3a9c2e/l7k2-0``."""

    @property
    def dirs(self) -> dict[str, Path]:
        """Return the directory of this group in each hierarchy, by controller (``""`` for v2)."""
        return {name: mount / self.path for name, mount in self.hierarchies.mounts.items()}

    def create(self, *, cpus: int, memory_bytes: int, pids: int) -> dict[str, int]:
        """Make the group and set its limits (0 = no limit). Returns the limits that were really set."""
        if self.hierarchies.kind == "none":
            return {}
        for mount in self.hierarchies.mounts.values():
            _make(mount, self.path, v2=self.hierarchies.kind == "v2")
        wanted = (
            ("cpus", cpus, self._cpu_files(cpus)),
            ("memory_bytes", memory_bytes, self._memory_files(memory_bytes)),
            ("pids", pids, [("pids", "pids.max", str(pids))]),
        )
        return {name: amount for name, amount, files in wanted if amount and self._write_all(files)}

    def _cpu_files(self, cpus: int) -> list[tuple[str, str, str]]:
        if self.hierarchies.kind == "v2":
            return [("cpu", "cpu.max", f"{cpus * PERIOD_US} {PERIOD_US}")]
        return [
            ("cpu", "cpu.cfs_period_us", str(PERIOD_US)),
            ("cpu", "cpu.cfs_quota_us", str(cpus * PERIOD_US)),
        ]

    def _memory_files(self, limit: int) -> list[tuple[str, str, str]]:
        if self.hierarchies.kind == "v2":
            return [("memory", "memory.max", str(limit))]
        return [("memory", "memory.limit_in_bytes", str(limit))]

    def _write_all(self, files: list[tuple[str, str, str]]) -> bool:
        for controller, name, value in files:
            directory = self.dirs.get("" if self.hierarchies.kind == "v2" else controller)
            if directory is None:
                return False
            (directory / name).write_text(value)
        return True

    def join_paths(self) -> list[str]:
        """Return the files into which a process writes ``0`` to enter the group."""
        return sorted({str(directory / "cgroup.procs") for directory in self.dirs.values()})

    def binds(self) -> list[tuple[str, str]]:
        """Return (own group, mount) pairs: seen from within the node, its group is where the machine's was.

        So Ray's memory monitor, and everybody's thread pools, see the node's limits instead of the machine's.
        """
        return sorted({(str(mount / self.path), str(mount)) for mount in self.hierarchies.mounts.values()})

    def exists(self) -> bool:
        """Say whether any hierarchy has the group."""
        return any(directory.is_dir() for directory in self.dirs.values())

    def pids(self) -> set[int]:
        """Return the processes in the group, sub-groups included."""
        found: set[int] = set()
        for directory in set(self.dirs.values()):
            for file in directory.rglob("cgroup.procs"):
                found.update(map(int, _read(file).split()))
        return found

    def kill_all(self) -> None:
        """Kill everything in the group at once, where the kernel can (v2)."""
        directory = self.dirs.get("")
        if directory is not None and (directory / "cgroup.kill").exists():
            (directory / "cgroup.kill").write_text("1")

    def freeze(self, frozen: bool) -> None:
        """Stop or resume the group (v1): between the two, nothing in it can fork away from a kill."""
        directory = self.dirs.get("freezer")
        if directory is not None and directory.is_dir():
            (directory / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def oom_kills(self) -> int:
        """Return how many processes the kernel killed here because the memory limit was reached."""
        for name, file in (("", "memory.events"), ("memory", "memory.oom_control")):
            if name in self.dirs:
                for line in _read(self.dirs[name] / file).splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0

    def usage(self) -> NodeUsage | None:
        """Return what the group uses, or None when there is no group to ask."""
        if not self.exists():
            return None
        if self.hierarchies.kind == "v2":
            here = self.dirs[""]
            stat = dict(line.split() for line in _read(here / "cpu.stat").splitlines())
            peak = _read(here / "memory.peak")
            return NodeUsage(
                int(stat["usage_usec"]) / 1e6, int(_read(here / "memory.current")),
                int(peak) if peak else None, int(_read(here / "pids.current")), "v2",
            )  # fmt: skip
        cpu, memory, pids = (self._v1_number(*one) for one in (
            ("cpuacct", "cpuacct.usage"), ("memory", "memory.usage_in_bytes"), ("pids", "pids.current"),
        ))  # fmt: skip
        if cpu is None or memory is None or pids is None:
            return None
        return NodeUsage(
            cpu / 1e9, memory, self._v1_number("memory", "memory.max_usage_in_bytes"), pids, "v1"
        )

    def _v1_number(self, controller: str, file: str) -> int | None:
        text = _read(self.dirs[controller] / file) if controller in self.dirs else ""
        return int(text) if text else None

    def remove(self) -> None:
        """Remove the group. A process just dead holds it for a moment, and no event tells when not."""
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        for directory in set(self.dirs.values()):
            for sub in sorted((d for d in directory.rglob("*") if d.is_dir()), reverse=True):
                _rmdir(sub, deadline)
            _rmdir(directory, deadline)


def remove_farm(hierarchies: Hierarchies, parent: str) -> None:
    """Remove the farm's own level, if empty. Not with the last node: another may be starting just then."""
    for mount in set(hierarchies.mounts.values()):
        for directory in (mount / parent, mount / Path(parent).parent):
            with contextlib.suppress(OSError):
                directory.rmdir()


def names(hierarchies: Hierarchies, parent: str) -> set[str]:
    """Return the names of all groups directly under ``parent``."""
    dirs = (mount / parent for mount in hierarchies.mounts.values())
    return {
        entry.name
        for directory in dirs
        if directory.is_dir()
        for entry in directory.iterdir()
        if entry.is_dir()
    }


def _make(mount: Path, path: str, *, v2: bool) -> None:
    here = mount
    for part in Path(path).parts:
        if v2:
            wanted = " ".join(f"+{name}" for name in V2_CONTROLLERS)
            (here / "cgroup.subtree_control").write_text(wanted)
        here /= part
        here.mkdir(exist_ok=True)


def _rmdir(directory: Path, deadline: float) -> None:
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK) and not os.statvfs(directory).f_flag & os.ST_RDONLY
