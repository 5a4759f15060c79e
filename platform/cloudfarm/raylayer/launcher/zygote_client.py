"""Talking to the zygote: find it, start it when it is not there, replace it when it no longer fits."""

import hashlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudfarm.raylayer.launcher import procs, state
from cloudfarm.raylayer.launcher.errors import LauncherError
from cloudfarm.raylayer.launcher.zygote import MAX_MESSAGE, connect

FORWARDED = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY",
    "RAY_TLS_CA_CERT", "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH",
)  # fmt: skip
"""All that a node inherits from its operator. Never the whole environment: it may hold credentials, and a
host agent runs in a Ray worker, whose own RAY_* variables would lead a raylet astray."""
START = "from cloudfarm.raylayer.launcher.zygote import main; main()"
START_TIMEOUT_S = 120.0
ORDER_TIMEOUT_S = 30.0


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a node may inherit."""
    return {key: environ[key] for key in FORWARDED if key in environ}


@dataclass(frozen=True, slots=True)
class ZygoteClient:
    """The caller's side."""

    where: state.StateDir
    environ: Mapping[str, str]

    def fingerprint(self) -> str:
        """Say what a fitting zygote was started with: interpreter, our code, and the RAY_* settings.

        Ray reads its settings while it is imported, so a zygote of another setting makes nodes of that
        setting.
        """
        digest = hashlib.sha256(sys.executable.encode())
        for file in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(file.read_bytes())
        rays = {key: value for key, value in forwarded(self.environ).items() if key.startswith("RAY_")}
        digest.update(json.dumps(rays, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def ensure(self) -> int:
        """Return the pid of a fitting zygote, started now if need be (a few seconds)."""
        with self.where.lock("zygote"):
            wanted = self.fingerprint()
            found = self._ask({"op": "ping"})
            if found and found.get("fingerprint") == wanted:
                return int(found["pid"])
            if found:
                self._quit(found)
            self._kill_unreachable()
            self._spawn(wanted)
            found = self._ask({"op": "ping"})
            if not found:
                raise LauncherError("The zygote died.", reason="zygote_failed", log_tail=self._log())
            return int(found["pid"])

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        """Have a node started; returns the reply. Raises when no zygote can be had."""
        # Twice, because it may be killed after we looked. A node that it made nevertheless holds the node's
        # socket, so the second order fails and the caller clears both away.
        for _ in range(2):
            self.ensure()
            reply = self._ask({"op": "start", "order": order}, ORDER_TIMEOUT_S)
            if reply is not None:
                return reply
        raise LauncherError("The zygote gave no answer.", reason="zygote_failed", log_tail=self._log())

    def stop(self) -> None:
        """End the zygote; nodes are not touched."""
        with self.where.lock("zygote"):
            found = self._ask({"op": "ping"})
            if found:
                self._quit(found)
            self._kill_unreachable()

    def _kill_unreachable(self) -> None:
        """Kill zygotes of this farm that nobody can reach: their socket was lost with the state directory."""
        wanted = state.zygote_title(self.where.farm)
        procs.kill_and_wait([p for p in procs.snapshot().values() if procs.title(p.pid) == wanted], 10.0)

    def _quit(self, found: dict[str, Any]) -> None:
        proc = procs.read_proc(int(found["pid"]))
        fd = procs.open_pidfd(proc) if proc else None
        self._ask({"op": "quit"})
        if fd is not None:
            try:
                procs.wait_gone([fd], ORDER_TIMEOUT_S)
            finally:
                os.close(fd)

    def _ask(self, message: dict[str, Any], timeout_s: float = ORDER_TIMEOUT_S) -> dict[str, Any] | None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(timeout_s)
            try:
                connect(sock, self.where.zygote_socket)
                sock.send(json.dumps(message).encode())
                answer = sock.recv(MAX_MESSAGE)
            except (FileNotFoundError, ConnectionError):
                return None
            except TimeoutError as error:
                raise LauncherError(
                    "The zygote hangs.", reason="zygote_failed", log_tail=self._log()
                ) from error
        return json.loads(answer) if answer else None

    def _spawn(self, fingerprint: str) -> None:
        source_root = str(Path(__file__).parents[3])
        environ = forwarded(self.environ) | {"PYTHONPATH": source_root, "OMP_NUM_THREADS": "1"}
        read, write = os.pipe()
        try:
            subprocess.run(
                [sys.executable, "-c", START, str(self.where.root), fingerprint, str(write)],
                env=environ, pass_fds=(write,), stdin=subprocess.DEVNULL, check=True, start_new_session=True,
            )  # fmt: skip
            os.close(write)
            write = -1
            ready = select.select([read], [], [], START_TIMEOUT_S)[0] and os.read(read, 1)
        except (OSError, subprocess.CalledProcessError) as error:
            raise LauncherError(f"The zygote cannot be started: {error}.", reason="zygote_failed") from error
        finally:
            os.close(read)
            if write >= 0:
                os.close(write)
        if not ready:
            raise LauncherError("The zygote did not start.", reason="zygote_failed", log_tail=self._log())

    def _log(self) -> str:
        return state.tail(self.where.zygote_log)
