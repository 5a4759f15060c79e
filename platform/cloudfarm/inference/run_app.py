"""A tenant's own Serve application, run from inside its lease: ``python -m cloudfarm.inference.run_app module:app``.

Serve imports what its declarative configuration names in a task outside of any lease. So the farm starts a tenant's
application by a job in the lease, which imports it there; Serve's controller gets bytes that it does not open. The job
lasts as long as its application, and shows what that writes.
"""

import argparse
import importlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

LOOK_S = 1.0
"""How often logs are read."""
LOOKS_PER_STATUS = 5
_MAX_READ_BYTES = 256 * 1024


def main() -> int:
    """Run the application until the job is stopped."""
    wanted = _parser().parse_args()
    import ray  # noqa: PLC0415 - after the arguments have been understood
    from ray import serve  # noqa: PLC0415

    signal.signal(signal.SIGTERM, _stop)
    app = load(wanted.import_path, json.loads(wanted.args))
    ray.init(log_to_driver=True)
    try:
        try:
            # Serve's own wait for a running application never ends for one that is deleted meanwhile.
            target = serve.RunTarget(app, name=wanted.name, route_prefix=None)
            serve.run_many([target], wait_for_applications_running=False)
        except RuntimeError as error:  # also what the start-up hook refuses
            print(f"the application did not start: {error}", file=sys.stderr, flush=True)
            return 1
        why = _watch(wanted.name, Logs(_log_folder(), wanted.name, ray.get_runtime_context().get_job_id()))
        print(why, file=sys.stderr, flush=True)
        return 1
    finally:
        serve.delete(
            wanted.name, _blocking=False
        )  # Ray kills a job that takes longer than three seconds to end
        serve.status()  # answered after the deletion has been taken in


def load(import_path: str, args: Mapping[str, Any]) -> Any:
    """Import an application, or have its builder make it.

    Raises:
        TypeError: if the path leads to something else.
    """
    from ray.serve import Application  # noqa: PLC0415 - after the arguments have been understood
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary  # noqa: PLC0415

    module_name, _, name = import_path.partition(":")
    found = importlib.import_module(module_name)
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, Application) and not callable(found):
        raise TypeError(f"{import_path} is {type(found).__name__}, and no application: is there a .bind()?")
    return call_user_app_builder_with_args_if_necessary(found, dict(args))


class Logs:
    """What an application's replicas on this node have written since the last look.

    Replicas are started by Serve's controller, so what they print does not reach the job's log by itself.
    """

    def __init__(self, folder: Path, app_name: str, job_id: str) -> None:
        self._folder = folder
        self._patterns = (f"serve/replica_{app_name}_*.log", "worker-*.out", "worker-*.err")
        self._own = f"-{job_id}-"
        self._read: dict[Path, int] = {}

    def news(self) -> Iterator[str]:
        """Yield whole lines, file by file."""
        for path in sorted(path for pattern in self._patterns for path in self._folder.glob(pattern)):
            if self._own in path.name:
                continue  # Ray shows what the job's own workers print
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read(_MAX_READ_BYTES)
            whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == _MAX_READ_BYTES else b"")
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if not line.startswith(":"):  # Ray's own marks: which job and actor writes
                    yield line


def _watch(name: str, logs: Logs) -> str:
    """Show what the replicas write until the application is over; return why it is."""
    from ray import serve  # noqa: PLC0415 - after the arguments have been understood
    from ray.serve.schema import ApplicationStatus  # noqa: PLC0415

    looks, runs = 0, False
    while True:
        if not runs or looks % LOOKS_PER_STATUS == 0:
            seen = serve.status().applications.get(name)
            if seen is None:
                return f"{name} was deleted"
            if not runs and seen.status is ApplicationStatus.DEPLOY_FAILED:
                return f"the application did not start: {seen.message}"
            if not runs and seen.status is ApplicationStatus.RUNNING:
                runs = True
                print(f"the application runs as {name}", flush=True)
        for line in logs.news():
            print(line, flush=True)
        time.sleep(LOOK_S)
        looks += 1


def _log_folder() -> Path:
    """Return where Ray's processes of this lease node write their logs."""
    from ray._private.worker import global_worker  # noqa: PLC0415 - after the arguments have been understood

    return Path(global_worker.node.get_logs_dir_path())


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cloudfarm.inference.run_app", description=__doc__)
    parser.add_argument("import_path", help="module:application, or module:builder")
    parser.add_argument("--name", required=True, help="of the application in Serve: TENANT.NAME")
    parser.add_argument("--args", default="{}", help="a JSON object for a builder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
