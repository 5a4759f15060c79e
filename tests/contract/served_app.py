"""An ordinary Serve application, as a tenant writes one: FastAPI before a deployment of its own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketException
from fastapi.responses import PlainTextResponse, StreamingResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

api = FastAPI()


class OwnError(Exception):
    """Nobody but the application can unpickle it."""


def note(text: str) -> None:
    with Path(os.environ["APP_NOTES"]).open("a") as file:
        file.write(f"{text}\n")


@api.get("/where")
def where(request: Request) -> dict[str, str]:
    print("asked where it is", flush=True)
    return {"url": str(request.url), "lease": os.environ.get("CLOUDFARM_LEASE", "")}


@api.post("/echo")
async def echo(request: Request) -> Response:
    return Response(await request.body())


@api.get("/boom")
def boom() -> None:
    raise OwnError("secret of the application")


@api.get("/half")
async def half() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        yield "half"
        raise OwnError("secret of the application")

    return StreamingResponse(pieces())


@api.get("/count")
async def count() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        try:
            for number in range(10_000):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.05)
        finally:
            note("counted")

    return StreamingResponse(pieces(), media_type="text/event-stream")


@api.get("/think")
async def think() -> None:
    note("thinking")
    try:
        await asyncio.sleep(1000)
    finally:
        note("thought")


@api.websocket("/talk")
async def talk(socket: WebSocket) -> None:
    await socket.accept("v2", [(b"x-own", b"1")])
    try:
        while True:
            message = await socket.receive()
            match message:
                case {"type": "websocket.disconnect", "code": code}:
                    note(f"left:{code}")
                    return
                case {"text": "bye"}:
                    await socket.close(4001, "bye")
                    return
                case {"text": "boom"}:
                    raise OwnError("secret of the application")
                case {"text": "die"}:
                    os.kill(os.getpid(), signal.SIGKILL)
                case {"text": "end"}:
                    return
                case _:
                    await socket.send({**message, "type": "websocket.send"})
    except asyncio.CancelledError:
        note("left:cancelled")
        raise


@api.websocket("/private")
async def private() -> None:
    raise WebSocketException(4003)


@api.websocket("/full")
async def full(socket: WebSocket) -> None:
    await socket.send_denial_response(PlainTextResponse("full up", 418))


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
class Doubler:
    def __call__(self, number: int) -> int:
        return 2 * number


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
@serve.ingress(api)
class Front:
    def __init__(self, doubler: DeploymentHandle) -> None:
        self.doubler = doubler

    @api.get("/double")
    async def double(self, number: int) -> int:
        return await self.doubler.remote(number)


app = Front.bind(Doubler.bind())
