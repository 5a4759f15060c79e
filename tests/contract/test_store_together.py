"""Many changes in one statement are as one by one, and reading only what has changed is as reading all."""

import asyncio
from dataclasses import replace

import pytest

from cloudfarm.domain.lease import Slice
from cloudfarm.domain.status import LeaseStatus, transition
from cloudfarm.errors import TransitionError
from cloudfarm.store import records
from cloudfarm.testing.factories import add, ids, keep, look, make_lease

SLICES = (Slice("l1", 0, "h", (1,), 500, 4, 2**30),)


@pytest.fixture(autouse=True)
def _two_at_once(monkeypatch):
    """As if a statement could not take more than two rows."""
    monkeypatch.setattr(records, "AT_ONCE", 2)


@pytest.fixture
async def leases(store):
    made = [make_lease(f"l{number}", created_ms=10 + number) for number in range(5)]
    await add(store, leases=made)
    return made


async def stored(store, lease_id):
    return await look(store, lambda uow: uow.leases.get(lease_id))


def started(lease):
    return transition(lease, LeaseStatus.STARTING, now_ms=20, message="why", slices=SLICES, granted_ms=20)


class TestApplyAll:
    async def test_stores_records_and_events(self, store, leases):
        steps = [started(lease) for lease in leases]
        assert await keep(store, lambda uow: uow.apply_all(steps)) == set()
        assert await look(store, lambda uow: uow.leases.list()) == [
            replace(step.record, version=1) for step in steps
        ]
        assert await look(store, lambda uow: uow.events.list()) == [step.event for step in steps][::-1]

    async def test_leaves_out_what_is_stale_or_not_there_with_its_event(self, store, leases):
        await keep(store, lambda uow: uow.leases.update(replace(leases[1], message="mine")))
        steps = [started(lease) for lease in (*leases, make_lease("none"))]
        assert await keep(store, lambda uow: uow.apply_all(steps)) == {"l1", "none"}
        assert await stored(store, "l1") == replace(leases[1], message="mine", version=1)
        assert [lease.status for lease in await look(store, lambda uow: uow.leases.list())] == [
            LeaseStatus.WAITING if lease.id == "l1" else LeaseStatus.STARTING for lease in leases
        ]
        events = await look(store, lambda uow: uow.events.list())
        assert [event.subject for event in events] == ["l4", "l3", "l2", "l0"]

    async def test_keeps_nothing_without_a_commit(self, store, leases):
        async with store.begin() as uow:
            await uow.apply_all([started(lease) for lease in leases])
        assert await look(store, lambda reader: reader.leases.list()) == leases
        assert await look(store, lambda reader: reader.events.list()) == []

    async def test_nothing_to_apply(self, store):
        assert await keep(store, lambda uow: uow.apply_all([])) == set()


class TestUpdateAll:
    async def test_stores_what_is_fresh(self, store, leases):
        await keep(store, lambda uow: uow.apply(started(leases[4])))
        told = [replace(lease, message=f"place {lease.id}", room=SLICES) for lease in leases]
        assert await keep(store, lambda uow: uow.leases.update_all(told)) == {"l4"}
        assert (await look(store, lambda uow: uow.leases.list()))[:4] == [
            replace(lease, version=1) for lease in told[:4]
        ]
        assert (await stored(store, "l4")).message == "why"

    async def test_refuses_another_status(self, store, leases):
        other = [replace(leases[0], message="new"), replace(leases[1], status=LeaseStatus.ENDED)]
        with pytest.raises(TransitionError):
            await keep(store, lambda uow: uow.leases.update_all(other))
        assert await look(store, lambda uow: uow.leases.list()) == leases

    async def test_two_at_once_in_opposite_orders_do_not_stop_each_other(self, store, other, leases):
        async def tell(where, text, which):
            told = [replace(lease, message=text) for lease in which]
            return await keep(where, lambda uow: uow.leases.update_all(told))

        async with store.begin() as uow:
            await uow.leases.update(replace(leases[0], message="first"))
            late = asyncio.create_task(tell(other, "late", leases[::-1]))
            for _ in range(20):  # round trips in which the other one gets as far as it can
                await look(store, lambda reader: reader.leases.list())
            await uow.leases.update(replace(leases[1], message="first"))
            await uow.commit()
        assert await late == {"l0", "l1"}
        messages = [lease.message for lease in await look(store, lambda reader: reader.leases.list())]
        assert messages == ["first", "first", "late", "late", "late"]


class TestListOpen:
    async def test_is_as_the_whole_list_whatever_is_known(self, store, other, leases):
        known = {lease.id: lease for lease in await look(store, lambda uow: uow.leases.list_open({}))}
        assert list(known.values()) == leases

        async def change(uow):
            await uow.apply(started(leases[1]))
            await uow.apply(transition(leases[2], LeaseStatus.ENDED, now_ms=30, ended_ms=30))
            await uow.leases.add(make_lease("l9", created_ms=1))

        await keep(other, change)
        found = await look(store, lambda uow: uow.leases.list_open(known))
        assert ids(found) == ["l9", "l0", "l1", "l3", "l4"]
        assert list(found) == list(await look(store, lambda uow: uow.leases.list(open_only=True)))
        await keep(other, lambda uow: uow.leases.update(replace(found[2], message="again")))
        assert [
            lease.message
            for lease in await look(
                store, lambda uow: uow.leases.list_open({lease.id: lease for lease in found})
            )
        ][2] == "again"

    async def test_reads_more_than_one_statement_takes(self, store, leases):
        more = [make_lease(f"m{number}", created_ms=50 + number) for number in range(9)]
        await add(store, leases=more)
        told = [replace(lease, message="new") for lease in leases]
        await keep(store, lambda uow: uow.leases.update_all(told))
        known = {lease.id: lease for lease in (*leases, *more)}
        found = await look(store, lambda uow: uow.leases.list_open(known))
        assert list(found) == [*(replace(lease, version=1) for lease in told), *more]

    async def test_sees_its_own_changes(self, store, leases):
        async with store.begin() as uow:
            await uow.leases.update(replace(leases[3], message="new"))
            found = await uow.leases.list_open({lease.id: lease for lease in leases})
            assert [lease.message for lease in found][2:] == [leases[2].message, "new", leases[4].message]

    async def test_none(self, store):
        assert list(await look(store, lambda uow: uow.leases.list_open({}))) == []


class TestAppendAll:
    async def test_keeps_their_order(self, store, leases):
        events = [started(lease).event for lease in leases]
        await keep(store, lambda uow: uow.events.append_all(events))
        await keep(store, lambda uow: uow.events.append_all([]))
        assert await look(store, lambda uow: uow.events.list()) == events[::-1]
