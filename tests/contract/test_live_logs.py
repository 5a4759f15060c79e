"""The live log of a job, against a server that behaves as Ray's dashboard does."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from aiohttp import web

from cloudfarm.raylayer.jobs import RayLogs
from cloudfarm.raylayer.ray_http import RayHttp
from cloudfarm.testing.factories import make_job


async def test_whoever_stops_following_does_not_wait_for_ray_to_agree(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def tail(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        await socket.send_str("a line\n")
        await gone.wait()  # as Ray's does while a job runs, it listens to nothing that the client sends
        return socket

    app = web.Application()
    app.router.add_get("/api/jobs/{id}/logs/tail", tail)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    token = tmp_path / "token"
    token.write_text("secret")
    http = RayHttp(f"http://127.0.0.1:{runner.addresses[0][1]}", token)
    try:
        begun = time.monotonic()
        async with aclosing(RayLogs(http).tail(make_job())) as pieces:
            assert await anext(pieces) == "a line\n"
        assert time.monotonic() - begun < 5  # half of what a WebSocket client waits by default
    finally:
        gone.set()
        await http.close()
        await runner.cleanup()
