"""Reading /proc, and ending processes without hitting a stranger who got the same pid."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Proc:
    """One process as /proc/<pid>/stat tells it. ``start_ticks`` makes the pid unique until the next boot."""

    pid: int
    ppid: int
    state: str
    comm: str
    start_ticks: int

    @property
    def alive(self) -> bool:
        """Return False for a zombie: it holds nothing any more and only waits to be reaped."""
        return self.state not in "ZX"


def parse_stat(text: str) -> Proc:
    """Parse a stat line. ``comm`` may hold blanks and brackets, so split at the last closing one."""
    head, _, tail = text.rpartition(")")
    pid, _, comm = head.partition("(")
    rest = tail.split()
    return Proc(int(pid), int(rest[1]), rest[0], comm, int(rest[19]))


def read_proc(pid: int, root: Path = PROC) -> Proc | None:
    """Return the process, or None when there is none (any more)."""
    try:
        return parse_stat((root / str(pid) / "stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def snapshot(root: Path = PROC) -> dict[int, Proc]:
    """Return every live process, zombies left out."""
    found = (read_proc(int(path.name), root) for path in root.iterdir() if path.name.isdigit())
    return {proc.pid: proc for proc in found if proc and proc.alive}


def is_running(pid: int, start_ticks: int) -> bool:
    """Say whether exactly that process runs: the pid alone may have been given to another."""
    proc = read_proc(pid)
    return proc is not None and proc.alive and proc.start_ticks == start_ticks


def boot_id() -> str:
    """Return the id of this boot; pids and start times of another boot mean nothing."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def environ(pid: int, root: Path = PROC) -> dict[str, str]:
    """Return the environment a process was executed with; empty when gone, foreign, or overwritten.

    Ray's workers and agents set a process title, which overwrites this very memory: never rely on it alone.
    """
    try:
        raw = (root / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0"))
    return {key: value for key, sep, value in pairs if sep}


def title(pid: int, root: Path = PROC) -> str:
    """Return the command line as one string (for our own forks: their process title)."""
    try:
        raw = (root / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def pid_namespace(pid: int, root: Path = PROC) -> int | None:
    """Return the inode of the process' PID namespace."""
    try:
        return (root / str(pid) / "ns" / "pid").stat().st_ino
    except OSError:
        return None


def pid_within(pid: int, root: Path = PROC) -> int | None:
    """Return the pid by which a process knows itself, in its own PID namespace."""
    with contextlib.suppress(OSError):
        for line in (root / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


def descendants(
    roots: Iterable[int], processes: dict[int, Proc], stop: frozenset[int] = frozenset()
) -> set[int]:
    """Return the roots and all below them, not entering the processes in ``stop``."""
    children: dict[int, list[int]] = {}
    for proc in processes.values():
        children.setdefault(proc.ppid, []).append(proc.pid)
    found: set[int] = set()
    pending = [pid for pid in roots if pid in processes]
    while pending:
        pid = pending.pop()
        if pid not in found and pid not in stop:
            found.add(pid)
            pending.extend(children.get(pid, ()))
    return found


def pss_bytes(pid: int) -> int:
    """Return the proportional set size: shared pages counted by share, so a sum over processes is honest."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """Return user plus system time of a process and its reaped children."""
    with contextlib.suppress(OSError):
        rest = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return sum(int(ticks) for ticks in rest[11:15]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def open_pidfd(proc: Proc) -> int | None:
    """Return a pidfd of exactly this process, or None when it has gone.

    The start time is compared after opening: before it, the pid could have changed hands in between.
    """
    try:
        fd = os.pidfd_open(proc.pid)
    except ProcessLookupError:
        return None
    if is_running(proc.pid, proc.start_ticks):
        return fd
    os.close(fd)
    return None


def send_kill(proc: Proc) -> bool:
    """SIGKILL exactly this process; False if it has gone."""
    fd = open_pidfd(proc)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def kill_and_wait(targets: Iterable[Proc], timeout_s: float) -> None:
    """SIGKILL the processes and wait until they are gone or the time is over; the caller looks again."""
    fds = [fd for fd in map(open_pidfd, targets) if fd is not None]
    try:
        for fd in fds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        wait_gone(fds, timeout_s)
    finally:
        for fd in fds:
            os.close(fd)


def wait_gone(fds: Iterable[int], timeout_s: float) -> bool:
    """Wait until all processes of these pidfds have ended; a pidfd is readable from then on."""
    poller = select.poll()
    waiting = set(fds)
    for fd in waiting:
        poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while waiting:
        for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            poller.unregister(fd)
            waiting.discard(fd)
        if waiting and time.monotonic() >= deadline:
            return False
    return True
