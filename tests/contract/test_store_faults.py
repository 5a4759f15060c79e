"""What the world may do to a database: the store answers in the farm's words and leaves nothing half-made."""

import asyncio
import os
import signal
import sys

import pytest
from sqlalchemy import text

from cloudfarm.domain.status import LeaseStatus, transition
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    StaleError,
    StorageFullError,
    UnavailableError,
)
from cloudfarm.store import SqlStore, connections
from cloudfarm.testing.factories import add, ids, keep, look, make_lease

CHILD = """
import asyncio, sys
from dataclasses import replace
from cloudfarm.domain.status import LeaseStatus, Target, transition
from cloudfarm.domain.tenant import Tenant
from cloudfarm.store import SqlStore
from cloudfarm.testing.factories import keep, make_entry, make_lease

async def live(uow, lease_id):
    lease = make_lease(lease_id)
    await uow.leases.add(lease)
    for status in (LeaseStatus.STARTING, LeaseStatus.ACTIVE, LeaseStatus.ENDING, LeaseStatus.ENDED):
        await uow.apply(transition(lease, status, now_ms=1))
        lease = await uow.leases.get(lease_id)
    await uow.ledger.append(make_entry(lease_id))

async def stop_inside(store):
    async with store.begin() as uow:
        await uow.take_epoch()
        await live(uow, "half")
        print("inside", flush=True)
        sys.stdin.read()

async def go_on(store):
    for number in range(1_000_000):
        await keep(store, lambda uow: live(uow, f"l{number}"))
        print(f"l{number}", flush=True)

async def main():
    store = await SqlStore.open(sys.argv[1])
    await {"inside": stop_inside, "on": go_on}[sys.argv[2]](store)

asyncio.run(main())
"""


@pytest.fixture
async def sql(url):
    opened = await SqlStore.open(url)
    await add(opened, tenants=[Tenant("kaist", "", 1)])
    yield opened
    await opened.close()


async def start_child(url, what):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", CHILD, url, what),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


async def check_nothing_is_half_made(store):
    async with store.begin(write=False) as uow:
        leases, events, entries = (
            await uow.leases.list(),
            await uow.events.list(limit=10**6),
            await uow.ledger.list(),
        )
    assert {lease.status for lease in leases} <= {LeaseStatus.ENDED}
    assert {lease.version for lease in leases} <= {4}
    assert len(events) == 4 * len(leases)
    assert {entry.lease_id for entry in entries} == set(ids(leases))


class TestCrash:
    async def test_killed_inside_a_transaction(self, url, sql):
        child = await start_child(url, "inside")
        assert await child.stdout.readline() == b"inside\n"
        child.send_signal(signal.SIGKILL)
        await child.wait()
        assert await keep(sql, lambda uow: uow.take_epoch()) == 1
        assert await look(sql, lambda uow: uow.leases.list()) == []
        await check_nothing_is_half_made(sql)

    @pytest.mark.parametrize("after", [1, 9, 40])
    async def test_killed_at_any_moment(self, url, sql, after):
        child = await start_child(url, "on")
        told = [(await child.stdout.readline()).decode().strip() for _ in range(after)]
        child.send_signal(signal.SIGKILL)
        told += (await child.stdout.read()).decode().split()
        await child.wait()
        await keep(
            sql, lambda uow: uow.take_epoch()
        )  # waits for the dead one's transaction to be rolled back
        await check_nothing_is_half_made(sql)
        found = ids(await look(sql, lambda uow: uow.leases.list()))
        assert set(told) <= set(found)
        assert len(found) <= len(told) + 1


class TestCancelled:
    @pytest.mark.parametrize("write", [True, False])
    async def test_at_any_moment_and_nothing_is_left_held(self, sql, write):
        await add(sql, leases=[make_lease()])

        async def work():
            async with sql.begin(write=write) as uow:
                lease = await uow.leases.get("l1")
                if write:
                    await uow.leases.update(lease)
                    await uow.commit()

        for turns in range(0, 400, 16):
            task = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
        # More at once than there are connections: were one lost, these would wait for it.
        await asyncio.gather(*(add(sql, leases=[make_lease(f"n{number}")]) for number in range(20)))
        found = await asyncio.gather(*(look(sql, lambda uow: uow.leases.list()) for _ in range(20)))
        assert {len(leases) for leases in found} == {21}

    async def test_a_cursor_that_somebody_still_refers_to_keeps_no_lock(self, sqlite_url):
        sql, other = [await SqlStore.open(sqlite_url) for _ in range(2)]
        await add(sql, tenants=[Tenant("kaist", "", 1)], leases=[make_lease()])
        async with sql.begin() as uow:
            raw = await uow._connection.get_raw_connection()
            cursor = await raw.driver_connection.execute("SELECT id FROM leases")
            await uow._connection.invalidate()  # as a statement's cancellation does
        assert await keep(other, lambda later: later.take_epoch()) == 1
        assert cursor is not None
        await sql.close()
        await other.close()


class TestLocks:
    @pytest.fixture(autouse=True)
    def _no_patience(self, monkeypatch):
        monkeypatch.setattr(connections, "WAIT_S", 0.05)

    async def test_a_lock_that_is_not_given_up(self, url, sql):
        other = await SqlStore.open(url)
        async with sql.begin() as uow:
            await uow.take_epoch()
            with pytest.raises(UnavailableError):
                await keep(other, lambda late: late.take_epoch())
            assert await look(other, lambda reader: reader.last_heartbeat_ms()) is None
            await uow.commit()
        assert await keep(other, lambda later: later.take_epoch()) == 2
        await other.close()


