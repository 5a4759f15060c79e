"""The steward as a detached Ray actor on the head: Ray restarts it when it dies, and the epoch fences the old one."""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from cloudfarm.domain.load import LoadReport
from cloudfarm.errors import CloudfarmError, FencedError
from cloudfarm.ports import Serving
from cloudfarm.raylayer.hosts import NAMESPACE
from cloudfarm.raylayer.shared_actors import create_shared_actors
from cloudfarm.steward.loop import Steward

log = logging.getLogger(__name__)

NAME = "steward"
OPEN_PAUSE_S = 5.0
TELL_S = 5.0
"""How long a steward that failed tries to tell the operators."""


class StewardActor:
    """Runs the steward's loop in the actor's event loop, from the moment that the actor is made or made again."""

    async def __init__(self, build: Callable[[], Steward]) -> None:  # type: ignore[misc] # Ray awaits it, inside the loop
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at the dashboard
        self._steward = build()
        self._running = asyncio.create_task(self._run())

    async def nudge(self) -> None:
        """Make the loop look at the farm now."""
        self._steward.wake()

    async def report(self, report: LoadReport) -> None:
        """Take what services are asked."""
        self._steward.report(report)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._steward.run())
                both.create_task(_open(self._steward.actor.serving))
        except* FencedError:  # the newer one opens the farm, too
            log.warning("a newer steward has taken over; this one ends")
        except* Exception as failed:  # noqa: BLE001 - it is told, and the process ends
            # Nothing can be assumed of what is half done: a fresh process starts from the store and the hosts.
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    await self._steward.actor.troubles.tell("the steward failed and is started again", failed)
            logging.shutdown()
            os._exit(1)


async def _open(serving: Serving, pause_s: float = OPEN_PAUSE_S) -> None:
    """Bring up what others wait for, beside the loop: the front door, and Ray Data's shared helpers.

    Neither waits for the other: helpers that the farm does not make, Ray Data makes on the node of a lease.
    """
    await asyncio.gather(
        _until_done("opening the front door", serving.open, pause_s),
        _until_done("making the shared helpers", partial(asyncio.to_thread, create_shared_actors), pause_s),
    )


async def _until_done(what: str, act: Callable[[], Awaitable[object]], pause_s: float) -> None:
    while True:
        try:
            await act()
        except (CloudfarmError, RayError):
            log.warning("%s failed and is tried again", what, exc_info=True)
        else:
            return
        await asyncio.sleep(pause_s)


def ensure_steward(build: Callable[[], Steward]) -> Any:
    """Create the steward on the head, or return the one there is. Ray calls ``build`` again when it restarts it."""
    return (
        ray.remote(StewardActor)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=100,
            num_cpus=0,
            label_selector={"farm": "control", "role": "head"},
        )
        .remote(build)
    )


class ActorNudge:
    """Implements :class:`cloudfarm.ports.Nudge`: tells the steward actor without waiting for it."""

    def __init__(self) -> None:
        self._actor: Any = None

    def nudge(self) -> None:
        """Wake the steward; a steward that cannot be found looks by itself at its next tick."""
        self._tell("nudge")

    def report(self, report: LoadReport) -> None:
        """Say how much services are asked; a steward that cannot be found hears of it with the next report."""
        self._tell("report", report)

    def _tell(self, method: str, *args: Any) -> None:
        try:
            if self._actor is None:
                self._actor = ray.get_actor(NAME, namespace=NAMESPACE)
            getattr(self._actor, method).remote(*args)
        except (ValueError, RayError) as error:
            self._actor = None
            log.warning("the steward cannot be told: %s", error)
