"""What is told to Serve's HTTP API, and when again."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cloudfarm.domain.workload import Deployment, ModelVersion
from cloudfarm.errors import UnavailableError
from cloudfarm.raylayer.serving import FRONT_DOOR, ServeClient
from cloudfarm.testing.factories import make_revision, make_service

MODEL = ModelVersion("m1", "kaist", "wind", 1, "/models/wind/1", None, {}, 10)
DEPLOYMENT = Deployment(make_service(), make_revision(), MODEL, 1)
BOTH = {FRONT_DOOR, DEPLOYMENT.revision.app_name}


class Dashboard:
    """Serve's API: runs what it was told, unless its answer is lost."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.told = 0
        self.was_told, self.was_seen = asyncio.Event(), asyncio.Event()
        self.loses_answers = False
        self.hears = asyncio.Event()
        self.hears.set()

    async def request(self, method: str, _path: str, json: Any = None, **_: Any) -> Any:
        await asyncio.sleep(0)
        if method == "PUT":
            self.told += 1
            self.was_told.set()
            await self.hears.wait()
            self.running = {app["name"] for app in json["applications"]}
            if self.loses_answers:
                raise UnavailableError("no answer")
        else:
            self.was_seen.set()
        apps = {name: {"status": "RUNNING"} for name in self.running}
        return SimpleNamespace(json=lambda: {"applications": apps})


@pytest.fixture
def dashboard() -> Dashboard:
    return Dashboard()


@pytest.fixture
def serving(dashboard: Dashboard) -> ServeClient:
    return ServeClient(dashboard, "127.0.0.1", 8000, "/state")


async def test_opening_takes_nothing_away_that_is_applied_meanwhile(serving, dashboard):
    await asyncio.gather(serving.open(), serving.apply([DEPLOYMENT]))
    assert dashboard.running == BOTH


async def test_what_is_unchanged_is_told_once(serving, dashboard):
    for _ in range(3):
        await serving.apply([DEPLOYMENT])
        assert set(await serving.apps()) == BOTH
    assert dashboard.told == 1


async def test_what_may_have_been_heard_without_an_answer_is_told_again(serving, dashboard):
    await serving.apply([])
    dashboard.loses_answers = True
    with pytest.raises(UnavailableError):
        await serving.apply([DEPLOYMENT])
    dashboard.loses_answers = False
    await serving.apply([])  # as before: but Serve runs the other
    assert dashboard.running == {FRONT_DOOR}


async def test_a_serve_that_has_lost_everything_is_told_again_and_not_believed(serving, dashboard):
    await serving.apply([DEPLOYMENT])
    dashboard.running = set()
    with pytest.raises(UnavailableError, match="told again"):
        await serving.apps()
    assert dashboard.running == BOTH
    assert set(await serving.apps()) == BOTH


async def test_who_looks_while_serve_is_first_told_does_not_tell_it_twice(serving, dashboard):
    dashboard.hears.clear()
    opening = asyncio.create_task(serving.open())
    await dashboard.was_told.wait()
    dashboard.was_seen.clear()
    looking = asyncio.create_task(serving.apps())
    await dashboard.was_seen.wait()
    dashboard.hears.set()
    await opening
    with pytest.raises(UnavailableError):
        await looking
    assert dashboard.told == 1
