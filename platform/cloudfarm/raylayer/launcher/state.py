"""The launcher's files: what survives the caller, the zygote and, in a copy, the state directory itself.

``<state_dir>/nodes/<name>/`` has three small JSON files, each with one writer and replaced atomically:

- ``spec.json``   by the caller, before anything is started: what is wanted, and the id of this start;
- ``init.json``   by the launch process, when the node's init exists: its pid and identity, limits,
namespaces;
- ``status.json`` by the node's init: up with its Ray node id, or failed or exited and why.

The same files are mirrored under ``<temp_dir>/.cloudfarm``, where a lost state directory is restored from.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIRROR = ".cloudfarm"
SCRATCH = "tmp"
"""Where the node's processes keep temporary files: what they leave there goes with the node."""
SPEC, INIT, STATUS = "spec.json", "init.json", "status.json"
INIT_SOCKET = "init.sock"
NODE_LOG = "node.log"
MARKER_NODE = "CLOUDFARM_NODE"
MARKER_FARM = "CLOUDFARM_NODE_FARM"
MARKER_HOME = "CLOUDFARM_NODE_HOME"
TITLE_NODE, TITLE_ZYGOTE = "cloudfarm-node ", "cloudfarm-zygote "


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old or the new one, never a half."""
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(data, sort_keys=True))
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)  # a full disk must not also collect drafts
        raise


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the file's object; None where there is none or it was cut off by a crash of the machine."""
    try:
        data = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return data if isinstance(data, dict) else None


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """The two homes of one node's files."""

    home: Path
    mirror: Path | None

    def write(self, file: str, data: dict[str, Any]) -> None:
        """Write to both homes, the first one first."""
        for directory in (self.home, self.mirror):
            if directory is not None:
                write_json(directory / file, data)

    def read(self, file: str) -> dict[str, Any] | None:
        """Read from the first home that has it."""
        found = (read_json(directory / file) for directory in (self.home, self.mirror) if directory)
        return next((data for data in found if data is not None), None)


@dataclass(frozen=True, slots=True)
class StateDir:
    """The launcher's state directory on one host."""

    root: Path

    @property
    def farm(self) -> str:
        """Return a short stable id: two farms on one host must not touch each other's nodes."""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:8]

    @property
    def nodes(self) -> Path:
        """Return the directory of all nodes."""
        return self.root / "nodes"

    @property
    def zygote_socket(self) -> Path:
        """Return the zygote's socket."""
        return self.root / "zygote.sock"

    @property
    def zygote_log(self) -> Path:
        """Return the zygote's log."""
        return self.root / "zygote.log"

    def prepare(self) -> None:
        """Make the directories, private to the farm's user: who reaches the zygote can start nodes."""
        self.nodes.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)

    def files(self, name: str, temp_dir: str | None) -> NodeFiles:
        """Return the files of a node."""
        return NodeFiles(self.nodes / name, Path(temp_dir) / MIRROR if temp_dir else None)

    def names(self) -> set[str]:
        """Return the names of all nodes that have files here."""
        return (
            {entry.name for entry in self.nodes.iterdir() if entry.is_dir()} if self.nodes.is_dir() else set()
        )

    def forget(self, name: str) -> None:
        """Remove a node's files from the state directory."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.nodes / name)

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the named lock; yields False when it is held elsewhere and ``wait`` is False.

        A file lock, not a thread lock: it holds between processes, and the kernel frees it when one is
        killed.
        """
        directory = self.root / "locks"
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def init_title(name: str, farm: str) -> str:
    """Return the process title of a node's init (and of the short-lived process that makes it)."""
    return f"{TITLE_NODE}{name} {farm}"


def zygote_title(farm: str) -> str:
    """Return the process title of the zygote."""
    return f"{TITLE_ZYGOTE}{farm}"


def tail(file: Path, limit: int = 3000) -> str:
    """Return the end of a log, or nothing."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - limit))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return ""
