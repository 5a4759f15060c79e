"""What every store must do: see :mod:`cloudfarm.ports`. The tests of what only a database does are at the end."""

import asyncio
import math
from dataclasses import replace

import pytest

from cloudfarm.domain.host import Gpu, Host, NodePhase, NodeTruth
from cloudfarm.domain.lease import Ask, Grade, Lease, LeaseKind, Slice
from cloudfarm.domain.ledger import LedgerEntry, amount
from cloudfarm.domain.quantities import Shape
from cloudfarm.domain.status import (
    EndReason,
    Event,
    JobStatus,
    LeaseStatus,
    ServiceStatus,
    Target,
    Transition,
    transition,
)
from cloudfarm.domain.tenant import Credential, CredentialKind, Role, Tenant
from cloudfarm.domain.workload import Job, Service
from cloudfarm.errors import (
    AlreadyExistsError,
    ConflictError,
    FencedError,
    InvalidInputError,
    NotFoundError,
    StaleError,
    TransitionError,
)

ASK = Ask(Shape(2, 500), cpus=4, memory_bytes=3 * 2**30, duration_ms=3_600_000)


def make_lease(lease_id="l1", tenant="kaist", created_ms=10, **changes):
    lease = Lease(lease_id, tenant, "kim", f"name of {lease_id}", LeaseKind.MANUAL, ASK, created_ms)
    return replace(lease, **changes)


def make_job(job_id="j1", tenant="kaist", submission_id="train", created_ms=10, **changes):
    job = Job(
        job_id,
        tenant,
        "kim",
        submission_id,
        "l1",
        owns_lease=True,
        entrypoint="python x.py",
        created_ms=created_ms,
    )
    return replace(job, **changes)


def make_service(service_id="s1", model_id="", tenant="kaist", name="wind", created_ms=10, **changes):
    service = Service(service_id, tenant, "kim", name, model_id, "a:b", 500, 2, 4, 2**33, created_ms)
    return replace(service, **changes)


def make_credential(credential_id="c1", tenant="kaist", created_ms=10, **changes):
    credential = Credential(
        credential_id,
        CredentialKind.TOKEN,
        tenant,
        "kim",
        Role.MEMBER,
        f"hash of {credential_id}",
        created_ms,
    )
    return replace(credential, **changes)


def make_entry(lease_id="l1", segment=1, start_ms=1000, end_ms=5000, tenant="kaist", milli_gpus=1000):
    seconds = amount(milli_gpus, start_ms, end_ms)
    return LedgerEntry(tenant, lease_id, segment, "manual", milli_gpus, start_ms, end_ms, seconds)


async def keep(store, work):
    async with store.begin() as uow:
        result = await work(uow)
        await uow.commit()
        return result


async def add(store, **records):
    """Store records by the name of their repository."""
    async with store.begin() as uow:
        for repository, each in records.items():
            for record in each:
                await getattr(uow, repository).add(record)
        await uow.commit()


async def register(store, name="wind", job_id=None, tenant="kaist", manifest=None):
    return await keep(
        store,
        lambda uow: uow.models.register(
            tenant=tenant, name=name, uri=f"/models/{name}", job_id=job_id, manifest=manifest or {}, now_ms=7
        ),
    )


async def look(store, work):
    async with store.begin(write=False) as uow:
        return await work(uow)


def ids(records):
    return [record.id for record in records]


