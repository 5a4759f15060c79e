"""Several streams as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def together(streams: Sequence[AsyncGenerator[T]], at_once: int) -> AsyncGenerator[T]:
    """Yield what streams yield, as it comes. Closing it closes all of them, and so does an error of one.

    Args:
        streams: are begun in their order.
        at_once: no more of them than this go on at the same time.
    """
    waiting = iter(streams)
    nexts: dict[asyncio.Task[T | None], AsyncGenerator[T]] = {}

    def go_on(stream: AsyncGenerator[T] | None) -> None:
        if stream is not None:
            nexts[asyncio.create_task(anext(stream, None))] = stream

    try:
        for _ in range(at_once):
            go_on(next(waiting, None))
        while nexts:
            done, _ = await asyncio.wait(nexts, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                item = each.result()
                stream = nexts.pop(each)
                if item is None:
                    go_on(next(waiting, None))
                else:
                    yield item
                    go_on(stream)
    finally:
        for each in nexts:
            each.cancel()
        # Until they have ended none of their streams can be closed. What they fail of now nobody waits for.
        await asyncio.gather(*nexts, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
