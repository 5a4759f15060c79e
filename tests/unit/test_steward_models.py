"""What a job publishes is registered when it succeeds; what is no model keeps neither it nor the farm from going on."""

import json

import pytest

from cloudfarm.domain.bundles import MAX_MANIFEST_BYTES, check_name, parse_manifest
from cloudfarm.domain.lease import LeaseKind
from cloudfarm.domain.status import JobStatus, LeaseStatus
from cloudfarm.errors import InvalidInputError, StorageRefusedError, UnavailableError
from cloudfarm.steward import wrapup
from cloudfarm.testing.farm import MemoryFarm
from cloudfarm.testing.memory_artifacts import MemoryArtifacts

OUTBOX = ("tenants", "a", "outbox", "j0")
GOOD = {"name": "good", "kind": "causal-lm", "metrics": {"loss": 1.5}}


@pytest.fixture
async def farm() -> MemoryFarm:
    """A farm with a running job that has published a model."""
    farm = MemoryFarm()
    await farm.begin()
    await farm.request("l0", "1", kind=LeaseKind.JOB)
    await farm.submit("j0", "l0")
    await farm.settle()
    put(farm, "good", json.dumps(GOOD).encode())
    return farm


def put(farm: MemoryFarm, name: str, content: bytes, file: str = "model.json") -> None:
    farm.artifacts.files[*OUTBOX, name, file] = content


async def succeed(farm: MemoryFarm) -> tuple[list[str], list[str]]:
    """Let the job succeed; return the names of the models that are registered, and what its owner is told."""
    farm.ray_jobs.end((await farm.job("j0")).ray_id, JobStatus.SUCCEEDED)
    await farm.settle()
    async with farm.store.begin(write=False) as uow:
        models = [each.name for each in await uow.models.list("a")]
        told = [
            each.message
            for each in await uow.events.list()
            if (each.kind, each.tenant) == ("model.refused", "a")
        ]
    return models, told


async def check_over(farm: MemoryFarm) -> None:
    assert (await farm.job("j0")).status is JobStatus.SUCCEEDED
    assert (await farm.lease("l0")).status is LeaseStatus.ENDED


async def test_a_model_is_registered_and_a_folder_without_a_manifest_is_nothing(farm) -> None:
    put(farm, "half", b"x", file="weights.safetensors")
    assert await succeed(farm) == (["good"], [])
    await check_over(farm)


@pytest.mark.parametrize("name", [".cache", "my model", "모델", "_x", "x" * 129, "a\n"])
async def test_a_name_that_is_none_is_told_and_left_out(farm, name) -> None:
    put(farm, name, json.dumps(GOOD).encode())
    models, (told,) = await succeed(farm)
    assert models == ["good"]
    assert told.startswith(f"job j0 published what is no model: {name[:80]!r}: a model's name has letters")
    await check_over(farm)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 200_000, "is not JSON: maximum recursion depth"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "more than 1048576 bytes"),
        (rb'{"name": "\ud800"}', "half a character"),
        (rb'{"a": [{"\udc00": 1}]}', "half a character"),
        (rb'{"a": "\u0000"}', "null byte"),
        (b'{"loss": 1e999}', "not finite"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 64 deep"),
    ],
)
async def test_a_manifest_that_cannot_be_kept_is_told_and_left_out(farm, content, why) -> None:
    put(farm, "bad", content)
    models, (told,) = await succeed(farm)
    assert models == ["good"]
    assert "'bad': " in told
    assert why in told
    await check_over(farm)


async def test_what_a_job_registers_and_what_is_told_of_the_rest_is_bounded(farm, monkeypatch) -> None:
    monkeypatch.setattr(wrapup, "MAX_MODELS", 2)
    for number in range(15):
        put(farm, f"m{number:02}", json.dumps(GOOD).encode())
    models, (told,) = await succeed(farm)
    assert models == ["good", "m00"]
    assert told.count("2 models at most") == 10
    assert told.endswith("; and 4 more")
    await check_over(farm)


@pytest.mark.parametrize("where", [OUTBOX, (*OUTBOX, "bad", "model.json")])
async def test_what_the_farm_may_not_read_is_told_and_left_out(farm, monkeypatch, where) -> None:
    put(farm, "bad", b"{}")
    for name in ("list", "read"):
        monkeypatch.setattr(MemoryArtifacts, name, refusing(name, where, StorageRefusedError("refused")))
    models, (told,) = await succeed(farm)
    assert models == ([] if where is OUTBOX else ["good"])
    assert "refused" in told
    await check_over(farm)


async def test_a_store_that_does_not_answer_is_waited_for(farm, monkeypatch) -> None:
    with monkeypatch.context() as down:
        down.setattr(
            MemoryArtifacts,
            "read",
            refusing("read", (*OUTBOX, "good", "model.json"), UnavailableError("down")),
        )
        assert await succeed(farm) == ([], [])
        assert (await farm.job("j0")).status is JobStatus.RUNNING
    await farm.settle()
    assert await succeed(farm) == (["good"], [])
    await check_over(farm)


def refusing(name, where, error):
    real = getattr(MemoryArtifacts, name)

    async def method(artifacts, *parts, **how):
        if parts == where:
            raise error
        return await real(artifacts, *parts, **how)

    return method


def test_what_is_a_name_and_a_manifest() -> None:
    for name in ("a", "Wind_2.1-b", "x" * 128):
        check_name(name)
    assert parse_manifest(json.dumps(GOOD).encode()) == GOOD
    with pytest.raises(InvalidInputError):
        check_name("a/b")