class TestUnitOfWork:
    async def test_keeps_nothing_without_a_commit(self, store):
        async with store.begin() as uow:
            await uow.leases.add(make_lease())
            await uow.take_epoch()
        assert await look(store, lambda uow: uow.leases.list()) == []
        assert await keep(store, lambda uow: uow.take_epoch()) == 1

    async def test_keeps_nothing_after_an_error(self, store):
        with pytest.raises(ZeroDivisionError):
            async with store.begin() as uow:
                await uow.leases.add(make_lease())
                raise ZeroDivisionError
        assert await look(store, lambda uow: uow.leases.list()) == []

    async def test_sees_its_own_changes_and_others_see_them_after_the_commit(self, store, other):
        async with store.begin() as uow:
            await uow.leases.add(make_lease())
            assert ids(await uow.leases.list()) == ["l1"]
            assert await look(other, lambda reader: reader.leases.list()) == []
            await uow.commit()
            assert ids(await look(other, lambda reader: reader.leases.list())) == ["l1"]

    async def test_a_reader_sees_one_moment(self, store, other):
        async with other.begin(write=False) as reader:
            assert await reader.leases.list() == []
            await add(store, leases=[make_lease()])
            assert await reader.leases.list() == []
        assert ids(await look(other, lambda uow: uow.leases.list())) == ["l1"]

    async def test_readers_do_not_wait_for_a_writer(self, store, other):
        await add(store, leases=[make_lease()])
        async with store.begin() as writer:
            await writer.check_epoch(0)
            await writer.leases.update(replace(make_lease(), message="new"))
            async with other.begin(write=False) as reader:
                await reader.check_epoch(0)
                assert (await reader.leases.get("l1")).message == ""
            async with store.begin(write=False) as reader:
                assert (await reader.leases.get("l1")).message == ""

    async def test_a_reader_cannot_write(self, store):
        async with store.begin(write=False) as uow:
            with pytest.raises(RuntimeError, match="for reading"):
                await uow.leases.add(make_lease())
            with pytest.raises(RuntimeError, match="for reading"):
                await uow.take_epoch()

    async def test_is_over_after_the_commit(self, store):
        async with store.begin() as uow:
            await uow.commit()
            with pytest.raises(RuntimeError, match="committed"):
                await uow.leases.add(make_lease())
            with pytest.raises(RuntimeError, match="committed"):
                await uow.commit()

    async def test_can_only_be_left_after_a_refusal(self, store):
        await add(store, leases=[make_lease()])
        async with store.begin() as uow:
            await uow.leases.add(make_lease("l2"))
            with pytest.raises(AlreadyExistsError):
                await uow.leases.add(make_lease("l1"))
            with pytest.raises(RuntimeError, match="failed"):
                await uow.leases.list()
            with pytest.raises(RuntimeError, match="failed"):
                await uow.commit()
        assert ids(await look(store, lambda reader: reader.leases.list())) == ["l1"]

    async def test_goes_on_after_a_miss(self, store):
        async with store.begin() as uow:
            with pytest.raises(NotFoundError):
                await uow.leases.get("none")
            await uow.leases.add(make_lease())
            with pytest.raises(StaleError):
                await uow.leases.update(make_lease(version=5))
            await uow.commit()
        assert ids(await look(store, lambda reader: reader.leases.list())) == ["l1"]

    async def test_a_cancelled_writer_lets_the_next_one_in(self, store, other):
        inside = asyncio.Event()

        async def hold():
            async with store.begin() as uow:
                await uow.leases.add(make_lease())
                inside.set()
                await asyncio.Event().wait()

        holder = asyncio.create_task(hold())
        await inside.wait()
        waiting = asyncio.create_task(add(store, leases=[make_lease("l2")]))
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder
        await waiting
        await add(other, leases=[make_lease("l3")])
        assert ids(await look(store, lambda uow: uow.leases.list())) == ["l2", "l3"]

    async def test_many_writers_at_once_all_get_their_turn(self, store, other):
        leases = [make_lease(f"l{number:02}") for number in range(40)]
        await asyncio.gather(
            *(add((store, other)[index % 2], leases=[lease]) for index, lease in enumerate(leases))
        )
        assert ids(await look(store, lambda uow: uow.leases.list())) == ids(leases)


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


