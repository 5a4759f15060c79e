"""What every store must do with tenants, credentials, models and history: see :mod:`cloudfarm.ports`."""

import asyncio
import math
from dataclasses import replace

import pytest

from cloudfarm.domain.status import (
    Event,
)
from cloudfarm.domain.tenant import CredentialKind, Role, Tenant
from cloudfarm.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
)
from cloudfarm.testing.factories import (
    add,
    ids,
    keep,
    look,
    make_credential,
    make_entry,
    make_lease,
    register,
)


class TestTenants:
    async def test_come_back_as_they_were(self, store):
        tenant = Tenant("uni-st", "울산과학기술원 🌊", created_ms=3, limit_milli_gpus=0, closed_ms=2**41)
        await add(store, tenants=[tenant])
        assert await look(store, lambda uow: uow.tenants.get("uni-st")) == tenant

    async def test_are_listed_by_slug(self, store):
        await add(store, tenants=[Tenant("k-lab", "", 1), Tenant("kb", "", 1), Tenant("k1", "", 1)])
        assert ids(await look(store, lambda uow: uow.tenants.list())) == ["k-lab", "k1", "kaist", "kb", "snu"]

    async def test_a_slug_is_taken_once(self, store):
        with pytest.raises(AlreadyExistsError):
            await add(store, tenants=[Tenant("kaist", "another", 5)])

    async def test_update(self, store):
        changed = Tenant("kaist", "new", 1, limit_milli_gpus=4000, closed_ms=9)
        await keep(store, lambda uow: uow.tenants.update(changed))
        assert await look(store, lambda uow: uow.tenants.get("kaist")) == changed

    async def test_missing(self, store):
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.tenants.get("none"))
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.tenants.update(Tenant("none", "", 1)))


class TestCredentials:
    @pytest.mark.parametrize(
        "credential",
        [
            make_credential(),
            make_credential(tenant=None, role=Role.OPERATOR, expires_ms=99, revoked_ms=98),
            make_credential(kind=CredentialKind.KEY, services=("wind", "풍력")),
        ],
    )
    async def test_come_back_as_they_were(self, store, credential):
        await add(store, credentials=[credential])
        assert await look(store, lambda uow: uow.credentials.get("c1")) == credential
        assert await look(store, lambda uow: uow.credentials.find("hash of c1")) == credential

    async def test_unknown(self, store):
        assert await look(store, lambda uow: uow.credentials.find("none")) is None
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.credentials.get("none"))

    @pytest.mark.parametrize(
        "same", [{"secret_sha256": "hash of c1", "credential_id": "c2"}, {"credential_id": "c1"}]
    )
    async def test_secret_and_id_are_unique(self, store, same):
        await add(store, credentials=[make_credential()])
        with pytest.raises(AlreadyExistsError):
            await add(store, credentials=[make_credential(**{"secret_sha256": "other", **same})])

    async def test_are_listed_newest_first_per_owner(self, store):
        await add(
            store,
            credentials=[
                make_credential("c1", created_ms=1),
                make_credential("c2", created_ms=3),
                make_credential("c3", created_ms=2),
                make_credential("c4", tenant=None),
                make_credential("c5", tenant="snu"),
            ],
        )
        assert ids(await look(store, lambda uow: uow.credentials.list("kaist"))) == ["c2", "c3", "c1"]
        assert ids(await look(store, lambda uow: uow.credentials.list(None))) == ["c4"]
        assert await look(store, lambda uow: uow.credentials.list("none")) == []

    async def test_revoking_twice_keeps_the_first_time(self, store):
        await add(store, credentials=[make_credential()])
        await keep(store, lambda uow: uow.credentials.revoke("c1", 50))
        await keep(store, lambda uow: uow.credentials.revoke("c1", 60))
        assert (await look(store, lambda uow: uow.credentials.get("c1"))).revoked_ms == 50
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.credentials.revoke("none", 50))

    async def test_need_their_tenant(self, store):
        with pytest.raises(NotFoundError):
            await add(store, credentials=[make_credential(tenant="none")])


