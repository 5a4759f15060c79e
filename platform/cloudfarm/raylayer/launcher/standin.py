"""What Ray's raylet takes for one of its agents; run as ``python -I -S standin.py SOCKET SCRIPT ARGS``.

The raylet executes a command for each agent and dies when that process dies. An agent executed so would
import Ray anew (a second of CPU time and 90 to 140 MB). This process asks the node's init, which has imported
it all, to fork the agent instead, waits, and ends as the agent ends. When this process dies, the closed
socket tells the init to kill the agent. It imports only what is built into the interpreter: it has to start
in milliseconds and stay small.
"""

import _socket
import posix
import sys


def main() -> None:
    """Hand over arguments, environment and the three standard streams, then wait for the exit status."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    sock.connect(sys.argv[1])
    # NUL-separated, because json is too heavy here and neither arguments nor variables can hold a NUL.
    arguments = [argument.encode("utf-8", "surrogateescape") for argument in sys.argv[2:]]
    variables = [key + b"=" + value for key, value in posix.environ.items()]
    request = b"\0".join([b"agent", b"%d" % len(arguments), *arguments, *variables])
    streams = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
    sock.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
    answer = sock.recv(16)
    posix._exit(int(answer) if answer else 1)  # noqa: SLF001  # no answer: the init is gone, and the node with it


main()