FULL_LEASE = make_lease(
    status=LeaseStatus.ENDED,
    target=Target.END,
    kind=LeaseKind.SERVICE,
    owner="김 🦊",
    ask=Ask(
        Shape(2, 2000), cpus=0, memory_bytes=2**62, duration_ms=1, gpu_model="H200 µ", distinct_gpus=False
    ),
    slices=(
        Slice("l1", 0, "호스트-1", (0, 7), 2000, 0, 2**62, node_id="ab12", isolation="mount, cgroup"),
        Slice("l1", 1, "host-2", (), 0, 0, 1),
    ),
    grade=Grade.DRIVER,
    granted_ms=11,
    started_ms=12,
    ends_ms=13,
    noticed_ms=14,
    ending_ms=15,
    ended_ms=16,
    reason=EndReason.NODE_LOST,
    message='lines\nand "quotes" \\ ☂',
    segment=3,
    version=9,
)


class TestLeases:
    @pytest.mark.parametrize("lease", [make_lease(), FULL_LEASE])
    async def test_come_back_as_they_were(self, store, lease):
        await add(store, leases=[lease])
        found = await look(store, lambda uow: uow.leases.get("l1"))
        assert found == lease
        assert [type(found.status), type(found.slices), type(found.ask)] == [LeaseStatus, tuple, Ask]
        assert await look(store, lambda uow: uow.leases.list()) == [lease]

    async def test_missing(self, store):
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.leases.get("none"))
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.leases.update(make_lease("none")))

    async def test_an_id_is_taken_once(self, store):
        await add(store, leases=[make_lease()])
        with pytest.raises(AlreadyExistsError):
            await add(store, leases=[make_lease(tenant="snu")])

    async def test_need_their_tenant(self, store):
        with pytest.raises(NotFoundError):
            await add(store, leases=[make_lease(tenant="none")])

    async def test_list(self, store):
        ended = {"status": LeaseStatus.ENDED}
        await add(
            store,
            leases=[
                make_lease("l5", created_ms=1),
                make_lease("l4", created_ms=3, **ended),
                make_lease("l3", created_ms=3, status=LeaseStatus.ACTIVE),
                make_lease("l2", created_ms=2, tenant="snu", status=LeaseStatus.ENDING),
                make_lease("l1", created_ms=4, tenant="snu", **ended),
            ],
        )

        async def listed(**asked):
            return ids(await look(store, lambda uow: uow.leases.list(**asked)))

        assert await listed() == ["l5", "l2", "l3", "l4", "l1"]
        assert await listed(open_only=True) == ["l5", "l2", "l3"]
        assert await listed(tenant="kaist") == ["l5", "l3", "l4"]
        assert await listed(tenant="kaist", open_only=True) == ["l5", "l3"]
        assert await listed(limit=2) == ["l4", "l1"]
        assert await listed(limit=1, open_only=True) == ["l3"]
        assert await listed(tenant="snu", limit=9) == ["l2", "l1"]
        assert await listed(limit=0) == []
        assert await listed(tenant="none") == []

    async def test_update_counts_the_version_up(self, store):
        await add(store, leases=[make_lease()])
        changed = make_lease(target=Target.END, message="enough", reason=EndReason.RELEASED)
        await keep(store, lambda uow: uow.leases.update(changed))
        assert await look(store, lambda uow: uow.leases.get("l1")) == replace(changed, version=1)

    async def test_of_two_updates_one_is_stale(self, store, other):
        await add(store, leases=[make_lease()])
        done = await asyncio.gather(
            keep(store, lambda uow: uow.leases.update(make_lease(message="one"))),
            keep(other, lambda uow: uow.leases.update(make_lease(message="two"))),
            return_exceptions=True,
        )
        (lost,) = [result for result in done if result is not None]
        assert isinstance(lost, StaleError)
        found = await look(store, lambda uow: uow.leases.get("l1"))
        assert (found.version, found.message) == (1, "two" if done[0] else "one")

    async def test_an_update_and_a_transition_exclude_each_other(self, store, other):
        await add(store, leases=[make_lease()])
        step = transition(make_lease(), LeaseStatus.STARTING, now_ms=20)
        done = await asyncio.gather(
            keep(store, lambda uow: uow.apply(step)),
            keep(other, lambda uow: uow.leases.update(make_lease(target=Target.END))),
            return_exceptions=True,
        )
        assert sorted(type(result) for result in done if result is not None) == [StaleError]
        events = await look(store, lambda uow: uow.events.list())
        assert len(events) == (1 if done[0] is None else 0)

    async def test_an_update_may_not_change_the_status(self, store):
        await add(store, leases=[make_lease()])
        with pytest.raises(TransitionError):
            await keep(store, lambda uow: uow.leases.update(make_lease(status=LeaseStatus.ACTIVE)))
        with pytest.raises(StaleError):
            await keep(store, lambda uow: uow.leases.update(make_lease(status=LeaseStatus.ACTIVE, version=7)))
        assert await look(store, lambda uow: uow.leases.get("l1")) == make_lease()


