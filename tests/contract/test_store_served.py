"""What every store must do with what callers used, and with limits: see :mod:`cloudfarm.ports`."""

import asyncio
from dataclasses import replace

import pytest

from cloudfarm.domain.ledger import DAY_MS
from cloudfarm.domain.served import MINUTE_MS, Account, DayUse, Note, Used
from cloudfarm.domain.tenant import UNLIMITED, CredentialKind, Limits, Role, Tenant
from cloudfarm.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from cloudfarm.testing.factories import add, ids, keep, look, make_credential

OWN = Account("kaist", "k1", "s1", "kaist", "chat", "바람", "chat")
SHARED = Account("snu", "k2", "s1", "kaist", "chat", "바람", "chat:mine")
OTHERS = Account("snu", "k2", "s2", "snu", "embed", "", "embed")
USED = Used(requests=1, prompt_tokens=20, completion_tokens=300, busy_ms=4000, milli_gpu_ms=50_000)
DAY = 20_000


def note(account=OWN, at_ms=DAY * DAY_MS, used=USED):
    return Note(account, at_ms, at_ms + 500, used)


async def test_a_batch_is_kept_once_and_whole(store, other):
    batch = [note(), note(SHARED)]
    done = await asyncio.gather(
        keep(store, lambda uow: uow.served.append("b1", batch)),
        keep(other, lambda uow: uow.served.append("b1", batch[:1])),
        return_exceptions=True,
    )
    assert sorted(type(result) for result in done if result is not None) == [AlreadyExistsError]
    with pytest.raises(AlreadyExistsError, match="b1 was handed over before"):
        await keep(store, lambda uow: uow.served.append("b1", [note(OTHERS)]))
    await keep(store, lambda uow: uow.served.append("b2", []))
    await keep(store, lambda uow: uow.served.append("b3", [note(OTHERS)]))
    found = await look(store, lambda uow: uow.served.days())
    assert {each.account for each in found} in ({OWN, SHARED, OTHERS}, {OWN, OTHERS})
    assert all(each.used == USED for each in found)


async def test_one_bad_note_keeps_the_whole_batch_out(store):
    for bad in (
        replace(note(), used=replace(USED, completion_tokens=-1)),
        replace(note(), end_ms=DAY * DAY_MS - 1),
        replace(note(), end_ms=DAY * DAY_MS + MINUTE_MS),
    ):
        with pytest.raises(InvalidInputError):
            await keep(store, lambda uow, bad=bad: uow.served.append("b1", [note(), bad]))
    assert await look(store, lambda uow: uow.served.days()) == []
    await keep(store, lambda uow: uow.served.append("b1", [note()]))


async def test_sums_by_day_and_account(store):
    large = Used(1, 2**40, 2**41, 2**42, 2**52)
    later = (DAY + 1) * DAY_MS
    notes = {
        "b1": [note(), note(SHARED), note(at_ms=later - MINUTE_MS)],
        "b2": [note(used=large), note(at_ms=later), note(OTHERS, later)],
    }
    for batch, each in notes.items():
        await keep(store, lambda uow, batch=batch, each=each: uow.served.append(batch, each))

    async def days(**asked):
        return await look(store, lambda uow: uow.served.days(**asked))

    own = DayUse(DAY, OWN, USED + USED + large)
    shared, next_day, others = (
        DayUse(DAY, SHARED, USED),
        DayUse(DAY + 1, OWN, USED),
        DayUse(DAY + 1, OTHERS, USED),
    )
    assert await days() == [own, shared, next_day, others]
    assert await days(tenant="kaist") == [own, shared, next_day]
    assert await days(tenant="snu") == [shared, others]
    assert await days(tenant="none") == []
    assert await days(from_ms=later) == [next_day, others]
    assert await days(until_ms=later) == [own, shared]
    assert await days(tenant="kaist", from_ms=later - MINUTE_MS, until_ms=later) == [DayUse(DAY, OWN, USED)]


async def test_tokens_of_a_time(store):
    start = DAY * DAY_MS
    for number, each in enumerate(
        [note(), note(replace_key("k9")), note(SHARED), note(at_ms=start + DAY_MS)]
    ):
        await keep(store, lambda uow, number=number, each=each: uow.served.append(f"b{number}", [each]))

    async def tokens(tenant, key_id, from_ms=0, until_ms=2**50):
        return await look(
            store,
            lambda uow: uow.served.tokens(tenant=tenant, key_id=key_id, from_ms=from_ms, until_ms=until_ms),
        )

    assert await tokens("kaist", "k1") == 640
    assert await tokens("kaist", None) == 960
    assert await tokens("kaist", "k1", until_ms=start + DAY_MS) == 320
    assert await tokens("kaist", "k1", from_ms=start + 501) == 320
    assert await tokens("kaist", "k2") == 0
    assert await tokens("snu", "k2") == 320


def replace_key(key_id):
    return replace(OWN, key_id=key_id)


class TestLimits:
    async def test_come_back_as_they_were(self, store):
        key = make_credential(
            kind=CredentialKind.KEY, requests_per_minute=1, tokens_per_minute=2**40, tokens_per_month=10**12
        )
        await add(store, credentials=[key])
        assert await look(store, lambda uow: uow.credentials.get("c1")) == key
        assert key.limits == Limits(1, 2**40, 10**12)

    async def test_are_changed_and_nothing_else(self, store):
        await add(store, credentials=[make_credential(), make_credential("c2")])
        await keep(store, lambda uow: uow.credentials.revoke("c1", 50))
        await keep(store, lambda uow: uow.credentials.limit("c1", Limits(tokens_per_month=7)))
        found = await look(store, lambda uow: uow.credentials.get("c1"))
        assert found == make_credential(revoked_ms=50, tokens_per_month=7)
        assert (await look(store, lambda uow: uow.credentials.get("c2"))).limits == UNLIMITED
        await keep(store, lambda uow: uow.credentials.limit("c1", UNLIMITED))
        assert (await look(store, lambda uow: uow.credentials.get("c1"))).limits == UNLIMITED
        with pytest.raises(NotFoundError):
            await keep(store, lambda uow: uow.credentials.limit("none", UNLIMITED))

    async def test_those_that_are_in_force_are_listed(self, store):
        await add(
            store,
            credentials=[
                make_credential("c4", tenant="snu", requests_per_minute=1),
                make_credential("c1", tokens_per_minute=1),
                make_credential("c2"),
                make_credential("c3", tokens_per_month=1),
                make_credential("c5", tokens_per_month=1, revoked_ms=3),
            ],
        )
        assert ids(await look(store, lambda uow: uow.credentials.list_limited())) == ["c1", "c3", "c4"]


async def test_credentials_that_are_no_longer_good_are_found(store):
    await add(
        store,
        tenants=[Tenant("gone", "", 1, closed_ms=2)],
        credentials=[
            make_credential("good", expires_ms=51),
            make_credential("revoked", revoked_ms=3),
            make_credential("expired", expires_ms=50),
            make_credential("closed", tenant="gone"),
            make_credential("operator", tenant=None, role=Role.OPERATOR),
            make_credential("another", revoked_ms=3),
        ],
    )
    asked = {"good", "revoked", "expired", "closed", "operator", "unknown"}
    dead = await look(store, lambda uow: uow.credentials.find_dead(asked, 50))
    assert dead == {"revoked", "expired", "closed"}
    assert await look(store, lambda uow: uow.credentials.find_dead([], 50)) == set()
    many = [f"c{number}" for number in range(2500)] + ["revoked"]
    assert await look(store, lambda uow: uow.credentials.find_dead(many, 50)) == {"revoked"}
