"""The zygote: one warm process per host and farm that has imported Ray and forks the nodes from itself.

`main` takes STATE_DIR, FINGERPRINT and READY_FD from the command line. It makes itself a daemon, so it
survives the host agent; nodes do not depend on it. It holds no state: killing it at any time loses nothing,
the next order starts another.
"""

import gc
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from cloudfarm.raylayer.launcher import forks, launch, namespaces, raynode, state

MAX_MESSAGE = 1 << 20


def main() -> None:
    """Become a daemon, import everything, then take orders until told to quit."""
    state_dir, fingerprint, ready = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    where = state.StateDir(state_dir)
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    forks.close_others((ready,))
    forks.use_streams(where.zygote_log)
    namespaces.become_subreaper()  # an init becomes our child; with SIGCHLD ignored none stays a zombie
    raynode.preload()
    forks.check_quiet()
    forks.set_title(state.zygote_title(where.farm))
    gc.collect()
    gc.freeze()  # the collector would write to every inherited object and so copy the shared pages

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    where.zygote_socket.unlink(
        missing_ok=True
    )  # the caller holds the zygote's lock: no other can be behind it
    bind(listener, where.zygote_socket)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(ready, b"r")
    os.close(ready)
    while serve(listener, where, fingerprint):
        pass
    where.zygote_socket.unlink(missing_ok=True)


def serve(listener: socket.socket, where: state.StateDir, fingerprint: str) -> bool:
    """Take one request; False means quit."""
    connection, _ = listener.accept()
    with connection:
        message = connection.recv(MAX_MESSAGE)
        request: dict[str, Any] = json.loads(message) if message else {}
        if request.get("op") == "start":
            forks.fork(lambda: _in_launch(connection, where, request["order"]), keep=(connection.fileno(),))
            return True
        _reply(connection, {"pid": os.getpid(), "fingerprint": fingerprint})
        return request.get("op") != "quit"


def _in_launch(connection: socket.socket, where: state.StateDir, order: dict[str, Any]) -> int:
    reply: dict[str, Any]
    try:
        reply = {"init": launch.launch(launch.Order.from_dict(order), where)}
    except launch.StaleOrderError:
        reply = {"error": "the start was given up"}
    except OSError as error:
        traceback.print_exc()
        reply = {"error": f"{type(error).__name__}: {error}", "errno": error.errno}
    _reply(connection, reply)
    return 0


def _reply(connection: socket.socket, reply: dict[str, Any]) -> None:
    try:
        connection.send(json.dumps(reply).encode())
    except OSError as error:  # the caller was killed: what is done is in the files
        forks.log(f"nobody to answer: {error}")


def bind(sock: socket.socket, path: Path) -> None:
    """Bind to a path of any length: the kernel takes 107 bytes, so go through the directory's descriptor."""
    _through_directory(path, sock.bind)


def connect(sock: socket.socket, path: Path) -> None:
    """Connect to a path of any length."""
    _through_directory(path, sock.connect)


def _through_directory(path: Path, use: Any) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        use(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
