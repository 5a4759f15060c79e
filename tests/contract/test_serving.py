"""The port Serving: the fake, and Ray Serve on a running farm."""

from dataclasses import dataclass, replace
from typing import Protocol

import httpx
import pytest

from cloudfarm.domain.status import RevisionStatus
from cloudfarm.domain.workload import Deployment, ModelVersion, ServeApp
from cloudfarm.errors import UnavailableError
from cloudfarm.ports import Serving
from cloudfarm.raylayer.farm import LocalFarm
from cloudfarm.testing.factories import make_revision, make_service
from cloudfarm.testing.fake_serving import FakeServing
from tests.processes import eventually

from .bare_farm import LEASE

FRONT_DOOR = "front-door"
MODEL = ModelVersion("m1", "kaist", "wind", 1, "/models/wind/1", None, {}, 10)
NEWER = replace(MODEL, id="m2", number=2, uri="/models/wind/2")


def deployment(name: str, import_path: str = "tests.contract.served:app") -> Deployment:
    """Return a service's revision on the one lease node that the farm has, hence all with the same id."""
    revision = make_revision(LEASE.revision_id, name=name, import_path=import_path)
    return Deployment(make_service(name, name=name, milli_gpus=0), revision, MODEL, 1)


SEA, LAND = deployment("sea"), deployment("land")
BROKEN = deployment("broken", "tests.contract.served:nothing")


class Replicas(Protocol):
    """The far side of the port."""

    serving: Serving

    async def of(self, each: Deployment) -> object:
        """Return what changes when a service's replicas are replaced, and then only."""


@dataclass
class FakeReplicas:
    serving: FakeServing

    async def of(self, each: Deployment) -> object:
        return self.serving.deployed[each.revision.app_name]


@dataclass
class RealReplicas:
    serving: Serving
    local: LocalFarm

    async def of(self, each: Deployment) -> object:
        token = self.local.paths.ray_token_file.read_text()
        url = f"http://127.0.0.1:{self.local.paths.dashboard_port}/api/serve/applications/"
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
            app = (await client.get(url)).json()["applications"][each.revision.app_name]
        replicas = [replica for found in app["deployments"].values() for replica in found["replicas"]]
        return {replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING"}


@pytest.fixture
async def replicas(farm):
    if farm is None:
        yield FakeReplicas(FakeServing(failing={BROKEN.revision.app_name}))
        return
    serving = farm.port("serving")
    yield RealReplicas(serving, farm.local)
    await serving.apply([])
    await apps_are(serving)


async def apps_are(serving: Serving, *deployments: Deployment) -> None:
    """Wait until Serve has exactly these services' applications beside the farm's own."""
    wanted = {FRONT_DOOR, *(each.revision.app_name for each in deployments)}

    async def look() -> bool:
        return set(await serving.apps()) == wanted

    await eventually(look, f"Serve to have {wanted}")


async def settled(serving: Serving, each: Deployment) -> ServeApp:
    """Wait until a service runs or has failed."""

    async def look() -> ServeApp | None:
        app = (await serving.apps()).get(each.revision.app_name)
        return app if app is not None and (app.running or app.failed) else None

    return await eventually(look, f"{each.revision.app_name} to run or to fail")


async def test_opening_runs_the_farms_own_application(replicas):
    await replicas.serving.open()
    await apps_are(replicas.serving)


async def test_exactly_what_is_applied_runs_and_what_is_unchanged_is_not_touched(replicas):
    serving = replicas.serving
    await serving.apply([SEA, BROKEN])
    await serving.open()  # takes nothing away
    await apps_are(serving, SEA, BROKEN)
    running, broken = await settled(serving, SEA), await settled(serving, BROKEN)
    assert (running.name, running.running, running.failed) == (SEA.revision.app_name, True, False)
    assert (broken.name, broken.running, broken.failed) == (BROKEN.revision.app_name, False, True)
    assert broken.message
    before = await replicas.of(SEA)

    known = replace(SEA.revision, status=RevisionStatus.RUNNING, message="it runs", version=7)
    await serving.apply([replace(SEA, revision=known), LAND])
    await apps_are(serving, SEA, LAND)
    assert (await settled(serving, LAND)).running
    assert await replicas.of(SEA) == before

    await serving.apply([replace(SEA, model=NEWER)])
    await apps_are(serving, SEA)

    async def replaced() -> bool:
        app = (await serving.apps())[SEA.revision.app_name]
        return app.running and await replicas.of(SEA) not in (before, set())

    await eventually(replaced, "the new model to be served")


async def test_replicas_come_and_go_without_the_others_being_touched(replicas):
    serving = replicas.serving
    await serving.apply([SEA])
    seen = await settled(serving, SEA)
    assert (seen.replicas_wanted, [each.running for each in seen.replicas]) == (1, [True])
    (node_id,) = {each.node_id for each in seen.replicas}
    assert node_id is not None
    before = await replicas.of(SEA)

    await serving.apply([replace(SEA, replicas=2)])  # on the real farm there is no node for the second

    async def app_has(wanted: int) -> ServeApp | None:
        app = (await serving.apps())[SEA.revision.app_name]
        staying = [each for each in app.replicas if not each.stopping]
        return app if app.replicas_wanted == len(staying) == wanted else None

    grown = await eventually(lambda: app_has(2), "a second replica")
    assert grown.running
    assert node_id in {each.node_id for each in grown.replicas}
    assert await replicas.of(SEA) == before

    await serving.apply([SEA])
    shrunk = await eventually(lambda: app_has(1), "the second replica to go")
    # One that never had a node may be there as stopping for as long as a stream could take.
    assert [each.node_id for each in shrunk.replicas if not each.stopping] == [node_id]
    assert {each.node_id for each in shrunk.replicas if each.stopping} <= {None}
    assert shrunk.running
    assert await replicas.of(SEA) == before


async def test_a_serve_that_does_not_answer_is_unavailable(farm):
    port = FakeServing(down=True) if farm is None else farm.port("serving_down")
    for call in (port.open, lambda: port.apply([]), port.apps):
        with pytest.raises(UnavailableError):
            await call()
