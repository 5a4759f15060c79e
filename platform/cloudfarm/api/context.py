"""What the front door is made of; the composition root fills it in."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from cloudfarm.clock import Clock
from cloudfarm.ports import Apps, Artifacts, Inference, LiveLogs, Nudge, Store
from cloudfarm.settings import Settings
from cloudfarm.usecases.inference import Calls
from cloudfarm.usecases.metering import Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """Everything that a route may use."""

    store: Store
    clock: Clock
    settings: Settings
    artifacts: Artifacts
    live_logs: LiveLogs
    inference: Inference
    apps: Apps
    nudge: Nudge
    meter: Meter
    dashboard_url: str = ""
    """Base URL of the Ray dashboard; empty means that there is none to show."""
    ray_token: str = ""
    """The cluster's own token, for the dashboard only; it never leaves in an answer."""
    ray_version: str = version("ray")
    """Told to Ray's clients, which refuse a cluster that is too old."""
    ray_commit: str = ""
    session_name: str = "cloudfarm"
    log_poll_s: float = 0.5
    """Pause between two looks at a job whose log is followed."""


async def get_context(connection: HTTPConnection) -> ApiContext:
    """Return the application's context."""
    context: ApiContext = connection.app.state.context
    return context


Context = Annotated[ApiContext, Depends(get_context)]


async def get_calls(connection: HTTPConnection) -> Calls:
    """Return the application's calls to services."""
    calls: Calls = connection.app.state.calls
    return calls


ServiceCalls = Annotated[Calls, Depends(get_calls)]
"""The way to the services."""
