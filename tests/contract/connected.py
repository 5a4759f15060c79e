"""The real ports, in a process connected to the cluster: ``python -m tests.contract.connected STATE_DIR FD``.

Ray reads its environment while it is imported, and the tests' own process may have imported it long ago.
"""

import asyncio
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray

from cloudfarm.container import build_steward, load_settings, open_artifacts
from cloudfarm.ports import Apps
from cloudfarm.raylayer.hosts import NAMESPACE
from cloudfarm.raylayer.jobs import RayJobsClient, RayLogs
from cloudfarm.raylayer.paths import FarmPaths
from cloudfarm.raylayer.ray_http import RayHttp
from cloudfarm.raylayer.serve_http import ServeApps
from cloudfarm.raylayer.serving import ServeClient
from tests.processes import eventually

NOBODY = "http://127.0.0.1:1"
"""Where no dashboard answers."""


class Asking:
    """A process that calls tenants' applications; Serve lets only actors do so, such as the front door's replica."""

    def __init__(self, apps: Apps) -> None:
        self._apps = apps

    async def ask(
        self,
        app_name: str,
        scope: Mapping[str, Any],
        body: bytes,
        most: int,
        leave_at: tuple[Path, str] | None,
    ) -> tuple[list[Mapping[str, Any]], Exception | None]:
        """Return the messages of the answer, and how it ended if not well.

        Leaves after so many messages, or as soon as there is that text in that file.
        """
        messages: list[Mapping[str, Any]] = []

        async def read() -> None:
            async with aclosing(self._apps.answer(app_name, scope, body)) as answer:
                async for message in answer:
                    messages.append(message)
                    if len(messages) == most:
                        return

        async def is_noted() -> bool:
            return leave_at is not None and leave_at[0].exists() and leave_at[1] in leave_at[0].read_text()

        reading = asyncio.create_task(read())
        leaving = asyncio.create_task(eventually(is_noted, "the application to note something"))
        await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not reading.done():
            reading.cancel()
            await asyncio.wait((reading,))
            return messages, None
        return messages, reading.exception()

    async def talk(
        self, app_name: str, scope: Mapping[str, Any], steps: Sequence[Mapping[str, Any] | int | None]
    ) -> tuple[list[Mapping[str, Any]], Exception | None]:
        """Return what the application said on a WebSocket, and how that ended if not well.

        Args:
            app_name: of the application.
            scope: of the WebSocket.
            steps: what the client says; a number waits until the application has said so much, None leaves.
        """
        messages: list[Mapping[str, Any]] = []
        said, left, to_do = asyncio.Condition(), asyncio.Event(), iter(steps)

        async def receive() -> Mapping[str, Any]:
            for step in to_do:
                if step is None:
                    left.set()
                elif isinstance(step, int):
                    async with said:
                        await said.wait_for(lambda most=step: len(messages) >= most)  # type: ignore[misc]
                else:
                    return step
            await asyncio.Event().wait()
            raise AssertionError

        async def listen() -> None:
            async with aclosing(self._apps.converse(app_name, scope, receive)) as answer:
                async for message in answer:
                    async with said:
                        messages.append(message)
                        said.notify_all()

        listening, leaving = asyncio.create_task(listen()), asyncio.create_task(left.wait())
        await asyncio.wait((listening, leaving), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        leaving.cancel()
        if not listening.done():
            listening.cancel()
            await asyncio.wait((listening,))
            assert left.is_set(), f"nothing more came after {len(messages)} messages"
            return messages, None
        return messages, listening.exception()  # type: ignore[return-value]


class FrontDoor:
    """The actor of it."""

    def __init__(self) -> None:
        self._asking = Asking(ServeApps())

    async def ask(self, *args: Any) -> Any:
        return await self._asking.ask(*args)

    async def talk(self, *args: Any) -> Any:
        return await self._asking.talk(*args)


class RemoteFrontDoor:
    """The port of it."""

    def __init__(self) -> None:
        self._actor = ray.remote(num_cpus=0)(FrontDoor).remote()

    async def ask(self, *args: Any) -> Any:
        return await self._actor.ask.remote(*args)

    async def talk(self, *args: Any) -> Any:
        return await self._actor.talk.remote(*args)


class Cluster:
    """What Ray itself says."""

    async def living(self) -> set[str]:
        """Return the names of the nodes that it counts as living."""
        return {node["NodeName"] for node in ray.nodes() if node["Alive"]}


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
        "front_door": RemoteFrontDoor(),
        "cluster": Cluster(),
        "logs": RayLogs(steward.actor.ray_jobs._http),
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
