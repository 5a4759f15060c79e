"""Who is let through: remembered for less than a second, and looked up again beside the requests."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cloudfarm.errors import UnauthenticatedError, UnavailableError
from cloudfarm.testing.front_door import FrontDoor, open_front_door
from cloudfarm.usecases.gate import Gate


class GuardedStore:
    """Counts who reads, and keeps readers waiting while it is shut."""

    def __init__(self, store) -> None:
        self._store = store
        self.reads = 0
        self.opened = asyncio.Event()
        self.opened.set()
        self.failing = False

    def begin(self, *, write: bool = True):
        assert not write
        return self._Reading(self)

    class _Reading:
        def __init__(self, guard: "GuardedStore") -> None:
            self._guard = guard

        async def __aenter__(self):
            self._guard.reads += 1
            await self._guard.opened.wait()
            if self._guard.failing:
                raise UnavailableError("the database does not answer")
            self._uow = self._guard._store.begin(write=False)
            return await self._uow.__aenter__()

        async def __aexit__(self, *error):
            return await self._uow.__aexit__(*error)


@pytest.fixture
async def door(tmp_path) -> AsyncIterator[FrontDoor]:
    async with open_front_door(tmp_path) as opened:
        await opened.serve("talk")
        yield opened


@pytest.fixture
def store(door) -> GuardedStore:
    return GuardedStore(door.store)


@pytest.fixture
def gate(door, store) -> Gate:
    return Gate(store, door.clock, door.app.state.calls.gate.room)


@pytest.fixture
def secret(door) -> str:
    return door.tokens["alpha.key"]


async def settled(gate: Gate) -> None:
    """Wait for every look that is under way."""
    await asyncio.gather(*(look for _, look in gate._looking.values()), return_exceptions=True)


async def waits(gate: Gate, store: GuardedStore, secret: str) -> None:
    """Check that a request waits for the store."""
    store.opened.clear()
    asked = asyncio.create_task(gate.route(secret, "talk"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not asked.done()
    store.opened.set()
    assert (await asked).app_name == "alpha.talk.1"


async def test_a_look_is_one_transaction(gate, store, secret) -> None:
    assert (await gate.route(secret, "talk")).app_name == "alpha.talk.1"
    assert store.reads == 1
    await gate.route(secret, "talk")
    assert store.reads == 1


async def test_who_goes_on_calling_does_not_wait_for_the_store(gate, store, door, secret) -> None:
    await gate.route(secret, "talk")
    door.clock.advance(499)
    await gate.route(secret, "talk")
    assert store.reads == 1
    door.clock.advance(1)
    store.opened.clear()
    async with asyncio.timeout(1):
        for _ in range(3):
            await gate.route(secret, "talk")
    await asyncio.sleep(0)
    assert store.reads == 2  # one look for all of them
    store.opened.set()
    await settled(gate)
    door.clock.advance(499)  # 999 after the first look, 499 after the second
    await gate.route(secret, "talk")
    assert store.reads == 2
    assert not gate._looking


async def test_who_comes_back_later_waits_for_the_store(gate, store, door, secret) -> None:
    await gate.route(secret, "talk")
    door.clock.advance(900)
    await waits(gate, store, secret)


async def test_a_look_that_takes_long_is_as_old_as_its_beginning(gate, store, door, secret) -> None:
    await gate.route(secret, "talk")
    door.clock.advance(500)
    store.opened.clear()
    await gate.route(secret, "talk")
    await asyncio.sleep(0)
    door.clock.advance(900)
    store.opened.set()
    await settled(gate)
    await waits(gate, store, secret)


async def test_a_revoked_key_is_refused_as_soon_as_a_look_has_found_it(gate, door) -> None:
    made = (await door.call("alpha.admin", "POST", "/v1/keys", json={"user": "app"})).json()
    await gate.route(made["secret"], "talk")
    await door.call("alpha.admin", "DELETE", f"/v1/keys/{made['id']}")
    door.clock.advance(500)
    await gate.route(made["secret"], "talk")
    await settled(gate)
    with pytest.raises(UnauthenticatedError):
        await gate.route(made["secret"], "talk")


async def test_a_revoked_key_is_refused_although_the_store_is_slow(gate, store, door) -> None:
    made = (await door.call("alpha.admin", "POST", "/v1/keys", json={"user": "app"})).json()
    await gate.route(made["secret"], "talk")
    await door.call("alpha.admin", "DELETE", f"/v1/keys/{made['id']}")
    door.clock.advance(500)
    store.opened.clear()
    await gate.route(made["secret"], "talk")
    await asyncio.sleep(0)
    door.clock.advance(400)
    asked = asyncio.create_task(gate.route(made["secret"], "talk"))
    await asyncio.sleep(0)
    store.opened.set()
    with pytest.raises(UnauthenticatedError):
        await asked
    await settled(gate)


async def test_a_store_that_does_not_answer_is_told_of(gate, store, door, secret) -> None:
    await gate.route(secret, "talk")
    door.clock.advance(500)
    store.failing = True
    await gate.route(secret, "talk")
    await settled(gate)
    with pytest.raises(UnavailableError, match="does not answer"):
        await gate.route(secret, "talk")
    store.failing = False
    assert (await gate.route(secret, "talk")).app_name == "alpha.talk.1"


async def test_a_closed_gate_asks_no_more(gate, store, door, secret) -> None:
    await gate.route(secret, "talk")
    door.clock.advance(500)
    store.opened.clear()
    await gate.route(secret, "talk")
    ((_, looking),) = gate._looking.values()
    gate.close()
    await asyncio.wait((looking,))
    assert looking.cancelled()
    assert not gate._looking


async def test_requests_that_come_together_wait_for_one_look(gate, store, door, secret) -> None:
    for _ in range(2):  # the first ones, and those after a pause
        store.reads = 0
        store.opened.clear()
        asked = [asyncio.create_task(gate.route(secret, "talk")) for _ in range(16)]
        await asyncio.sleep(0)
        asked[0].cancel()  # the one that began the look has a client that leaves
        await asyncio.wait(asked[:1])
        store.opened.set()
        found = await asyncio.gather(*asked[1:])
        assert {route.app_name for route in found} == {"alpha.talk.1"}
        assert store.reads == 1
        door.clock.advance(900)


async def test_who_is_refused_together_is_told_together(gate, store) -> None:
    asked = [asyncio.create_task(gate.route("cfk_nobodys", "talk")) for _ in range(3)]
    for each in asked:
        with pytest.raises(UnauthenticatedError):
            await each
    assert store.reads == 1
    with pytest.raises(UnauthenticatedError):
        await gate.route("cfk_nobodys", "talk")
    assert store.reads == 2  # a refusal is not remembered


async def test_nobody_waits_for_a_look_of_long_ago(gate, store, door, secret) -> None:
    """A key may have been revoked since it read."""
    store.opened.clear()
    early = asyncio.create_task(gate.route(secret, "talk"))
    await asyncio.sleep(0)
    door.clock.advance(899)
    joining = asyncio.create_task(gate.route(secret, "talk"))
    await asyncio.sleep(0)
    door.clock.advance(1)
    late = asyncio.create_task(gate.route(secret, "talk"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.reads == 2
    store.opened.set()
    await asyncio.gather(early, joining, late)
    assert not gate._looking


async def test_those_who_wait_for_a_service_wait_for_one_look(gate, store, door, secret) -> None:
    await gate.route(secret, "talk")
    store.reads = 0
    await asyncio.gather(*(gate.wake(secret, "talk") for _ in range(16)))
    assert store.reads == 1
