"""Ends an engine's processes when the one that started them ends, however that ends.

vLLM's processes go on without it (they were seen to, a minute after a SIGKILL): the next replica on the lease would
find their memory taken.
"""

import subprocess
import sys
from collections.abc import Iterable

_KEEPER = """
import os, signal, sys
kept = []
for pid in map(int, sys.argv[1:]):
    try:
        kept.append(os.pidfd_open(pid))
    except ProcessLookupError:
        pass
sys.stdout.write("ready")
sys.stdout.flush()
sys.stdin.read()
for process in kept:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Keeper:
    """Kills processes when this one ends, or at once when it is closed.

    A process of its own holds them: it waits for the end of a pipe, which the kernel closes with this process.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._process.stdout is None or self._process.stdout.read(5) != b"ready":
            raise RuntimeError("the keeper of the engine's processes did not start")
        self._process.stdout.close()

    def close(self) -> None:
        """Kill what still runs, and wait until that is done."""
        self._process.communicate()
