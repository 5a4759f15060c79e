"""The meter: who is let in, and what is noted of it. Under all kinds of faults: ``test_metering_machine.py``."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from cloudfarm.domain.served import MINUTE_MS, Account, Note, Used
from cloudfarm.domain.status import LeaseStatus, transition
from cloudfarm.domain.tenant import CredentialKind, Limits, Tenant
from cloudfarm.errors import TooManyError, UnauthenticatedError, UnavailableError
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.factories import (
    add,
    keep,
    look,
    make_credential,
    make_lease,
    make_revision,
    make_service,
    register,
)
from cloudfarm.testing.memory_journal import MemoryJournal
from cloudfarm.testing.memory_store import MemoryStore
from cloudfarm.usecases.limits import month_of
from cloudfarm.usecases.metering import Meter
from cloudfarm.usecases.routes import Route
from cloudfarm.usecases.use import MOST_AT_ONCE

CHAT = make_service("s1", name="chat", tenant="kaist", project="wind")


def route(key_id="k1", service=CHAT, milli_gpus=1000):
    """Return a way to a service of two replicas of half a GPU."""
    return Route(
        tenant="snu",
        key_id=key_id,
        service=service,
        app_name="kaist.chat.1",
        model="chat:mine",
        kind="causal-lm",
        milli_gpus=milli_gpus,
    )


def begin(meter, to):
    return meter.begin(to, meter.admit(to))


ACCOUNT = Account("snu", "k1", "s1", "kaist", "chat", "wind", "chat:mine")


@pytest.fixture
async def store():
    made = MemoryStore()
    await add(
        made,
        tenants=[Tenant("kaist", "", 1), Tenant("snu", "", 1)],
        credentials=[make_credential("k1", "snu", kind=CredentialKind.KEY)],
    )
    return made


@pytest.fixture
async def meter(store):
    made = Meter(store, ManualClock(), MemoryJournal())
    await made.step()
    return made


async def served(meter):
    return [(each.account, each.used) for each in await look(meter.store, lambda uow: uow.served.days())]


def noted(meter):
    return [note for notes in meter.journal.folder.batches.values() for note in notes]


async def test_a_request_is_counted_at_its_end_and_handed_over_at_the_next_step(meter):
    use = begin(meter, route())
    use.count(prompt_tokens=12)
    use.count(completion_tokens=3)
    use.count(completion_tokens=4)
    assert noted(meter) == []
    meter.clock.advance(250)
    use.end()
    use.end()
    used = Used(1, 12, 7, 250, 250 * 1000)
    assert [note.used for note in noted(meter)] == [used]
    assert await served(meter) == []
    await meter.step()
    assert await served(meter) == [(ACCOUNT, used)]
    assert noted(meter) == []
    with pytest.raises(ValueError, match="has ended"):
        use.count(completion_tokens=1)


async def test_a_stream_is_noted_while_it_runs_and_is_one_request(meter):
    use = begin(meter, route())
    for _ in range(3):
        use.count(completion_tokens=5)
        meter.clock.advance(1000)
        await meter.step()
    assert await served(meter) == [(ACCOUNT, Used(1, 0, 15, 3000, 3_000_000))]
    meter.clock.advance(10)
    use.end()
    await meter.step()
    assert await served(meter) == [(ACCOUNT, Used(1, 0, 15, 3010, 3_010_000))]


async def test_requests_at_once_share_the_services_gpus(meter):
    long = begin(meter, route())
    meter.clock.advance(1000)
    short = begin(meter, route(key_id="k2"))
    meter.clock.advance(500)
    await meter.step()
    meter.clock.advance(500)
    short.end()
    meter.clock.advance(1000)
    long.end()
    await meter.step()
    got = {account.key_id: used for account, used in await served(meter)}
    assert (got["k1"].busy_ms, got["k1"].milli_gpu_ms) == (3000, 2_500_000)
    assert (got["k2"].busy_ms, got["k2"].milli_gpu_ms) == (1000, 500_000)


async def test_services_do_not_share(meter):
    other = make_service("s2", name="other", tenant="kaist")
    uses = [begin(meter, route()), begin(meter, route(service=other, milli_gpus=500))]
    meter.clock.advance(1000)
    for use in uses:
        use.end()
    await meter.step()
    got = {account.service: used.milli_gpu_ms for account, used in await served(meter)}
    assert got == {"chat": 1_000_000, "other": 500_000}


async def test_more_replicas_count_from_the_next_request_on(meter):
    first = begin(meter, route())
    meter.clock.advance(1000)
    second = begin(meter, route(milli_gpus=2000))
    second.end()
    meter.clock.advance(1000)
    first.end()
    await meter.step()
    assert sum(used.milli_gpu_ms for _, used in await served(meter)) == 1_000_000 + 2_000_000


async def test_who_is_refused_again_while_the_answer_is_being_ended_has_it_ended_once(meter):
    use, closing = begin(meter, route()), asyncio.Event()

    async def slow_to_end():
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            await closing.wait()
            use.count(completion_tokens=3)

    waiting = asyncio.create_task(use.next_of(slow_to_end()))
    await asyncio.sleep(0)
    for _ in range(3):
        use.refuse(UnauthenticatedError("revoked"))
        for _ in range(3):
            await asyncio.sleep(0)
    closing.set()
    with pytest.raises(UnauthenticatedError):
        await waiting
    assert use.completion_tokens == 3


@pytest.mark.parametrize("first_ends", [False, True])
@pytest.mark.parametrize("moment", ["before the reads", "after the reads"])
async def test_what_begins_while_the_others_are_looked_after_goes_on(meter, monkeypatch, moment, first_ends):
    model = await register(meter.store)
    await add(meter.store, services=[CHAT], revisions=[make_revision(model_id=model.id, number=7)])
    first, later = begin(meter, route()), []  # nothing of its application is there any more

    def come_and_go():
        if first_ends:
            first.end()
        other = make_service("s2", name="other", tenant="kaist")
        later.extend(begin(meter, each) for each in (route(), route(service=other)))

    @asynccontextmanager
    async def begin_slowly(*, write=True):
        async with MemoryStore.begin(meter.store, write=write) as uow:
            if not write and not later and moment == "before the reads":
                come_and_go()
            yield uow
        if not write and not later:
            come_and_go()

    monkeypatch.setattr(meter.store, "begin", begin_slowly)
    await meter.step()
    assert len(later) == 2

    async def answers():
        yield "this"

    assert [await use.next_of(answers()) for use in later] == ["this", "this"]
    with pytest.raises(UnavailableError, match="has lost its replicas"):
        await first.next_of(answers())


async def test_what_a_service_loses_counts_for_those_under_way_too(meter):
    model = await register(meter.store)
    leases = [
        make_lease(f"l{number}", status=LeaseStatus.ACTIVE, started_ms=1, revision_id="r1")
        for number in range(4)
    ]
    await add(meter.store, services=[CHAT], revisions=[make_revision(model_id=model.id)], leases=leases)
    use = begin(meter, route(milli_gpus=4000))
    await meter.step()
    for lease in leases[1:]:
        found = await look(meter.store, lambda uow, lease=lease: uow.leases.get(lease.id))
        for status in (LeaseStatus.ENDING, LeaseStatus.ENDED):
            changed = transition(found, status, now_ms=2)
            await keep(meter.store, lambda uow, changed=changed: uow.apply(changed))
            found = await look(meter.store, lambda uow, lease=lease: uow.leases.get(lease.id))
    for _ in range(60):
        meter.clock.advance(1000)
        await meter.step()
    use.end()
    await meter.step()
    ((_, used),) = await served(meter)
    assert used.milli_gpu_ms == 4_000_000 + 59 * 1_000_000


async def test_a_number_that_no_answer_has_is_refused(meter):
    use = begin(meter, route())
    for wrong in ({"prompt_tokens": -1}, {"completion_tokens": MOST_AT_ONCE + 1}):
        with pytest.raises(ValueError, match="cannot be counted"):
            use.count(**wrong)
    use.end()
    await meter.step()
    assert await served(meter) == [(ACCOUNT, Used(requests=1))]


async def test_nobody_is_let_in_before_the_limits_are_known(store):
    made = Meter(store, ManualClock(), MemoryJournal())
    with pytest.raises(UnavailableError):
        begin(made, route())
    await made.step()
    begin(made, route())


async def test_a_limit_holds_from_the_refresh_on(meter):
    for _ in range(5):
        begin(meter, route()).end()
    await keep(meter.store, lambda uow: uow.credentials.limit("k1", Limits(requests_per_minute=2)))
    await meter.refresh()
    for _ in range(2):
        begin(meter, route()).end()
    with pytest.raises(TooManyError) as refused:
        begin(meter, route())
    assert refused.value.data["limit"] == "requests_per_minute"
    begin(meter, route(key_id="k2")).end()


async def test_a_restart_forgets_nothing_of_the_month(meter):
    await keep(meter.store, lambda uow: uow.credentials.limit("k1", Limits(tokens_per_month=100)))
    await meter.refresh()
    for tokens in (60, 30):  # in the ledger, and in the journal only
        use = begin(meter, route())
        use.count(completion_tokens=tokens)
        use.end()
        if tokens == 60:
            await meter.step()
    meter.journal.close()
    after = Meter(meter.store, meter.clock, MemoryJournal(meter.journal.folder))
    await after.step()
    use = begin(after, route())
    use.count(completion_tokens=10)
    with pytest.raises(TooManyError) as refused:
        begin(after, route())
    assert refused.value.data["used"] == 100


async def restarted(meter) -> Meter:
    meter.journal.close()
    after = Meter(meter.store, meter.clock, MemoryJournal(meter.journal.folder))
    await after.step()
    return after


@pytest.mark.parametrize("limits", [Limits(requests_per_minute=3), Limits(tokens_per_minute=90)])
async def test_a_restart_gives_nobody_another_minutes_worth(meter, limits):
    await keep(meter.store, lambda uow: uow.credentials.limit("k1", limits))
    await meter.refresh()
    meter.clock.advance(5 * MINUTE_MS)
    for handed_over in (True, True, False):
        use = begin(meter, route())
        use.count(prompt_tokens=20, completion_tokens=10)
        use.end()
        if handed_over:
            await meter.step()
    after = await restarted(meter)
    with pytest.raises(TooManyError) as refused:
        begin(after, route())
    assert refused.value.data["used"] == refused.value.data["limit_value"]
    begin(after, route(key_id="k2")).end()
    await after.step()  # taken off once, and not at every step
    after.clock.advance(MINUTE_MS // 3)
    begin(after, route()).end()
    after.clock.advance(MINUTE_MS)
    again = await restarted(after)  # what is longer ago is made good
    for _ in range(3):
        begin(again, route()).end()


async def test_a_new_limit_counts_what_was_used_before_it_and_is_not_handed_over(meter):
    for _ in range(2):
        use = begin(meter, route())
        use.count(prompt_tokens=40)
        await meter.step()
    use.count(completion_tokens=20)
    await keep(
        meter.store,
        lambda uow: uow.tenants.update(Tenant("snu", "", 1, limit_tokens_per_month=100)),
    )
    await meter.refresh()
    with pytest.raises(TooManyError) as refused:
        begin(meter, route(key_id="k7"))
    assert (refused.value.data["limit"], refused.value.data["used"]) == ("limit_tokens_per_month", 100)


async def test_a_new_limit_counts_what_was_handed_over_once(meter):
    use = begin(meter, route())
    use.count(prompt_tokens=40)
    await meter.step()
    await keep(meter.store, lambda uow: uow.credentials.limit("k1", Limits(tokens_per_month=41)))
    await meter.refresh()
    begin(meter, route()).count(completion_tokens=1)
    with pytest.raises(TooManyError) as refused:
        begin(meter, route())
    assert refused.value.data["used"] == 41


async def test_another_month_begins_at_nothing(meter):
    await keep(meter.store, lambda uow: uow.credentials.limit("k1", Limits(tokens_per_month=100)))
    await meter.refresh()
    use = begin(meter, route())
    use.count(completion_tokens=100)
    use.end()
    with pytest.raises(TooManyError):
        begin(meter, route())
    meter.clock.at_ms = month_of(meter.clock.now_ms())[1]
    await meter.refresh()
    begin(meter, route())


async def test_what_runs_over_midnight_is_of_both_days(meter):
    midnight = (meter.clock.now_ms() // 86_400_000 + 1) * 86_400_000
    meter.clock.at_ms = midnight - 1000
    use = begin(meter, route())
    use.count(completion_tokens=5)
    meter.clock.at_ms = midnight - 1
    await meter.step()
    use.count(completion_tokens=7)
    meter.clock.at_ms = midnight + 2 * MINUTE_MS
    use.end()
    await meter.step()
    found = await look(meter.store, lambda uow: uow.served.days())
    assert [(each.day, each.used.completion_tokens) for each in found] == [
        (midnight // 86_400_000 - 1, 5),
        (midnight // 86_400_000, 7),
    ]


async def left_behind(meter) -> str:
    """Leave a batch of a front door that was killed, and return its name."""
    other = MemoryJournal(meter.journal.folder)
    other.append([Note(ACCOUNT, 0, 0, Used(requests=1, completion_tokens=70))])
    other.close()
    return f"{other.id}-1"


async def test_a_batch_that_cannot_be_read_stops_nothing_else(store):
    made = Meter(store, ManualClock(0), MemoryJournal())
    await keep(store, lambda uow: uow.credentials.limit("k1", Limits(tokens_per_month=100)))
    batch = await left_behind(made)
    made.journal.unreadable.add(batch)
    with pytest.raises(UnavailableError, match="cannot be read"):
        await made.step()
    for _ in range(2):
        use = begin(made, route())
        use.count(completion_tokens=10)
        use.end()
        with pytest.raises(UnavailableError, match="cannot be read"):
            await made.step()
    assert [used.completion_tokens for _, used in await served(made)] == [20]
    made.journal.unreadable.clear()
    await made.step()
    begin(made, route()).count(completion_tokens=10)
    with pytest.raises(TooManyError) as refused:
        begin(made, route())
    assert refused.value.data["used"] == 100


async def test_own_batches_that_cannot_be_read_do_not_freeze_the_ledger_nor_become_many(meter):
    for number in range(20):
        begin(meter, route()).end()
        meter.journal.close_batch()
        if number < 10:
            meter.journal.unreadable |= set(meter.journal.waiting())
    for _ in range(3):
        begin(meter, route()).end()
        with pytest.raises(UnavailableError, match="cannot be read"):
            await meter.step()
    assert [used.requests for _, used in await served(meter)] == [10]
    assert len(meter.journal.waiting()) == 10
    meter.journal.unreadable.clear()
    for _ in range(2):
        await meter.step()
    assert [used.requests for _, used in await served(meter)] == [23]


async def test_a_batch_that_cannot_be_dropped_is_counted_once(meter):
    await keep(meter.store, lambda uow: uow.credentials.limit("k1", Limits(tokens_per_month=100)))
    use = begin(meter, route())
    use.count(completion_tokens=60)
    use.end()
    meter.journal.close_batch()
    meter.journal.undroppable |= set(meter.journal.waiting())
    for _ in range(2):
        with pytest.raises(UnavailableError, match="cannot be dropped"):
            await meter.step()
    await meter.refresh()
    meter.journal.undroppable.clear()
    await meter.step()
    assert meter.journal.waiting() == []
    begin(meter, route()).count(completion_tokens=39)
    begin(meter, route()).count(completion_tokens=1)
    with pytest.raises(TooManyError) as refused:
        begin(meter, route())
    assert refused.value.data["used"] == 100


async def test_the_loop_hands_over_at_its_end_and_lets_go_of_the_journal(store):
    made = Meter(store, ManualClock(), MemoryJournal(), every_s=60)
    async with made.running():
        use = begin(made, route())
        use.count(completion_tokens=5)
    assert await served(made) == [(ACCOUNT, Used(1, 0, 5))]
    assert made.journal.folder.held == set()


async def test_the_loop_goes_on_when_the_store_does_not_answer(store, monkeypatch, caplog):
    made = Meter(store, ManualClock(), MemoryJournal(), every_s=0.0)
    down = True
    store_begin = store.begin

    def refusing(*, write=True):
        if down:
            raise UnavailableError
        return store_begin(write=write)

    monkeypatch.setattr(store, "begin", refusing)
    async with made.running():
        for _ in range(20):
            await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            begin(made, route())
        down = False
        await asyncio.sleep(0)
        await made.refresh()
        begin(made, route()).end()
    assert [used.requests for _, used in await served(made)] == [1]
    assert len([record for record in caplog.records if "handed over later" in record.message]) == 1


async def test_the_loop_goes_on_after_a_mistake_of_ours(store, monkeypatch, caplog):
    made = Meter(store, ManualClock(), MemoryJournal(), every_s=0.0)
    steps = 0

    async def failing():
        nonlocal steps
        steps += 1
        raise ZeroDivisionError

    async with made.running():
        with monkeypatch.context() as broken:
            broken.setattr(Meter, "_hand_over", lambda _: failing())
            for _ in range(20):
                await asyncio.sleep(0)
        begin(made, route()).end()
    assert steps > 1
    assert [used.requests for _, used in await served(made)] == [1]
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert said.exc_info[0] is ZeroDivisionError
