"""What a request costs inside the front door, layer by layer: the real application and store, in this process.

No proxy, no network, no model: each layer is called as often, one call after another, on the event loop that Ray
uses, so a figure is the time from its call to its end, with the waits for the store's threads in it.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from fastapi import FastAPI, Request

from benchmarks.model import example_request, make_bundle
from cloudfarm.api import create_app
from cloudfarm.api.context import ApiContext
from cloudfarm.api.middleware import BodyLimit, Boundary
from cloudfarm.artifacts import FileArtifacts
from cloudfarm.clock import SystemClock
from cloudfarm.domain.json_values import check_json
from cloudfarm.domain.status import RevisionStatus
from cloudfarm.domain.tenant import CredentialKind, Role, Tenant, hash_secret, new_secret
from cloudfarm.inference.forecasts import Forecaster
from cloudfarm.journal import FileJournal
from cloudfarm.settings import Settings
from cloudfarm.store import SqlStore, migrate
from cloudfarm.testing.factories import add, make_credential, make_revision, make_service
from cloudfarm.testing.fake_apps import FakeApps
from cloudfarm.testing.fakes_api import FakeLiveLogs, FakeNudge
from cloudfarm.usecases.metering import Meter
from cloudfarm.usecases.routes import Ask, find_ways

TENANT, SERVICE = "bench", "wind"
GOOD = 200
Call = Callable[[], Awaitable[object]]


def measure(calls: int) -> dict[str, float]:
    """Return milliseconds a call, by layer: the median of so many calls."""
    with (
        tempfile.TemporaryDirectory(prefix="cf-bench-layers-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_measure(Path(folder), calls))


async def _measure(folder: Path, calls: int) -> dict[str, float]:
    url = f"sqlite:///{folder}/farm.db"
    await migrate(url)
    store = await SqlStore.open(url)
    try:
        secret = await _fill(store)
        model = Forecaster(make_bundle(folder / "outbox")[0])
        meter = Meter(store, SystemClock(), FileJournal(folder / "usage"))
        await meter.step()
        layers = _layers(store, folder, secret, model, meter)
        return {name: round(await _median_ms(call, calls), 3) for name, call in layers.items()}
    finally:
        await store.close()


async def _fill(store: SqlStore) -> str:
    secret = new_secret(CredentialKind.KEY)
    key = make_credential(
        "ckey",
        TENANT,
        kind=CredentialKind.KEY,
        role=Role.VIEWER,
        secret_sha256=hash_secret(secret),
        services=(SERVICE,),
    )
    await add(store, tenants=[Tenant(TENANT, "", 1)], credentials=[key])
    async with store.begin() as uow:
        model = await uow.models.register(
            tenant=TENANT, name="m", uri="u", job_id=None, manifest={}, now_ms=1
        )
        await uow.services.add(make_service("s1", TENANT, SERVICE, current_id="r1"))
        revision = make_revision("r1", "s1", model.id, tenant=TENANT, name=SERVICE)
        await uow.revisions.add(replace(revision, status=RevisionStatus.RUNNING))
        await uow.commit()
    return secret


def _layers(store: SqlStore, folder: Path, secret: str, model: Forecaster, meter: Meter) -> dict[str, Call]:
    request = example_request()
    body = json.dumps(request).encode()
    answers = Answers()
    door = create_app(
        ApiContext(
            store=store,
            clock=SystemClock(),
            settings=Settings(state_dir=folder),
            artifacts=FileArtifacts(str(folder)),
            live_logs=FakeLiveLogs(),
            inference=answers,
            apps=FakeApps(),
            nudge=FakeNudge(),
            meter=meter,
        )
    )
    plain = FastAPI()

    @plain.post("/v1/services/wind/predict")
    async def predict(asked: Request) -> dict[str, Any]:
        return await answers.call("", await asked.json(), timeout_s=1)

    wrapped = Boundary(BodyLimit(plain, max_bytes=1024**2, streamed_prefix="/api/packages"))

    async def nothing_read() -> None:
        async with store.begin(write=False):
            pass

    async def looked_up() -> None:
        async with store.begin(write=False) as uow:
            await find_ways(uow, SystemClock(), Ask(secret, SERVICE, "service"), waits=False)

    async def checked() -> None:
        check_json(request, what="the request")

    return {
        "FastAPI route that answers at once": lambda: post(plain, body, secret),
        "the same behind our two middlewares": lambda: post(wrapped, body, secret),
        "the whole front door, its model answering at once": lambda: post(door, body, secret),
        "of it: check_json": checked,
        "beside it, when a caller is looked up: one transaction": looked_up,
        "  of that: a begin and an end with nothing read": nothing_read,
        "the model itself": lambda: model.handle(request),
    }


class Answers:
    """A service that answers at once what the model would."""

    async def call(self, _app: str, _payload: Any, *, timeout_s: float) -> dict[str, Any]:  # noqa: ARG002
        """Return an answer of the usual size."""
        return {
            "model": "m",
            "version": "0123456789ab",
            "turbine": "R80711",
            "from_utc": "2026-01-01T02:50:00Z",
            "forecast": [{"minutes_ahead": 10 * step, "power_kw": 317.5} for step in range(1, 7)],
        }


async def post(app: Any, body: bytes, secret: str) -> None:
    """Send one request to an ASGI application."""
    status = []
    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {secret}".encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/services/wind/predict", "raw_path": b"/v1/services/wind/predict", "query_string": b"",
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])

    await app(scope, receive, send)
    assert status == [GOOD], f"answered {status}"


async def _median_ms(call: Call, calls: int) -> float:
    took = []
    for _ in range(calls + 20):
        begun = time.perf_counter()
        await call()
        took.append((time.perf_counter() - begun) * 1000)
    return median(took[20:])
