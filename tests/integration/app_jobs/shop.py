"""A tenant's Serve application: FastAPI before a deployment that has the GPU."""

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0.5, "num_gpus": 1})
class Model:
    def __call__(self, number: int) -> dict[str, object]:
        return {"double": 2 * number, "lease": os.environ["CLOUDFARM_LEASE"]}


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
@serve.ingress(api)
class Shop:
    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    @api.get("/double/{number}")
    async def double(self, number: int) -> dict[str, object]:
        print(f"asked for {number}", flush=True)
        return await self.model.remote(number)

    @api.get("/count")
    async def count(self) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            for number in range(5):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.2)

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @api.websocket("/haggle")
    async def haggle(self, socket: WebSocket) -> None:
        await socket.accept("prices")
        async for text in socket.iter_text():
            if text == "done":
                await socket.close(4001, "sold")
                return
            await socket.send_json(await self.model.remote(int(text)))


app = Shop.bind(Model.bind())


def build(args: dict[str, str]) -> serve.Application:
    """Fail as a tenant's code may."""
    raise RuntimeError(f"the shop is closed {args}")
