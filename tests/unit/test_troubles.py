"""What goes wrong inside the farm is told to its operators: once, and whatever else goes wrong meanwhile."""

import pytest

from cloudfarm.errors import UnavailableError
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.memory_store import MemoryStore
from cloudfarm.troubles import AGAIN_MS, KIND, SUBJECT, Troubles


def mistake(number: int = 0) -> Exception:
    try:
        return Exception(1 // 0 + number)
    except ZeroDivisionError as error:
        error.args = ("cfk_secret",)
        return error


@pytest.fixture
def troubles() -> Troubles:
    return Troubles(MemoryStore(), ManualClock())


async def told(troubles: Troubles) -> list[str]:
    async with troubles.store.begin(write=False) as uow:
        events = await uow.events.list()
    assert {(event.kind, event.subject, event.tenant) for event in events} <= {(KIND, SUBJECT, None)}
    return [event.message for event in reversed(events)]


async def test_a_mistake_is_told_with_its_place_and_without_what_its_text_may_hold(troubles, caplog):
    await troubles.tell("counting", mistake())
    (message,) = await told(troubles)
    assert message.startswith("counting: ZeroDivisionError at ")
    assert "test_troubles.py:" in message
    assert "cfk_secret" not in message
    assert "Traceback" in caplog.text
    assert isinstance(troubles.mistake, ZeroDivisionError)


async def test_of_several_at_once_the_first_is_told(troubles):
    await troubles.tell("counting", ExceptionGroup("all", [ExceptionGroup("some", [mistake()]), KeyError()]))
    assert (await told(troubles))[0].startswith("counting: ZeroDivisionError at ")


async def test_an_error_of_ours_is_told_in_its_own_words(troubles, caplog):
    await troubles.tell("counting", UnavailableError("the disk is full"))
    assert await told(troubles) == ["counting: the disk is full"]
    assert "Traceback" not in caplog.text
    assert troubles.mistake is None


async def test_what_goes_on_is_told_again_after_an_hour_only(troubles, caplog):
    for _ in range(10):
        await troubles.tell("counting", UnavailableError("the disk is full"))
        await troubles.tell("reading", UnavailableError("the disk is full"))
        troubles.clock.advance(1_000)
    assert len(await told(troubles)) == len(caplog.records) == 2
    troubles.clock.advance(AGAIN_MS)
    await troubles.tell("counting", UnavailableError("the disk is full"))
    assert len(await told(troubles)) == len(caplog.records) == 3
    assert len(troubles._told) == len(troubles._logged) == 1


@pytest.mark.parametrize("error", [UnavailableError("gone"), RuntimeError("a mistake")])
async def test_it_is_told_when_the_store_is_there_again(troubles, monkeypatch, caplog, error):
    with monkeypatch.context() as broken:

        def refuse(_self, *, write=True):
            raise error

        broken.setattr(MemoryStore, "begin", refuse)
        for _ in range(3):
            await troubles.tell("counting", mistake())
    assert await told(troubles) == []
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    for _ in range(3):
        await troubles.tell("counting", mistake())
    assert len(await told(troubles)) == 1
