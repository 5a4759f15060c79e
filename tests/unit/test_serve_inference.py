"""Which of Serve's errors says that nobody has got a request, and which that it was lost with a replica."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve import context
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

from cloudfarm.domain.generation import Generation, Piece, Sampling, ToEmbed
from cloudfarm.errors import CloudfarmError, NoReplicaError, ReplicaLostError, UnavailableError
from cloudfarm.raylayer.serve_handles import Handles
from cloudfarm.raylayer.serve_inference import ServeInference

APP = "kaist.talk.1"


class Handle:
    """Answers every request with an error, as Serve's handles do: when the answer is awaited."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.cancelled = False

    def options(self, **_options) -> "Handle":
        return self

    def remote(self, *_args) -> "Handle":
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self):
        yield from ()
        raise self.error

    def __aiter__(self) -> "Handle":
        return self

    async def __anext__(self) -> object:
        raise self.error


def untold(_piece: Piece) -> None:
    """Nobody pays."""


async def generated(inference: ServeInference) -> object:
    return await anext(inference.generate(APP, Generation(Sampling(), prompts=("x",)), untold))


ASK = {
    "call": lambda inference: inference.call(APP, {}, timeout_s=1),
    "embed": lambda inference: inference.embed(APP, ToEmbed(("x",)), untold),
    "generate": generated,
}


async def asked(way: str) -> CloudfarmError:
    inference = ServeInference()
    with pytest.raises(CloudfarmError) as raised:
        await ASK[way](inference)
    inference.close()
    return raised.value


async def told(error: BaseException, way: str, monkeypatch: pytest.MonkeyPatch) -> type[CloudfarmError]:
    async def opened(_self, _name: str) -> Handle:
        return Handle(error)

    monkeypatch.setattr(Handles, "_open", opened)
    found = await asked(way)
    assert found.detail == "service talk does not answer just now"
    return type(found)


@pytest.mark.parametrize("way", ASK)
async def test_an_application_that_has_ended_took_nothing(way, monkeypatch) -> None:
    gone = DeploymentUnavailableError(DeploymentID("Model", APP))
    assert await told(gone, way, monkeypatch) is NoReplicaError


@pytest.mark.parametrize("way", ASK)
@pytest.mark.parametrize(
    "error", [ActorDiedError(), ActorUnavailableError("gone", None), asyncio.CancelledError()]
)
async def test_a_replica_that_is_lost_may_have_begun(error, way, monkeypatch) -> None:
    assert await told(error, way, monkeypatch) is ReplicaLostError


@pytest.mark.parametrize("way", ASK)
@pytest.mark.parametrize("error", [TimeoutError(), RequestCancelledError("r1"), KeyError("of the replica's")])
async def test_any_other_error_may_be_of_one_that_had_begun(error, way, monkeypatch) -> None:
    assert await told(error, way, monkeypatch) is UnavailableError


class Controller:
    """Serve's, which has no application."""

    @property
    def get_ingress_deployment_name(self) -> "Controller":
        return self

    async def remote(self, _name: str) -> None:
        return None


@pytest.mark.parametrize("way", ASK)
async def test_an_application_that_serve_does_not_have_took_nothing(way, monkeypatch) -> None:
    monkeypatch.setattr(context, "_get_global_client", lambda: SimpleNamespace(_controller=Controller()))
    assert type(await asked(way)) is NoReplicaError


async def test_requests_that_come_together_open_an_application_once(monkeypatch) -> None:
    opened, opens = [], asyncio.Event()

    async def open_slowly(_self, name: str) -> Handle:
        opened.append(name)
        await opens.wait()
        if len(opened) == 1:
            raise NoReplicaError("not yet")
        return Handle(KeyError())

    monkeypatch.setattr(Handles, "_open", open_slowly)
    handles = Handles()

    async def together() -> list[object]:
        opens.clear()
        calls = [asyncio.create_task(handles.get(APP, "answer", {})) for _ in range(100)]
        await asyncio.sleep(0)
        calls[0].cancel()  # its client goes; the others still wait
        opens.set()
        return (await asyncio.gather(*calls, return_exceptions=True))[1:]

    assert {type(each) for each in await together()} == {NoReplicaError}
    (handle,) = set(await together())
    assert isinstance(handle, Handle)
    assert await handles.get(APP, "answer", {}) is handle
    assert opened == [APP, APP]
