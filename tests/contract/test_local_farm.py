"""A farm on this machine, before anything of it is started."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cloudfarm.errors import ConflictError
from cloudfarm.raylayer.farm import LocalFarm
from cloudfarm.settings import Settings


class Healthy(BaseHTTPRequestHandler):
    """Answers as the front door of any farm does."""

    def do_GET(self) -> None:
        """Say that all is well."""
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Write nothing."""


@pytest.fixture
def others_port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


def test_another_farm_at_the_same_address_is_not_taken_for_this_one(tmp_path: Path, others_port: int) -> None:
    farm = LocalFarm(Settings(state_dir=tmp_path / "state", port=others_port))
    with pytest.raises(ConflictError, match=f"another farm answers at http://127.0.0.1:{others_port}"):
        farm.up(prepare=lambda: pytest.fail("began to start"), build_steward=lambda: None)
    assert not farm.paths.settings_file.exists()
    assert farm.left_running() == []
    farm.paths.runtime_dir.rmdir()