class TestApply:
    async def test_stores_record_and_event_together(self, store):
        await add(store, leases=[make_lease()])
        slices = (Slice("l1", 0, "h", (1,), 500, 4, 2**30),)
        step = transition(
            make_lease(), LeaseStatus.STARTING, now_ms=20, message="why", slices=slices, grade=Grade.MPS
        )
        await keep(store, lambda uow: uow.apply(step))
        assert await look(store, lambda uow: uow.leases.get("l1")) == replace(step.record, version=1)
        assert await look(store, lambda uow: uow.events.list()) == [step.event]

    async def test_refuses_a_stale_record_and_tells_of_nothing(self, store):
        await add(store, leases=[make_lease()])
        step = transition(make_lease(), LeaseStatus.STARTING, now_ms=20)
        await keep(store, lambda uow: uow.leases.update(make_lease(message="changed")))
        with pytest.raises(StaleError):
            await keep(store, lambda uow: uow.apply(step))
        assert await look(store, lambda uow: uow.events.list()) == []

    async def test_refuses_a_record_that_is_not_there(self, store):
        step = transition(make_lease(), LeaseStatus.STARTING, now_ms=20)
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.apply(step))

    async def test_takes_jobs_and_services(self, store):
        await add(store, leases=[make_lease()])
        model = await register(store)
        await add(store, jobs=[make_job()], services=[make_service(model_id=model.id)])
        job = transition(
            make_job(), JobStatus.FAILED, now_ms=21, error_type="X", driver_exit_code=-9, ended_ms=21
        )
        service = transition(
            make_service(model_id=model.id), ServiceStatus.STARTING, now_ms=22, lease_id="l1"
        )

        async def work(uow):
            await uow.apply(job)
            await uow.apply(service)

        await keep(store, work)
        assert await look(store, lambda uow: uow.jobs.get("j1")) == replace(job.record, version=1)
        assert await look(store, lambda uow: uow.services.get("s1")) == replace(service.record, version=1)

    async def test_takes_nothing_else(self, store):
        event = Event(1, "x", "y", None, "steward")
        with pytest.raises(KeyError):
            await keep(store, lambda uow: uow.apply(Transition(Tenant("kaist", "", 1), event)))