class TestPatience:
    async def test_a_frozen_steward_does_not_keep_the_epoch_forever(self, postgresql_url):
        frozen, successor = [await SqlStore.open(postgresql_url) for _ in range(2)]
        await add(successor, tenants=[Tenant("kaist", "", 1)], leases=[make_lease()])
        async with frozen.begin() as uow:
            setting = "idle_in_transaction_session_timeout"
            default = await uow._connection.execute(text(f"SHOW {setting}"))
            assert default.scalar_one() == f"{connections.IDLE_S}s"
            await uow._connection.execute(text(f"SET {setting} = '200ms'"))
            await uow.check_epoch(0)
            assert await keep(successor, lambda new: new.take_epoch()) == 1
            with pytest.raises(UnavailableError):
                await uow.apply(transition(make_lease(), LeaseStatus.STARTING, now_ms=1))
        assert (await look(successor, lambda reader: reader.leases.get("l1"))).status is LeaseStatus.WAITING
        await frozen.close()
        await successor.close()

    async def test_opposite_orders_never_stop_both(self, url, sql):
        await add(sql, leases=[make_lease("l1"), make_lease("l2")])
        other = await SqlStore.open(url)
        met = asyncio.Barrier(2)

        async def both(store, first, second):
            async with store.begin() as uow:
                await uow.leases.update(make_lease(first, message=f"{first} first"))
                if url.startswith("postgresql"):  # SQLite lets in one at a time
                    await met.wait()
                await uow.leases.update(make_lease(second, message=f"{first} first"))
                await uow.commit()

        done = await asyncio.gather(both(sql, "l1", "l2"), both(other, "l2", "l1"), return_exceptions=True)
        (lost,) = [error for error in done if error is not None]
        assert isinstance(lost, StaleError | UnavailableError)
        messages = {lease.message for lease in await look(sql, lambda uow: uow.leases.list())}
        assert messages == {"l1 first" if done[0] is None else "l2 first"}
        await other.close()


class TestUnreachable:
    @pytest.mark.parametrize(
        "url",
        [
            "sqlite:////nowhere/at/all/farm.db",
            "postgresql://cloudfarm@/farm?host=/nowhere",
            "postgresql://cloudfarm@127.0.0.1:1/farm",
        ],
    )
    async def test_nobody_there(self, url):
        with pytest.raises(UnavailableError):
            await SqlStore.open(url)

    async def test_no_such_database(self, postgres):
        with pytest.raises(UnavailableError):
            await SqlStore.open(postgres.url("none"))

    async def test_a_connection_that_the_server_ends(self, postgresql_url):
        store = await SqlStore.open(postgresql_url)
        other, unused = connections.make_engines(postgresql_url)
        await asyncio.gather(*(look(store, lambda uow: uow.hosts()) for _ in range(3)))  # several in the pool
        async with store.begin() as uow:
            await uow.tenants.add(Tenant("kaist", "", 1))
            async with other.connect() as connection:
                others = "pid <> pg_backend_pid() AND datname = current_database()"
                kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"  # noqa: S608
                await connection.execute(text(kill))
            with pytest.raises(UnavailableError):
                await uow.commit()
        await keep(store, lambda again: again.tenants.add(Tenant("kaist", "", 1)))
        for each in (other, unused, store):
            await (each.close() if each is store else each.dispose())


class TestRefusals:
    async def test_a_full_disk(self, sqlite_url):
        store = await SqlStore.open(sqlite_url)
        await add(store, tenants=[Tenant("kaist", "", 1)])

        async def allow(pages):
            async with store._writers.connect() as connection:
                await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        await allow(1)  # SQLite takes what the file has now for the least
        with pytest.raises(StorageFullError):
            await add(store, leases=[make_lease(f"l{number}", message="x" * 10_000) for number in range(9)])
        assert await look(store, lambda uow: uow.leases.list()) == []
        await allow(10**6)
        await add(store, leases=[make_lease()])
        await store.close()

    @pytest.mark.parametrize(
        ("sqlstate", "kind"),
        [
            ("53100", StorageFullError),
            ("53200", UnavailableError),
            ("57P03", UnavailableError),
            ("55P03", UnavailableError),
            ("40P01", StaleError),
            ("40001", StaleError),
            ("23505", AlreadyExistsError),
            ("23503", NotFoundError),
            ("23514", InvalidInputError),
            ("22003", InvalidInputError),
        ],
    )
    async def test_what_postgresql_says(self, postgresql_url, sqlstate, kind):
        store = await SqlStore.open(postgresql_url)
        await add(store, tenants=[Tenant("kaist", "", 1)])
        raising = f"""
            CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{sqlstate}'; END $$
        """
        async with store.begin() as uow:
            connection = uow._connection
            await connection.execute(text(raising))
            trigger = (
                "CREATE TRIGGER t BEFORE INSERT ON leases FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse()"
            )
            await connection.execute(text(trigger))
            with pytest.raises(kind) as caught:
                await uow.leases.add(make_lease())
        assert type(caught.value) is kind
        assert await look(store, lambda reader: reader.leases.list()) == []
        await store.close()
