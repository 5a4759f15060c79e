"""A tenant's script that leaves processes behind: one ignores SIGTERM, one double-forks into a session of its own.

Each writes the time to its own file until it is killed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BEAT = """
import sys, time, pathlib
while True:
    pathlib.Path(sys.argv[1]).write_text(str(time.time()))
    time.sleep(0.05)
"""
IGNORE = "import signal\nfor number in (signal.SIGTERM, signal.SIGHUP):\n    signal.signal(number, signal.SIG_IGN)\n"


def main() -> None:
    folder = Path(sys.argv[1])
    subprocess.Popen([sys.executable, "-c", IGNORE + BEAT, str(folder / "ignores-sigterm")])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            # A clean environment: not even the farm's marks lead to it.
            os.execve(sys.executable, [sys.executable, "-c", BEAT, str(folder / "double-forked")], {})
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("spawned", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