class TestJobs:
    @pytest.mark.parametrize(
        "job",
        [
            make_job(),
            make_job(
                owns_lease=False,
                entrypoint="python 학습.py --a 'b c'",
                runtime_env={
                    "env_vars": {"A": "1", "나": "☂"},
                    "pip": ["x", None, 1.5, True],
                    "deep": {"er": [{}]},
                },
                metadata={"user": "김"},
                resources={"entrypoint_num_cpus": 0.1},
                status=JobStatus.FAILED,
                target=Target.END,
                submitted_ms=1,
                started_ms=2,
                ended_ms=3,
                message="m",
                error_type="DRIVER",
                driver_exit_code=-9,
                log_uri="/logs/j1",
                version=4,
            ),
        ],
    )
    async def test_come_back_as_they_were(self, store, job):
        await add(store, leases=[make_lease()], jobs=[job])
        found = await look(store, lambda uow: uow.jobs.get("j1"))
        assert found == job
        assert [type(found.runtime_env), type(found.metadata), type(found.resources)] == [dict] * 3
        assert await look(store, lambda uow: uow.jobs.find("kaist", job.submission_id)) == job

    async def test_what_a_caller_does_to_its_copy_is_not_stored(self, store):
        environment = {"env_vars": {}}
        await add(store, leases=[make_lease()], jobs=[make_job(runtime_env=environment)])
        environment["env_vars"]["A"] = "1"
        found = await look(store, lambda uow: uow.jobs.get("j1"))
        found.runtime_env["B"] = "2"
        assert (await look(store, lambda uow: uow.jobs.get("j1"))).runtime_env == {"env_vars": {}}

    async def test_a_submission_id_is_unique_in_its_tenant_only(self, store):
        await add(store, leases=[make_lease()], jobs=[make_job("j1"), make_job("j2", tenant="snu")])
        assert (await look(store, lambda uow: uow.jobs.find("snu", "train"))).id == "j2"
        with pytest.raises(AlreadyExistsError, match="kaist has a job train already"):
            await add(store, jobs=[make_job("j3")])
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.jobs.find("snu", "other"))
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.jobs.get("j3"))

    async def test_of_two_at_once_with_one_submission_id_one_is_refused(self, store, other):
        await add(store, leases=[make_lease()])
        done = await asyncio.gather(
            add(store, jobs=[make_job("j1")]), add(other, jobs=[make_job("j2")]), return_exceptions=True
        )
        assert sorted(type(result) for result in done if result is not None) == [AlreadyExistsError]
        assert len(await look(store, lambda uow: uow.jobs.list())) == 1

    async def test_need_their_lease(self, store):
        with pytest.raises(NotFoundError):
            await add(store, jobs=[make_job()])

    async def test_list(self, store):
        await add(
            store,
            leases=[make_lease(), make_lease("l2")],
            jobs=[
                make_job("j3", submission_id="a", created_ms=1, status=JobStatus.SUCCEEDED),
                make_job("j2", submission_id="b", created_ms=2, status=JobStatus.RUNNING, lease_id="l2"),
                make_job("j1", submission_id="c", created_ms=3, tenant="snu"),
                make_job("j0", submission_id="d", created_ms=4, status=JobStatus.STOPPED, lease_id="l2"),
            ],
        )

        async def listed(**asked):
            return ids(await look(store, lambda uow: uow.jobs.list(**asked)))

        assert await listed() == ["j3", "j2", "j1", "j0"]
        assert await listed(open_only=True) == ["j2", "j1"]
        assert await listed(tenant="kaist", open_only=True) == ["j2"]
        assert await listed(lease_id="l2") == ["j2", "j0"]
        assert await listed(limit=2) == ["j1", "j0"]
        assert await listed(tenant="kaist", limit=2) == ["j2", "j0"]

    async def test_update(self, store):
        await add(store, leases=[make_lease()], jobs=[make_job()])
        await keep(store, lambda uow: uow.jobs.update(make_job(submitted_ms=5)))
        assert await look(store, lambda uow: uow.jobs.get("j1")) == make_job(submitted_ms=5, version=1)
        with pytest.raises(StaleError):
            await keep(store, lambda uow: uow.jobs.update(make_job(submitted_ms=6)))
        with pytest.raises(TransitionError):
            await keep(store, lambda uow: uow.jobs.update(make_job(status=JobStatus.RUNNING, version=1)))
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.jobs.update(make_job("none")))

    async def test_an_ended_job_can_be_forgotten_and_its_lease_and_cost_stay(self, store):
        await add(store, leases=[make_lease()], jobs=[make_job(status=JobStatus.SUCCEEDED)])
        await keep(store, lambda uow: uow.ledger.append(make_entry()))
        model = await register(store, job_id="j1")
        await keep(store, lambda uow: uow.jobs.delete("j1"))
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.jobs.get("j1"))
        assert ids(await look(store, lambda uow: uow.leases.list())) == ["l1"]
        assert await look(store, lambda uow: uow.ledger.list()) == [make_entry()]
        assert (await look(store, lambda uow: uow.models.get(model.id))).job_id == "j1"
        await add(store, jobs=[make_job("j2")])

    async def test_an_open_or_unknown_job_cannot_be_forgotten(self, store):
        await add(store, leases=[make_lease()], jobs=[make_job()])
        with pytest.raises(ConflictError):
            await keep(store, lambda uow: uow.jobs.delete("j1"))
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.jobs.delete("none"))


