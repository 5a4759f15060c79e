"""The port Apps: the fake, and a tenant's own Serve application that a job runs in a lease of a real farm."""

import io
import zipfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cloudfarm.domain.status import JobStatus
from cloudfarm.errors import AppFailedError, ReplicaLostError, UnavailableError
from cloudfarm.testing.factories import make_job
from cloudfarm.testing.fake_apps import FakeApps
from tests.processes import eventually

from . import served_app
from .bare_farm import LEASE, BareFarm
from .connected import Asking
from .test_serving import deployment

NAME = "kaist.bay.1"
ROOT = "/v1/services/bay/app"
RUN = "exec python -m cloudfarm.inference.run_app"


CONNECT = {"type": "websocket.connect"}


def said(**data: str | bytes) -> dict[str, Any]:
    return {"type": "websocket.receive", **data}


def request(path: str) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "path": ROOT + path,
        "raw_path": (ROOT + path).encode(),
        "root_path": ROOT,
        "query_string": query.encode(),
        "headers": [(b"host", b"farm.test")],
        "client": ("127.0.0.1", 9),
        "server": ("farm.test", 80),
    }


@dataclass
class Caller:
    """Asks the application over the port."""

    asking: Any
    notes: Path
    is_real: bool

    async def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes = b"",
        most: int = -1,
        leave_at: tuple[Path, str] | None = None,
        app: str = NAME,
    ) -> tuple[list[Mapping[str, Any]], Exception | None]:
        scope = {"type": "http", "method": method, "scheme": "http", **request(path)}
        return await self.asking.ask(app, scope, body, most, leave_at)

    async def talk(
        self, path: str, *steps: Mapping[str, Any] | int | None
    ) -> tuple[list[Mapping[str, Any]], Exception | None]:
        extensions = {"websocket.http.response": {}}
        scope = {"type": "websocket", "scheme": "ws", "subprotocols": ["v1", "v2"], "extensions": extensions}
        return await self.asking.talk(NAME, {**scope, **request(path)}, [CONNECT, *steps])

    async def get(self, path: str, **kwargs: Any) -> tuple[int, bytes]:
        messages, error = await self.ask(path, **kwargs)
        assert error is None
        return messages[0]["status"], b"".join(each.get("body", b"") for each in messages[1:])

    async def noted(self, *texts: str) -> None:
        """Wait until the application has noted one of the texts."""

        async def look() -> bool:
            return self.notes.exists() and bool(set(texts) & set(self.notes.read_text().split()))

        await eventually(look, f"the application to note {texts}", 30)


