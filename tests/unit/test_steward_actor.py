"""What the steward's actor brings up beside the loop, and that it does so whatever fails at first."""

import asyncio
from types import SimpleNamespace

import pytest

from cloudfarm.errors import FencedError, UnavailableError
from cloudfarm.raylayer import steward_actor
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.memory_store import MemoryStore
from cloudfarm.troubles import Troubles


class Flaky:
    """Fails so many times, then works."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.done = 0

    def __call__(self) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("not yet")
        self.done += 1

    async def open(self) -> None:
        self()


@pytest.mark.parametrize(("door", "helpers"), [(0, 0), (2, 0), (0, 2), (1, 3)])
async def test_front_door_and_helpers_are_each_tried_until_they_are_there(monkeypatch, caplog, door, helpers):
    serving, shared = Flaky(door), Flaky(helpers)
    monkeypatch.setattr(steward_actor, "create_shared_actors", shared)
    await steward_actor._open(serving, pause_s=0)
    assert (serving.done, shared.done) == (1, 1)
    assert caplog.text.count("opening the front door failed and is tried again") == door
    assert caplog.text.count("making the shared helpers failed and is tried again") == helpers


async def test_helpers_are_made_while_the_front_door_cannot_be_opened(monkeypatch):
    made = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(steward_actor, "create_shared_actors", lambda: loop.call_soon_threadsafe(made.set))
    opening = asyncio.create_task(steward_actor._open(Flaky(10**9), pause_s=0.01))
    await asyncio.wait_for(made.wait(), 10)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def run_actor(steward) -> None:
    actor = object.__new__(steward_actor.StewardActor)
    await actor.__init__(lambda: steward)  # as Ray does
    await asyncio.wait_for(actor._running, 10)


async def test_a_steward_that_is_fenced_opens_nothing_more(monkeypatch):
    opening = asyncio.Event()
    ended = asyncio.Event()

    async def open_for_ever() -> None:
        opening.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fenced() -> None:
        await opening.wait()
        raise ExceptionGroup("both", [FencedError()])

    monkeypatch.setattr(steward_actor, "create_shared_actors", lambda: None)
    monkeypatch.setattr(steward_actor.os, "_exit", lambda _: pytest.fail("ended as if it had failed"))
    await run_actor(
        SimpleNamespace(run=fenced, actor=SimpleNamespace(serving=SimpleNamespace(open=open_for_ever)))
    )
    assert ended.is_set()


async def test_a_mistake_of_our_own_while_opening_starts_the_steward_again(monkeypatch, caplog):
    async def mistaken() -> None:
        raise TypeError("one argument too many")

    exits = []
    monkeypatch.setattr(steward_actor, "create_shared_actors", lambda: None)
    monkeypatch.setattr(steward_actor.os, "_exit", exits.append)
    monkeypatch.setattr(steward_actor.logging, "shutdown", lambda: None)
    serving = SimpleNamespace(open=mistaken)
    store = MemoryStore()
    troubles = Troubles(store, ManualClock())
    await run_actor(
        SimpleNamespace(run=asyncio.Event().wait, actor=SimpleNamespace(serving=serving, troubles=troubles))
    )
    assert exits == [1]
    assert "one argument too many" in caplog.text
    async with store.begin(write=False) as uow:
        (told,) = await uow.events.list()
    assert told.message.startswith("the steward failed and is started again: TypeError at ")