class TestServices:
    async def test_come_back_as_they_were(self, store):
        model = await register(store)
        await add(store, leases=[make_lease()])
        service = make_service(
            model_id=model.id,
            lease_id="l1",
            status=ServiceStatus.FAILED,
            target=Target.END,
            message="나쁨",
            version=2,
        )
        await add(store, services=[service])
        assert await look(store, lambda uow: uow.services.get("s1")) == service
        assert await look(store, lambda uow: uow.services.find("kaist", "wind")) == service

    async def test_a_name_is_taken_while_its_service_lives(self, store):
        model = (await register(store)).id
        await add(store, services=[make_service(model_id=model), make_service("s2", model, "snu")])
        with pytest.raises(AlreadyExistsError, match="kaist has a service wind already"):
            await add(store, services=[make_service("s3", model)])
        gone = transition(make_service(model_id=model), ServiceStatus.DELETED, now_ms=3)
        await keep(store, lambda uow: uow.apply(gone))
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.services.find("kaist", "wind"))
        await add(store, services=[make_service("s3", model, created_ms=11)])
        assert (await look(store, lambda uow: uow.services.find("kaist", "wind"))).id == "s3"
        assert ids(await look(store, lambda uow: uow.services.list())) == ["s1", "s2", "s3"]
        assert ids(await look(store, lambda uow: uow.services.list(open_only=True))) == ["s2", "s3"]
        assert ids(await look(store, lambda uow: uow.services.list(tenant="kaist", open_only=True))) == ["s3"]

    async def test_update(self, store):
        model = (await register(store)).id
        await add(store, leases=[make_lease()], services=[make_service(model_id=model)])
        changed = make_service(model_id=model, lease_id="l1")
        await keep(store, lambda uow: uow.services.update(changed))
        assert await look(store, lambda uow: uow.services.get("s1")) == replace(changed, version=1)
        with pytest.raises(StaleError):
            await keep(store, lambda uow: uow.services.update(changed))
        with pytest.raises(TransitionError):
            again = replace(changed, status=ServiceStatus.RUNNING, version=1)
            await keep(store, lambda uow: uow.services.update(again))

    async def test_missing(self, store):
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.services.get("none"))
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.services.find("kaist", "none"))

    async def test_need_their_model_and_lease(self, store):
        with pytest.raises(NotFoundError):
            await add(store, services=[make_service(model_id="none")])
        model = await register(store)
        with pytest.raises(NotFoundError):
            await add(store, services=[make_service(model_id=model.id, lease_id="none")])
        await add(store, services=[make_service(model_id=model.id)])
        with pytest.raises(NotFoundError):
            broken = make_service(model_id=model.id, lease_id="none")
            await keep(store, lambda uow: uow.services.update(broken))


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
            start_ms=1_800_000_000_001, end_ms=1_800_000_000_001 + 366 * 86_400_000, milli_gpus=64_000 * 64
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


class TestText:
    async def test_what_no_database_holds_is_replaced(self, store):
        await add(store, leases=[make_lease(message="a\x00b\ud800c 🦊")])
        assert (await look(store, lambda uow: uow.leases.get("l1"))).message == "a\ufffdb\ufffdc 🦊"
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.leases.get("l1\x00"))

    async def test_a_number_beyond_64_bits_is_refused(self, store):
        with pytest.raises(InvalidInputError):
            await add(store, leases=[make_lease(created_ms=2**63)])


