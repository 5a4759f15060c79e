"""Puts the front door together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from cloudfarm.api.context import ApiContext
from cloudfarm.api.middleware import BodyLimit, Boundary
from cloudfarm.api.problem import install_handlers
from cloudfarm.api.routers import (
    apps,
    dashboard,
    farm,
    leases,
    openai,
    quotas,
    ray_jobs,
    ray_packages,
    services,
    session,
    tenants,
)
from cloudfarm.troubles import Troubles
from cloudfarm.usecases.gate import Gate
from cloudfarm.usecases.inference import Calls
from cloudfarm.usecases.load import LoadReporter, Loads
from cloudfarm.usecases.open_requests import OpenRequests
from cloudfarm.usecases.revisions import WaitingRoom

DASHBOARD_TIMEOUT_S = 60.0
ROUTERS = tuple(
    module.router
    for module in (
        # First what is called most: of every request the routes are tried in this order.
        openai,
        services,
        apps,
        ray_jobs,
        ray_packages,
        tenants,
        session,
        leases,
        quotas,
        farm,
        dashboard,  # whatever none of the others has
    )
)


def create_app(context: ApiContext) -> FastAPI:
    """Return the front door over parts that are open already; whoever opened them closes them."""
    app = FastAPI(
        title="Cloudfarm",
        description="The front door of a Cloudfarm: Ray's Jobs API, the tenant API, the services' gateway.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # the documentation pages would load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a redirect would make clients send their token again, wherever it points
        lifespan=_lifespan,
    )
    app.state.context = context
    app.state.troubles = Troubles(context.store, context.clock)
    app.state.loads = Loads(context.clock)
    room = WaitingRoom(
        context.store,
        context.clock,
        app.state.loads,
        context.nudge,
        most_waiting=context.settings.max_cold_requests,
        timeout_s=context.settings.cold_start_timeout_s,
    )
    app.state.calls = Calls(
        Gate(context.store, context.clock, room),
        context.meter,
        OpenRequests(context.settings.max_open_requests, context.settings.max_open_requests_of_key),
        context.inference,
        context.apps,
    )
    install_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(
        BodyLimit, max_bytes=context.settings.max_body_bytes, streamed_prefix=ray_packages.PREFIX
    )
    app.add_middleware(Boundary)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    reporter = LoadReporter(app.state.loads, app.state.context.nudge, app.state.troubles)
    reporting = asyncio.create_task(reporter.run())
    # trust_env off: a proxy from the environment must not get to see the cluster's token.
    async with httpx.AsyncClient(
        timeout=DASHBOARD_TIMEOUT_S, trust_env=False, follow_redirects=False
    ) as client:
        app.state.dashboard = client
        try:
            async with app.state.context.meter.running():
                yield
        finally:
            reporting.cancel()
            app.state.calls.gate.close()
            app.state.calls.inference.close()
