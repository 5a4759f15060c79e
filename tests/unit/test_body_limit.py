"""Bodies are read before anything else looks at them, and not more of them at once than memory is for."""

import asyncio
import json

from cloudfarm.api.middleware import BodyLimit, ClientGoneError


class Request:
    """A request whose body comes as it is let."""

    def __init__(self, limit):
        self.limit = limit
        self.to_app = asyncio.Queue()
        self.sent = []
        self.is_given = False
        self.task = None

    def send(self, size, *, more):
        self.to_app.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": more})

    async def begin(self, size):
        scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": []}
        self.send(size, more=True)
        self.task = asyncio.create_task(self.limit(scope, self._give, self._take))
        await self.to_app.join()

    async def end(self, size=0):
        self.send(size, more=False)
        await self.task
        return self.sent[0]["status"]

    async def _give(self):
        """Return the next part; what was given before has been dealt with then."""
        if self.is_given:
            self.to_app.task_done()
        message = await self.to_app.get()
        self.is_given = True
        return message

    async def _take(self, message):
        self.sent.append(message)


async def echo(_scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


def limit():
    return BodyLimit(echo, max_bytes=10, max_bytes_of_all=25, streamed_prefix="/packages/")


async def test_bodies_share_a_budget_while_they_are_read():
    shared = limit()
    first, second, third, fourth = (Request(shared) for _ in range(4))
    await first.begin(10)
    await second.begin(10)
    await third.begin(6)
    assert await third.end(4) == 503
    assert (b"retry-after", b"1") in third.sent[0]["headers"]
    assert "bodies" in json.loads(third.sent[1]["body"])["detail"]
    assert await first.end() == 200
    assert first.sent[1]["body"] == b"10"
    await fourth.begin(10)
    assert await fourth.end() == 200
    assert await second.end() == 200
    assert shared.held_bytes == 0


async def test_whoever_is_refused_or_goes_holds_nothing():
    shared = limit()
    large, gone, cancelled = (Request(shared) for _ in range(3))
    await large.begin(8)
    assert shared.held_bytes == 8
    assert await large.end(3) == 413
    await gone.begin(9)
    gone.to_app.put_nowait({"type": "http.disconnect"})
    await asyncio.wait([gone.task])
    assert isinstance(gone.task.exception(), ClientGoneError)
    await cancelled.begin(9)
    cancelled.task.cancel()
    await asyncio.wait([cancelled.task])
    assert shared.held_bytes == 0