class TestSteward:
    async def test_each_epoch_is_higher(self, store, other):
        taken = await asyncio.gather(
            *(keep((store, other)[n % 2], lambda uow: uow.take_epoch()) for n in range(6))
        )
        assert sorted(taken) == [1, 2, 3, 4, 5, 6]

    async def test_the_older_steward_is_fenced(self, store, other):
        old = await keep(store, lambda uow: uow.take_epoch())
        new = await keep(other, lambda uow: uow.take_epoch())
        for begin in ({}, {"write": False}):
            with pytest.raises(FencedError):
                async with store.begin(**begin) as uow:
                    await uow.check_epoch(old)
            async with other.begin(**begin) as uow:
                await uow.check_epoch(new)

    async def test_an_epoch_that_was_never_given_out_is_fenced(self, store):
        with pytest.raises(FencedError):
            await look(store, lambda uow: uow.check_epoch(5))

    async def test_no_epoch_is_taken_between_check_and_commit(self, store, other):
        await add(store, leases=[make_lease()])
        old = await keep(store, lambda uow: uow.take_epoch())
        order = []

        async def take_over():
            async with other.begin() as uow:
                epoch = await uow.take_epoch()
                order.append("taken")
                lease = await uow.leases.get("l1")
                await uow.commit()
                return epoch, lease

        async with store.begin() as uow:
            await uow.check_epoch(old)
            successor = asyncio.create_task(take_over())
            for _ in range(20):  # round trips in which the successor would be through if nothing held it
                await look(store, lambda reader: reader.leases.list())
            await uow.apply(transition(make_lease(), LeaseStatus.STARTING, now_ms=3))
            order.append("committing")
            await uow.commit()
        epoch, lease = await successor
        assert order == ["committing", "taken"]
        assert (epoch, lease.status) == (old + 1, LeaseStatus.STARTING)
        with pytest.raises(FencedError):
            await keep(store, lambda uow: uow.check_epoch(old))

    async def test_heartbeat(self, store, other):
        assert await look(store, lambda uow: uow.last_heartbeat_ms()) is None
        await keep(store, lambda uow: uow.heartbeat(1_800_000_000_000))
        assert await look(other, lambda uow: uow.last_heartbeat_ms()) == 1_800_000_000_000

    async def test_stopping_outlives_the_steward(self, store, other):
        assert await look(store, lambda uow: uow.is_stopping()) is False
        await keep(store, lambda uow: uow.set_stopping(stopping=True))
        await keep(other, lambda uow: uow.take_epoch())
        assert await look(other, lambda uow: uow.is_stopping()) is True
        await keep(store, lambda uow: uow.set_stopping(stopping=False))
        assert await look(other, lambda uow: uow.is_stopping()) is False

    async def test_hosts_come_back_without_nodes(self, store):
        host = Host(
            "h1", (Gpu(0, "H200", 141_000, "GPU-1"), Gpu(3, "시뮬", 1)), 16, 2**40, Grade.DRIVER, seen_ms=5
        )
        node = NodeTruth("l1-0", "l1", NodePhase.UP, "n", 1)
        other = Host("h0", (), 0, 0, Grade.NONE, reachable=False, cordoned=True)
        await keep(store, lambda uow: uow.put_hosts([replace(host, nodes=(node,)), other]))
        assert await look(store, lambda uow: uow.hosts()) == [other, host]

    async def test_hosts_are_replaced_by_id_and_the_unnamed_stay(self, store):
        hosts = [Host(name, (), 1, 1, Grade.NONE, seen_ms=1) for name in ("h1", "h2")]
        await keep(store, lambda uow: uow.put_hosts(hosts))
        changed = replace(hosts[1], cpus=8, seen_ms=9, grade=Grade.MIG)
        await keep(store, lambda uow: uow.put_hosts([changed]))
        await keep(store, lambda uow: uow.put_hosts([]))
        assert await look(store, lambda uow: uow.hosts()) == [hosts[0], changed]
