"""Forking a warm Python process so that the child inherits its imports and nothing else."""

import contextlib
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cloudfarm.raylayer.launcher import namespaces

STREAMS = (0, 1, 2)


def fork(run: Callable[[], int], *, keep: Iterable[int] = (), tied: bool = False) -> int:
    """Fork; the child closes all but the streams and ``keep``, runs, and ends with the returned status.

    Returns the child's pid. The child never returns into the caller's frames: those belong to the parent.
    ``tied``: the child is killed when we end. Without a namespace nothing else would lead to it: it carries
    the zygote's environment and a title of Ray's.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        # A lock held by another thread at this moment would stay locked in the child for ever.
        message = "refusing to fork: the process has more than one thread"
        raise RuntimeError(message)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _reset_signals()
        if tied:
            namespaces.die_with_parent(parent)
        close_others(keep)
        code = run()
    except BaseException:  # noqa: BLE001 - the child ends here whatever happens; its log has the reason
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def check_quiet() -> None:
    """Raise if something that was imported starts a thread in every fork (``os.register_at_fork``).

    Such a thread lives for milliseconds, and so breaks only now and then what needs a single thread: the next
    fork, or unsharing the user namespace. So look for it here rather than find out in production.
    """
    start = threading.Thread.start
    started: list[threading.Thread] = []
    threading.Thread.start = lambda self: started.append(self) or start(self)  # type: ignore[method-assign,func-returns-value]
    pid = os.fork()
    if pid == 0:
        os._exit(len(started))
    threading.Thread.start = start  # type: ignore[method-assign]
    if os.waitpid(pid, 0)[1]:
        message = "an imported module starts threads in forks"
        raise RuntimeError(message)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python starts up
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def log(message: str) -> None:
    """Write a line to the process' log, which is its standard error."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def close_others(keep: Iterable[int] = ()) -> None:
    """Close all but the standard streams and ``keep``. Needs no /proc, which may not be ours yet."""
    low = 0
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for fd in sorted({*STREAMS, *keep}):
        if low < fd:  # closerange(0, 0) closes everything: it hands the kernel a last descriptor of -1
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, limit)


def use_streams(log: Path) -> None:
    """Read from nowhere and write to the log."""
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)


def use_environment(variables: Mapping[str, str]) -> None:
    """Replace the whole environment, also for C++ code (``os.environ`` calls putenv and unsetenv)."""
    os.environ.clear()
    os.environ.update(variables)


def set_title(title: str) -> None:
    """Set the process title: a fork has its parent's command line, and is found again by its title."""
    import ray._raylet  # noqa: PLC0415

    ray._raylet.setproctitle(title)  # noqa: SLF001 - Ray bundles it and offers no other way to it
