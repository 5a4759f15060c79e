"""What a unit of work of every store must do: see :class:`cloudfarm.ports.UnitOfWork`."""

import asyncio
from dataclasses import replace

import pytest

from cloudfarm.domain.host import Gpu, Host, NodePhase, NodeTruth
from cloudfarm.domain.lease import Grade, Slice
from cloudfarm.domain.status import (
    Event,
    JobStatus,
    LeaseStatus,
    RevisionStatus,
    ServiceStatus,
    Transition,
    transition,
)
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import (
    AlreadyExistsError,
    FencedError,
    InvalidInputError,
    NotFoundError,
    StaleError,
)
from cloudfarm.testing.factories import (
    add,
    ids,
    keep,
    look,
    make_job,
    make_lease,
    make_revision,
    make_service,
    register,
)


class TestUnitOfWork:
    async def test_keeps_nothing_without_a_commit(self, store):
        async with store.begin() as uow:
            await uow.leases.add(make_lease())
            await uow.take_epoch()
        assert await look(store, lambda uow: uow.leases.list()) == []
        assert await keep(store, lambda uow: uow.take_epoch()) == 1

    async def test_keeps_nothing_after_an_error(self, store):
        async def fail(uow):
            await uow.leases.add(make_lease())
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await keep(store, fail)
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

    async def test_takes_jobs_services_and_revisions(self, store):
        await add(store, leases=[make_lease()])
        model = await register(store)
        await add(store, jobs=[make_job()], services=[make_service()])
        await add(store, revisions=[make_revision(model_id=model.id)])
        job = transition(
            make_job(), JobStatus.FAILED, now_ms=21, error_type="X", driver_exit_code=-9, ended_ms=21
        )
        service = transition(make_service(), ServiceStatus.DELETED, now_ms=22)
        revision = transition(
            make_revision(model_id=model.id), RevisionStatus.RUNNING, now_ms=23, started_ms=23
        )

        async def work(uow):
            await uow.apply(job)
            await uow.apply(service)
            await uow.apply(revision)

        await keep(store, work)
        assert await look(store, lambda uow: uow.jobs.get("j1")) == replace(job.record, version=1)
        assert await look(store, lambda uow: uow.services.get("s1")) == replace(service.record, version=1)
        assert await look(store, lambda uow: uow.revisions.get("r1")) == replace(revision.record, version=1)

    async def test_takes_nothing_else(self, store):
        event = Event(1, "x", "y", None, "steward")
        with pytest.raises(KeyError):
            await keep(store, lambda uow: uow.apply(Transition(Tenant("kaist", "", 1), event)))


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

    async def test_only_the_operator_cordons(self, store, other):
        host = Host("h1", (), 1, 1, Grade.NONE)
        await keep(store, lambda uow: uow.put_hosts([host]))
        await keep(store, lambda uow: uow.set_cordoned("h1", cordoned=True))
        await keep(other, lambda uow: uow.put_hosts([replace(host, seen_ms=7)]))
        assert await look(store, lambda uow: uow.hosts()) == [replace(host, seen_ms=7, cordoned=True)]
        await keep(store, lambda uow: uow.set_cordoned("h1", cordoned=False))
        assert await look(other, lambda uow: uow.hosts()) == [replace(host, seen_ms=7)]
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.set_cordoned("h2", cordoned=True))

    async def test_a_forgotten_host_is_gone_until_it_is_seen(self, store, other):
        host = Host("h1", (), 1, 1, Grade.NONE)
        await keep(store, lambda uow: uow.put_hosts([host]))
        await keep(store, lambda uow: uow.forget_host("h1"))
        assert await look(other, lambda uow: uow.hosts()) == []
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.forget_host("h1"))
        await keep(store, lambda uow: uow.put_hosts([host]))
        assert await look(other, lambda uow: uow.hosts()) == [host]

    async def test_hosts_are_replaced_by_id_and_the_unnamed_stay(self, store):
        hosts = [Host(name, (), 1, 1, Grade.NONE, seen_ms=1) for name in ("h1", "h2")]
        await keep(store, lambda uow: uow.put_hosts(hosts))
        changed = replace(hosts[1], cpus=8, seen_ms=9, grade=Grade.MIG)
        await keep(store, lambda uow: uow.put_hosts([changed]))
        await keep(store, lambda uow: uow.put_hosts([]))
        assert await look(store, lambda uow: uow.hosts()) == [hosts[0], changed]


class TestText:
    async def test_what_no_database_holds_is_replaced(self, store):
        await add(store, leases=[make_lease(message="a\x00b\ud800c 🦊")])
        assert (await look(store, lambda uow: uow.leases.get("l1"))).message == "a\ufffdb\ufffdc 🦊"
        with pytest.raises(NotFoundError):
            await look(store, lambda uow: uow.leases.get("l1\x00"))

    async def test_a_number_beyond_64_bits_is_refused(self, store):
        with pytest.raises(InvalidInputError):
            await add(store, leases=[make_lease(created_ms=2**63)])