class TestModels:
    async def test_come_back_as_they_were(self, store):
        manifest = {"kind": "예보", "metrics": {"loss": 0.25, "n": 2**40}, "files": ["a", "b"], "none": None}
        model = await register(store, job_id="j1", manifest=manifest)
        assert (model.tenant, model.name, model.number, model.job_id) == ("kaist", "wind", 1, "j1")
        assert (model.uri, model.manifest, model.created_ms) == ("/models/wind", manifest, 7)
        assert await look(store, lambda uow: uow.models.get(model.id)) == model

    async def test_a_diverged_training_can_be_stored(self, store):
        model = await register(
            store, manifest={"metrics": {"loss": math.nan, "best": -math.inf, "text": "\x00\ud800"}}
        )
        found = (await look(store, lambda uow: uow.models.get(model.id))).manifest["metrics"]
        assert math.isnan(found["loss"])
        assert (found["best"], found["text"]) == (-math.inf, "\x00\ud800")

    async def test_are_numbered_within_tenant_and_name(self, store):
        numbers = [
            (await register(store, name, tenant=tenant)).number
            for tenant, name in [("kaist", "wind"), ("kaist", "wind"), ("kaist", "sun"), ("snu", "wind")]
        ]
        assert numbers == [1, 2, 1, 1]
        refs = [model.ref for model in await look(store, lambda uow: uow.models.list("kaist"))]
        assert refs == ["sun:1", "wind:1", "wind:2"]

    async def test_one_report_of_a_job_is_stored_once(self, store):
        first = await register(store, job_id="j1", manifest={"a": 1})
        assert await register(store, job_id="j1", manifest={"a": 2}) == first
        assert (await register(store, "other", job_id="j1")).number == 1
        assert (await register(store, job_id="j2")).number == 2
        assert (await register(store)).number == 3
        assert (await register(store)).number == 4

    async def test_two_at_once_get_different_numbers(self, store, other):
        models = await asyncio.gather(*(register((store, other)[index % 2]) for index in range(8)))
        assert sorted(model.number for model in models) == [1, 2, 3, 4, 5, 6, 7, 8]

    async def test_the_same_report_twice_at_once_is_stored_once(self, store, other):
        one, two = await asyncio.gather(register(store, job_id="j1"), register(other, job_id="j1"))
        assert one == two

    async def test_find(self, store):
        first, second = await register(store), await register(store)
        assert await look(store, lambda uow: uow.models.find("kaist", "wind")) == second
        assert await look(store, lambda uow: uow.models.find("kaist", "wind", 1)) == first
        for wanted in [("kaist", "wind", 3), ("kaist", "other"), ("snu", "wind")]:
            with pytest.raises(NotFoundError):
                await look(store, lambda uow, wanted=wanted: uow.models.find(*wanted))
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.models.get("none"))

    async def test_need_their_tenant(self, store):
        with pytest.raises(NotFoundError):
            await register(store, tenant="none")


class TestLedger:
    async def test_a_segment_is_charged_once(self, store, other):
        await add(store, leases=[make_lease()])
        done = await asyncio.gather(
            keep(store, lambda uow: uow.ledger.append(make_entry())),
            keep(other, lambda uow: uow.ledger.append(make_entry(end_ms=6000))),
            return_exceptions=True,
        )
        assert sorted(type(result) for result in done if result is not None) == [AlreadyExistsError]
        await keep(store, lambda uow: uow.ledger.append(make_entry(segment=2)))
        entries = await look(store, lambda uow: uow.ledger.list())
        assert sorted(entry.segment for entry in entries) == [1, 2]

    async def test_is_read_by_owner_lease_and_time(self, store):
        await add(store, leases=[make_lease("l1"), make_lease("l2"), make_lease("l3", tenant="snu")])
        early, late = make_entry("l1", 1, 1000, 5000), make_entry("l1", 2, 5000, 9000)
        instant, others = make_entry("l2", 1, 5000, 5000), make_entry("l3", 1, 0, 2**42, tenant="snu")

        async def work(uow):
            for entry in (late, others, instant, early):
                await uow.ledger.append(entry)

        await keep(store, work)

        async def listed(**asked):
            return await look(store, lambda uow: uow.ledger.list(**asked))

        assert await listed() == [others, early, late, instant]
        assert await listed(tenant="kaist") == [early, late, instant]
        assert await listed(lease_id="l1") == [early, late]
        assert await listed(tenant="kaist", from_ms=5000) == [late, instant]
        assert await listed(tenant="kaist", from_ms=4999) == [early, late, instant]
        assert await listed(tenant="kaist", until_ms=5000) == [early]
        assert await listed(tenant="kaist", from_ms=5000, until_ms=5001) == [late, instant]
        assert await listed(tenant="kaist", from_ms=5001, until_ms=6000) == [late]
        assert await listed(tenant="kaist", from_ms=9000) == []
        assert await listed(tenant="snu", from_ms=7, until_ms=8) == [others]

    async def test_large_amounts_are_exact(self, store):
        await add(store, leases=[make_lease()])
        entry = make_entry(
            start_ms=1_800_000_000_001,
            end_ms=1_800_000_000_001 + 366 * 86_400_000,
            milli_gpus=64_000 * 64,
            project="바람-1",
        )
        await keep(store, lambda uow: uow.ledger.append(entry))
        assert await look(store, lambda uow: uow.ledger.list()) == [entry]

    @pytest.mark.parametrize("wrong", [{"milli_gpu_seconds": 4001}, {"end_ms": 999, "milli_gpu_seconds": -1}])
    async def test_the_amount_must_be_that_of_the_interval(self, store, wrong):
        await add(store, leases=[make_lease()])
        with pytest.raises(InvalidInputError):
            await keep(store, lambda uow: uow.ledger.append(replace(make_entry(), **wrong)))

    async def test_needs_tenant_and_lease(self, store):
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.ledger.append(make_entry()))
        await add(store, leases=[make_lease()])
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.ledger.append(make_entry(tenant="none")))


class TestEvents:
    async def test_are_listed_newest_first(self, store):
        events = [
            Event(5, "lease.active", "l1", "kaist", "steward", "☂"),
            Event(3, "host.leak", "h1", None, "steward"),
            Event(5, "job.failed", "j1", "snu", "user:김", "m"),
        ]
        for event in events:
            await keep(store, lambda uow, event=event: uow.events.append(event))

        async def listed(**asked):
            return await look(store, lambda uow: uow.events.list(**asked))

        assert await listed() == events[::-1]
        assert await listed(limit=1) == events[2:]
        assert await listed(tenant="kaist") == events[:1]
        assert await listed(subject="h1") == events[1:2]
        assert await listed(subject="h1", tenant="snu") == []
