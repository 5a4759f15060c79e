"""What every store must do with leases, jobs and services: see :mod:`cloudfarm.ports`."""

import asyncio
from dataclasses import replace

import pytest

from cloudfarm.domain.lease import Ask, ExpectedStart, Grade, LeaseKind, Slice
from cloudfarm.domain.quantities import Shape
from cloudfarm.domain.status import (
    EndReason,
    JobStatus,
    LeaseStatus,
    RevisionStatus,
    ServiceStatus,
    Target,
    transition,
)
from cloudfarm.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    StaleError,
    TransitionError,
)
from cloudfarm.testing.factories import (
    add,
    ids,
    keep,
    look,
    make_entry,
    make_job,
    make_lease,
    make_revision,
    make_service,
    register,
)

FULL_LEASE = make_lease(
    status=LeaseStatus.ENDED,
    target=Target.END,
    kind=LeaseKind.SERVICE,
    owner="김 🦊",
    ask=Ask(
        Shape(2, 2000),
        cpus=0,
        memory_bytes=2**62,
        duration_ms=1,
        gpu_model="H200 µ",
        distinct_gpus=False,
        not_before_ms=2**41,
    ),
    slices=(
        Slice("l1", 0, "호스트-1", (0, 7), 2000, 0, 2**62, 2**38, node_id="ab12", isolation="mount, cgroup"),
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
    project="바람-1",
    revision_id="r1",
    preempted_ms=2**41,
    expected_start=ExpectedStart("held back", 2**41, 2**41 + 1, 2**62),
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
                make_lease("l2", created_ms=2, tenant="snu", status=LeaseStatus.ENDING, revision_id="r1"),
                make_lease("l1", created_ms=4, tenant="snu", revision_id="r1", **ended),
            ],
        )

        async def listed(**asked):
            return ids(await look(store, lambda uow: uow.leases.list(**asked)))

        assert await listed(revision_id="r1") == ["l2", "l1"]
        assert await listed(revision_id="r1", open_only=True) == ["l2"]
        assert await listed(revision_id="r1", tenant="kaist") == []

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
        service = make_service(
            min_replicas=0,
            max_replicas=7,
            target_load=3,
            idle_ms=90_000,
            shared=True,
            current_id="r9",
            target=Target.END,
            message="나쁨",
            project="바람-1",
            version=2,
        )
        await add(store, services=[service])
        assert await look(store, lambda uow: uow.services.get("s1")) == service
        assert await look(store, lambda uow: uow.services.find("kaist", "wind")) == service

    async def test_a_name_is_taken_while_its_service_lives(self, store):
        await add(store, services=[make_service(), make_service("s2", "snu")])
        with pytest.raises(AlreadyExistsError, match="kaist has a service wind already"):
            await add(store, services=[make_service("s3")])
        gone = transition(make_service(), ServiceStatus.DELETED, now_ms=3)
        await keep(store, lambda uow: uow.apply(gone))
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.services.find("kaist", "wind"))
        await add(store, services=[make_service("s3", created_ms=11)])
        assert (await look(store, lambda uow: uow.services.find("kaist", "wind"))).id == "s3"
        assert ids(await look(store, lambda uow: uow.services.list())) == ["s1", "s2", "s3"]
        assert ids(await look(store, lambda uow: uow.services.list(open_only=True))) == ["s2", "s3"]
        assert ids(await look(store, lambda uow: uow.services.list(tenant="kaist", open_only=True))) == ["s3"]

    async def test_the_oldest_that_is_shared_is_found_by_everybody(self, store):
        await add(
            store,
            services=[
                make_service("s1", created_ms=1),
                make_service("s2", "snu", created_ms=3, shared=True),
                make_service("s3", name="sea", created_ms=1, shared=True),
            ],
        )
        assert (await look(store, lambda uow: uow.services.find_shared("wind"))).id == "s2"
        await keep(store, lambda uow: uow.services.update(make_service("s1", created_ms=1, shared=True)))
        assert (await look(store, lambda uow: uow.services.find_shared("wind"))).id == "s1"
        shared = await look(store, lambda uow: uow.services.get("s1"))
        await keep(store, lambda uow: uow.apply(transition(shared, ServiceStatus.DELETED, now_ms=3)))
        assert (await look(store, lambda uow: uow.services.find_shared("wind"))).id == "s2"
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.services.find_shared("land"))

    async def test_update(self, store):
        await add(store, services=[make_service()])
        changed = make_service(max_replicas=3)
        await keep(store, lambda uow: uow.services.update(changed))
        assert await look(store, lambda uow: uow.services.get("s1")) == replace(changed, version=1)
        with pytest.raises(StaleError):
            await keep(store, lambda uow: uow.services.update(changed))
        again = replace(changed, status=ServiceStatus.DELETED, version=1)
        with pytest.raises(TransitionError):
            await keep(store, lambda uow: uow.services.update(again))

    async def test_missing(self, store):
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.services.get("none"))
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.services.find("kaist", "none"))
        with pytest.raises(NotFoundError):
            await add(store, services=[make_service(tenant="none")])


