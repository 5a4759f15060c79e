"""Where a farm keeps its files on one machine, and which ports it uses there.

The state folder is durable. The runtime folder holds Ray's session folders; its path must stay short, because Ray
puts unix sockets below it and the kernel allows 107 bytes for a socket's path.
"""

import hashlib
import os
import secrets
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from cloudfarm.errors import UnavailableError
from cloudfarm.settings import Settings

PORTS_OF_HEAD = 200
PORTS_OF_HOST = 2000
PORTS_OF_NODE = 50
"""At least so many for each lease node: six for Ray's own parts, the others for its workers."""
MAX_SERVE_MESSAGE_BYTES = 64 * 1024**2
"""The most that Serve passes at once between the front door and a replica, by default 4 MiB."""


@dataclass(frozen=True, slots=True)
class FarmPaths:
    """Folders and ports of one farm on this machine."""

    state_dir: Path
    internal_port_base: int

    @classmethod
    def of(cls, settings: Settings) -> "FarmPaths":
        """Return the paths for the settings."""
        return cls(settings.state_dir, settings.internal_port_base)

    @property
    def runtime_dir(self) -> Path:
        """Short folder for Ray's sessions, one for each state folder and user."""
        digest = hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:8]
        return Path(f"/tmp/cf-{os.getuid()}-{digest}")  # noqa: S108 - made with mode 0700 and checked below

    @property
    def settings_file(self) -> Path:
        """The settings in force, read by every process of the farm."""
        return self.state_dir / "settings.json"

    @property
    def lock_file(self) -> Path:
        """Held while the farm is being started or stopped."""
        return self.state_dir / "lock"

    @property
    def ray_token_file(self) -> Path:
        """The cluster's own token; tenants never get it from the farm."""
        return self.state_dir / "ray-token"

    @property
    def operator_token_file(self) -> Path:
        """The first operator's token, for the CLI on this machine."""
        return self.state_dir / "operator-token"

    @property
    def gcs_port(self) -> int:
        """Port of Ray's control service."""
        return self.internal_port_base

    @property
    def dashboard_port(self) -> int:
        """Port of the Ray dashboard and its Jobs and Serve APIs."""
        return self.internal_port_base + 1

    def head_ports(self) -> tuple[int, int]:
        """Ports for the head node's workers and agents."""
        return self.internal_port_base + 10, self.internal_port_base + PORTS_OF_HEAD - 1

    def host_ports(self, index: int) -> tuple[int, int]:
        """Ports of the ``index``-th host on this machine, its base node's and its lease nodes'."""
        first = self.internal_port_base + PORTS_OF_HEAD + index * PORTS_OF_HOST
        return first, first + PORTS_OF_HOST - 1

    def host_dir(self, host: str) -> Path:
        """State of one host's launcher."""
        return self.state_dir / "hosts" / host

    def node_dir(self, name: str) -> Path:
        """Ray's temp dir of one node."""
        return self.runtime_dir / name

    def ray_env(self, address: str, gcs_address: str) -> dict[str, str]:
        """Return the environment of every Ray process of the farm on this machine, listening on ``address``.

        Ray replaces 127.0.0.1 by the machine's outer address, where a farm on loopback does not listen; the variable
        made for systems with nagging firewalls keeps it.
        """
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",  # a job's `python` is ours
            "RAY_ADDRESS": gcs_address,  # else some of Ray's helpers look for any cluster on the machine
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.ray_token_file),
            "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_SERVE_MESSAGE_BYTES),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        return env | ({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if address == "127.0.0.1" else {})

    def make(self) -> None:
        """Create the folders, private to this user.

        Raises:
            UnavailableError: if the runtime folder is somebody else's.
        """
        for folder in (self.state_dir, self.runtime_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.runtime_dir.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise UnavailableError(
                f"{self.runtime_dir} is not this user's folder; remove it or choose another state folder"
            )
        self.runtime_dir.chmod(0o700)


def read_or_make_secret(path: Path) -> str:
    """Return the secret in a file, made with 256 random bits and mode 0600 if there is none."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    return path.read_text().strip()
