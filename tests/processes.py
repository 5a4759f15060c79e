"""What tests of real processes share: ports for them, waiting for them, and seeing that none is left."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


def until(look: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
    """Return the first look that is true; the farm's processes tell of their progress only to who looks."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}"
        time.sleep(0.1)
    return found


def free_port(*, block: int = 1) -> int:
    """Return a port below the range that the kernel gives to clients, with the first of a block free."""
    for first in range(14000, 31000, max(block, 7)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", first))
            except OSError:
                continue
            return first
    raise AssertionError("no port is free")


def processes_naming(folder: Path) -> list[int]:
    """Return the pids of processes that name the folder in their environment or command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


async def eventually(look: Callable[[], Awaitable[Any]], what: str, timeout_s: float = 120.0) -> Any:
    """Return the first look that is true, as :func:`until` does."""
    deadline = time.monotonic() + timeout_s
    while not (found := await look()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}"
        await asyncio.sleep(0.05)
    return found
