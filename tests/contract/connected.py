"""The real ports, in a process connected to the cluster: ``python -m tests.contract.connected STATE_DIR FD``.

Ray reads its environment while it is imported, and the tests' own process may have imported it long ago.
"""

import asyncio
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import ray

from cloudfarm.container import build_steward, load_settings, open_artifacts
from cloudfarm.raylayer.hosts import NAMESPACE
from cloudfarm.raylayer.jobs import RayJobsClient
from cloudfarm.raylayer.paths import FarmPaths
from cloudfarm.raylayer.ray_http import RayHttp
from cloudfarm.raylayer.serving import ServeClient

NOBODY = "http://127.0.0.1:1"
"""Where no dashboard answers."""


async def serve(state_dir: Path, pipe: Connection) -> None:
    """Carry out calls, one after the other, until the other end is closed."""
    settings = load_settings(state_dir)
    steward = build_steward(settings)  # for its parts, put together as on a farm; its loop never runs
    nobody = RayHttp(NOBODY, FarmPaths.of(settings).ray_token_file)
    ports = {
        "hosts": steward.actor.hosts,
        "ray_jobs": steward.actor.ray_jobs,
        "serving": steward.actor.serving,
        "watch": steward.watch,
        "ray_jobs_down": RayJobsClient(nobody, open_artifacts(settings)),
        "serving_down": ServeClient(nobody, settings.bind_address, settings.port, str(state_dir)),
    }
    pipe.send((True, None))
    while True:
        try:
            # In a thread: what the ports do by themselves, such as waiting for a node, goes on meanwhile.
            port, method, args, kwargs = await asyncio.to_thread(pipe.recv)
        except EOFError:
            return
        try:
            answer = True, await getattr(ports[port], method)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised again where the call came from
            traceback.print_exc()
            answer = False, error
        pipe.send(answer)


def main() -> None:
    state_dir, handle = Path(sys.argv[1]), int(sys.argv[2])
    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    asyncio.run(serve(state_dir, Connection(handle)))


if __name__ == "__main__":
    main()
