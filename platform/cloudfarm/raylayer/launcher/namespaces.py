"""Linux namespaces through libc: Python 3.11 has no ``os.unshare``.

A lease node needs its own PID namespace with its own /proc, because Ray looks through /proc for "the" raylet
of a host and a driver would join a neighbour's. The same namespace lets the kernel kill everything in it at
once.
"""

import ctypes
import os
import signal
from pathlib import Path

from cloudfarm.raylayer.launcher.spec import Namespace

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(kind: Namespace) -> None:
    """Move the caller's future children into new namespaces. Raises OSError where refused."""
    if kind == "none":
        return
    if kind == "root":
        _check(_libc.unshare(CLONE_NEWPID | CLONE_NEWNS), "unshare")
        return
    uid, gid = os.geteuid(), os.getegid()  # inside the new namespace they read as "nobody" until mapped
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS), "unshare")
    # The identity: files keep their owner, and an ordinary user stays one once the raylet is executed.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    def raw(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    _check(_libc.mount(raw(source), raw(target), raw(kind), flags, raw(data)), f"mount {target}")


def furnish() -> None:
    """As the first process of new namespaces: private mounts, own /proc, own /dev/shm.

    The own /dev/shm dies with the namespace, so no object store or torch tensor can be left behind in the
    host's memory; what is in it counts towards the node's memory limit like anything else.
    """
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")  # noqa: S108


def bind_read_only(source: str, target: str) -> None:
    """Show ``source`` at ``target``, for the caller's mount namespace only."""
    _mount(source, target, None, MS_BIND)
    _mount(source, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; at once, if that has happened already."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def become_subreaper() -> None:
    """Inherit orphaned descendants, so that a double fork cannot leave the process tree."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
