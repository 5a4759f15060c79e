"""The steward as a detached Ray actor on the head: Ray restarts it when it dies, and the epoch fences the old one."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import ray

from cloudfarm.domain.load import LoadReport
from cloudfarm.errors import CloudfarmError, FencedError
from cloudfarm.ports import Serving
from cloudfarm.raylayer.hosts import NAMESPACE
from cloudfarm.raylayer.shared_actors import create_shared_actors
from cloudfarm.steward.loop import Steward

log = logging.getLogger(__name__)

NAME = "steward"


class StewardActor:
    """Runs the steward's loop in the actor's event loop, from the moment that the actor is made or made again."""

    async def __init__(self, build: Callable[[], Steward]) -> None:  # type: ignore[misc] # Ray awaits it, inside the loop
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at the dashboard
        self._steward = build()
        self._opening = asyncio.create_task(_open(self._steward.actor.serving))
        self._running = asyncio.create_task(self._run())

    async def nudge(self) -> None:
        """Make the loop look at the farm now."""
        self._steward.wake()

    async def report(self, report: LoadReport) -> None:
        """Take what services are asked."""
        self._steward.report(report)

    async def _run(self) -> None:
        try:
            await self._steward.run()
        except* FencedError:
            log.warning("a newer steward has taken over; this one ends")
        except* Exception:
            # Nothing can be assumed of what is half done: a fresh process starts from the store and the hosts.
            log.exception("the steward failed and is started again")
            logging.shutdown()
            os._exit(1)


async def _open(serving: Serving) -> None:
    """Bring up what others wait for, beside the loop: the front door first, then Ray Data's shared helpers."""
    try:
        await serving.open()
        await asyncio.to_thread(create_shared_actors)
    except (CloudfarmError, ray.exceptions.RayError) as error:
        # The loop applies the whole configuration anyway; Ray Data makes its helpers itself, on a lease's node.
        log.warning("the farm opens more slowly: %s", error)


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
        except (ValueError, ray.exceptions.RayError) as error:
            self._actor = None
            log.warning("the steward cannot be told: %s", error)