class TestRevisions:
    @pytest.fixture
    async def model(self, store) -> str:
        await add(store, services=[make_service(), make_service("s2", name="sea")])
        return (await register(store)).id

    async def test_come_back_as_they_were(self, store, model):
        full = make_revision(
            "r2",
            model_id=model,
            number=2,
            replicas=3,
            canary_percent=10,
            status=RevisionStatus.IDLE,
            target=Target.END,
            message="나쁨",
            started_ms=1,
            promoted_ms=2,
            left_ms=2**41,
            version=4,
        )
        await add(store, revisions=[make_revision(model_id=model), full])
        assert await look(store, lambda uow: uow.revisions.get("r1")) == make_revision(model_id=model)
        assert await look(store, lambda uow: uow.revisions.get("r2")) == full

    async def test_a_number_is_used_once_in_a_tenants_name(self, store, model):
        assert await look(store, lambda uow: uow.revisions.last_number("kaist", "wind")) == 0
        ended = make_revision(model_id=model, status=RevisionStatus.ENDED)
        await add(store, revisions=[ended, make_revision("r2", "s2", model, name="sea", number=5)])
        assert await look(store, lambda uow: uow.revisions.last_number("kaist", "wind")) == 1
        assert await look(store, lambda uow: uow.revisions.last_number("kaist", "sea")) == 5
        assert await look(store, lambda uow: uow.revisions.last_number("snu", "wind")) == 0
        with pytest.raises(AlreadyExistsError, match="kaist has a revision 1 of wind already"):
            await add(store, revisions=[make_revision("r3", model_id=model)])

    async def test_list(self, store, model):
        await add(
            store,
            revisions=[
                make_revision("r3", model_id=model, created_ms=1, status=RevisionStatus.ENDED),
                make_revision("r2", model_id=model, created_ms=2, number=2),
                make_revision("r1", "s2", model, name="sea", created_ms=3),
            ],
        )

        async def listed(**asked):
            return ids(await look(store, lambda uow: uow.revisions.list(**asked)))

        assert await listed() == ["r3", "r2", "r1"]
        assert await listed(open_only=True) == ["r2", "r1"]
        assert await listed(service_id="s1") == ["r3", "r2"]
        assert await listed(service_id="s1", open_only=True) == ["r2"]

    async def test_update(self, store, model):
        await add(store, revisions=[make_revision(model_id=model)])
        changed = make_revision(model_id=model, replicas=4)
        await keep(store, lambda uow: uow.revisions.update(changed))
        assert await look(store, lambda uow: uow.revisions.get("r1")) == replace(changed, version=1)
        with pytest.raises(StaleError):
            await keep(store, lambda uow: uow.revisions.update(changed))
        again = replace(changed, status=RevisionStatus.RUNNING, version=1)
        with pytest.raises(TransitionError):
            await keep(store, lambda uow: uow.revisions.update(again))
        await keep(store, lambda uow: uow.apply(transition(again, RevisionStatus.IDLE, now_ms=3)))
        assert (await look(store, lambda uow: uow.revisions.get("r1"))).status is RevisionStatus.IDLE

    async def test_need_their_service_and_model(self, store, model):
        for wrong in ({"service_id": "none", "model_id": model}, {"model_id": "none"}):
            with pytest.raises(NotFoundError):
                await add(store, revisions=[make_revision(**wrong)])
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.revisions.get("none"))