def package(farm: BareFarm) -> str:
    """Let the tenant have uploaded its working directory, and return its URI."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(Path(served_app.__file__), "served_app.py")
    folder = Path(farm.local.settings.artifacts) / "tenants" / "kaist" / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_ray_pkg_sea.zip").write_bytes(packed.getvalue())
    return "gcs://_ray_pkg_sea.zip"


async def started(farm: BareFarm, name: str, import_path: str, notes: Path) -> Any:
    """Submit the job that runs an application, and return it."""
    job = make_job(
        name.replace(".", "-"),
        submission_id=f"app-{name}",
        lease_id=LEASE.id,
        entrypoint=f"{RUN} {import_path} --name {name}",
        runtime_env={"working_dir": package(farm), "env_vars": {"APP_NOTES": str(notes)}},
    )
    await farm.port("ray_jobs").submit(job, env={}, label_selector={"lease": LEASE.id})
    return job


async def ended(farm: BareFarm, job: Any) -> Any:
    async def look() -> Any:
        found = (await farm.port("ray_jobs").list())[job.ray_id]
        return found if found.status.is_terminal else None

    return await eventually(look, f"{job.ray_id} to end")


async def gone(farm: BareFarm, name: str) -> None:
    async def look() -> bool:
        return name not in await farm.port("serving").apps()

    await eventually(look, f"Serve to have let go of {name}")


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.own_farm)])
def farm(request) -> BareFarm | None:
    return None if request.param == "fake" else request.getfixturevalue("bare_farm")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(farm, tmp_path_factory) -> AsyncIterator[Caller]:
    notes = tmp_path_factory.mktemp("notes") / "notes"
    if farm is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("APP_NOTES", str(notes))
            yield Caller(Asking(FakeApps({NAME: served_app.api})), notes, is_real=False)
        return
    serving = farm.port("serving")
    await serving.apply([])
    job = await started(farm, NAME, "served_app:app", notes)

    async def look() -> bool:
        found = (await farm.port("ray_jobs").list())[job.ray_id]
        assert not found.status.is_terminal, found.message
        app = (await serving.apps()).get(NAME)
        return app is not None and app.running

    await eventually(look, "the application to run")
    # As the steward does: what tenants run is not in its configuration, and stays.
    await serving.apply([deployment("land", "tests.contract.served:nothing")])
    await serving.apply([])
    yield Caller(farm.port("front_door"), notes, is_real=True)
    written = await farm.port("logs").read(job)
    assert "asked where it is" in written
    assert "(FrontDoor " not in written  # which is of another job, and prints as well
    assert await farm.port("ray_jobs").stop(job.ray_id)
    assert (await ended(farm, job)).status is JobStatus.STOPPED
    await gone(farm, NAME)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_application_answers_from_its_lease(caller):
    status, body = await caller.get("/where")
    assert status == 200
    assert f'"url":"http://farm.test{ROOT}/where"'.encode() in body
    if caller.is_real:
        assert f'"lease":"{LEASE.id}"'.encode() in body
        assert await caller.get("/double?number=21") == (200, b"42")
    assert (await caller.get("/nothing"))[0] == 404


async def test_bodies_arrive_whole_both_ways(caller):
    for length in (0, 1, 5_000_000):  # by default Serve sends 4 MiB at once, and no more
        assert await caller.get("/echo", method="POST", body=b"x" * length) == (200, b"x" * length)


async def test_an_applications_own_error_is_its_own_answer(caller):
    assert await caller.get("/boom") == (500, b"Internal Server Error")


async def test_an_answer_that_breaks_off_is_an_error(caller):
    messages, error = await caller.ask("/half")
    assert [each.get("body") for each in messages] == [None, b"half"]
    assert isinstance(error, AppFailedError)
    assert "secret" not in str(error)


async def test_pieces_come_as_they_are_made_and_who_leaves_ends_the_work(caller):
    messages, error = await caller.ask("/count", most=4)
    assert error is None
    assert [each["body"] for each in messages[1:]] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    await caller.noted("counted")


async def test_who_leaves_before_the_answer_ends_the_work(caller):
    messages, error = await caller.ask("/think", leave_at=(caller.notes, "thinking"))
    assert (messages, error) == ([], None)
    await caller.noted("thought")


async def test_messages_pass_both_ways_on_a_websocket(caller):
    data = [{"text": "wind"}, {"bytes": b"\x00\xff"}, {"text": ""}, {"bytes": b"x" * 5_000_000}]
    messages, error = await caller.talk("/talk", *[said(**each) for each in data], 5, said(text="bye"), 6)
    assert error is None
    accept, *sent, close = messages
    assert (accept["type"], accept["subprotocol"]) == ("websocket.accept", "v2")
    assert (b"x-own", b"1") in [tuple(each) for each in accept["headers"]]
    assert sent == [{"type": "websocket.send", **each} for each in data]
    assert close == {"type": "websocket.close", "code": 4001, "reason": "bye"}


async def test_many_messages_keep_their_order(caller):
    numbers = [str(number) for number in range(500)]
    messages, error = await caller.talk(
        "/talk", *[said(text=each) for each in numbers], 501, said(text="end")
    )
    assert error is None
    assert [each["text"] for each in messages[1:]] == numbers


async def test_an_application_may_refuse_a_websocket(caller):
    messages, error = await caller.talk("/private")
    assert (error, [(each["type"], each["code"]) for each in messages]) == (None, [("websocket.close", 4003)])
    (start, *rest), error = await caller.talk("/full")
    assert (error, start["type"], start["status"]) == (None, "websocket.http.response.start", 418)
    assert b"".join(each.get("body", b"") for each in rest) == b"full up"


async def test_an_application_sees_that_its_client_left(caller):
    gone = {"type": "websocket.disconnect", "code": 4321, "reason": "tired"}
    messages, error = await caller.talk("/talk", said(text="x"), 2, gone)
    assert (error, len(messages)) == (None, 2)
    await caller.noted("left:4321")


async def test_a_websocket_that_is_given_up_ends_the_work(caller):
    messages, error = await caller.talk("/talk", 1, None)
    assert (error, len(messages)) == (None, 1)
    # What reaches the replica first: that the work is cancelled, or that nothing more comes from the client.
    await caller.noted("left:cancelled", "left:1006")


async def test_a_websockets_application_that_fails_is_an_error(caller):
    messages, error = await caller.talk("/talk", said(text="boom"))
    assert len(messages) == 1
    assert isinstance(error, AppFailedError)
    assert "secret" not in str(error)


async def test_an_application_that_does_not_run_is_unavailable(caller):
    messages, error = await caller.ask("/where", app="kaist.land.1")
    assert messages == []
    assert isinstance(error, UnavailableError)


async def test_a_replica_that_is_killed_ends_its_websockets(caller):
    """The last that asks this application: it comes back a little later."""
    if not caller.is_real:
        pytest.skip("the fake has no process to kill")
    messages, error = await caller.talk("/talk", said(text="x"), 2, said(text="die"))
    assert [each["type"] for each in messages] == ["websocket.accept", "websocket.send"]
    assert isinstance(error, ReplicaLostError)


@pytest.mark.own_farm
@pytest.mark.parametrize(
    ("name", "import_path", "why"),
    [
        ("kaist.none.1", "served_app:nothing", "nothing"),
        ("kaist.none.2", "no_module:app", "no_module"),
        ("snu.bay.1", "served_app:app", "not yours"),
    ],
)
async def test_what_cannot_run_says_why(bare_farm, tmp_path, name, import_path, why):
    over = await ended(bare_farm, await started(bare_farm, name, import_path, tmp_path / "notes"))
    assert over.status is JobStatus.FAILED
    assert why in over.message
    await gone(bare_farm, name)


@pytest.mark.own_farm
async def test_an_application_that_is_removed_ends_its_job(bare_farm, tmp_path):
    name, serving = "kaist.left.1", bare_farm.port("serving")
    job = await started(bare_farm, name, "served_app:app", tmp_path / "notes")

    async def look() -> Any:
        app = (await serving.apps()).get(name)
        return app if app is not None and app.running else None

    assert (await eventually(look, "the application to run")).lease_ids == {LEASE.id}
    await serving.remove([name])
    assert "was deleted" in (await ended(bare_farm, job)).message
    await gone(bare_farm, name)
