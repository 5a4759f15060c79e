"""Several streams as one."""

import asyncio
from contextlib import aclosing

import pytest

from cloudfarm.inference.together import together


class Streams:
    """Streams of their own names, each of which waits until it may go on."""

    def __init__(self, *names):
        self.gates = {name: asyncio.Semaphore(0) for name in names}
        self.begun, self.closed = [], []
        self.all = [self._stream(name) for name in names]

    async def _stream(self, name):
        self.begun.append(name)
        try:
            for count in range(2):
                await self.gates[name].acquire()
                if name == "bad":
                    raise LookupError(name)
                yield f"{name}{count}"
        finally:
            self.closed.append(name)


async def test_what_comes_first_is_first_and_no_more_are_begun_than_may_be():
    streams = Streams("a", "b", "c")
    async with aclosing(together(streams.all, 2)) as items:
        streams.gates["b"].release()
        assert await anext(items) == "b0"
        assert streams.begun == ["a", "b"]
        for name in "bacca":
            streams.gates[name].release()
        assert sorted([item async for item in items]) == ["a0", "a1", "b1", "c0", "c1"]
    assert sorted(streams.closed) == streams.begun == ["a", "b", "c"]


async def test_closing_it_closes_all():
    streams = Streams("a", "b", "c")
    async with aclosing(together(streams.all, 2)) as items:
        streams.gates["a"].release()
        await anext(items)
    assert sorted(streams.closed) == ["a", "b"]
    assert [item async for item in streams.all[2]] == []


async def test_an_error_of_one_ends_all():
    streams = Streams("a", "bad")
    streams.gates["bad"].release()
    with pytest.raises(LookupError):
        [item async for item in together(streams.all, 2)]
    assert sorted(streams.closed) == ["a", "bad"]


async def test_none():
    assert [item async for item in together([], 2)] == []
