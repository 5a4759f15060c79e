"""Roles, ownership, and transactions that are tried again."""

import pytest

from cloudfarm.domain.tenant import CredentialKind, Role
from cloudfarm.errors import ForbiddenError, NotFoundError, StaleError
from cloudfarm.testing.memory_store import MemoryStore
from cloudfarm.usecases.access import Principal, in_unit, is_identifier, missing, owned, quoted


def somebody(
    role: Role, tenant: str | None = "alpha", kind: CredentialKind = CredentialKind.TOKEN
) -> Principal:
    return Principal(None if role is Role.OPERATOR else tenant, "ann", role, kind, "c1")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("needed", Role)
def test_roles_include_the_narrower_ones(role, needed):
    order = [Role.OPERATOR, Role.ADMIN, Role.MEMBER, Role.VIEWER]
    if order.index(role) <= order.index(needed):
        somebody(role).need(needed)
    else:
        with pytest.raises(ForbiddenError, match=str(needed)):
            somebody(role).need(needed)


@pytest.mark.parametrize("role", Role)
def test_a_key_has_no_role_at_all(role):
    with pytest.raises(ForbiddenError):
        somebody(role, kind=CredentialKind.KEY).need(Role.VIEWER)


def test_whose_things_are_meant():
    assert somebody(Role.OPERATOR).scope(None) is None
    assert somebody(Role.OPERATOR).scope("beta") == "beta"
    assert somebody(Role.ADMIN).scope(None) == "alpha"
    assert somebody(Role.ADMIN).scope("alpha") == "alpha"
    for who, tenant in ((Role.ADMIN, "beta"), (Role.OPERATOR, "a\0b")):
        with pytest.raises(NotFoundError):
            somebody(who).scope(tenant)


def test_a_tenant_sees_nothing_that_belongs_to_nobody():
    assert not somebody(Role.ADMIN).sees(None)
    assert somebody(Role.OPERATOR).sees(None)


async def test_a_record_of_another_tenant_is_missing_in_the_same_words():
    class Record:
        tenant = "beta"

    async def get(name: str) -> Record:
        if name == "there":
            return Record()
        raise NotFoundError(f"no row {name} in table leases")

    for name in ("there", "none", "a\0b", ""):
        with pytest.raises(NotFoundError) as caught:
            await owned(get, name, somebody(Role.ADMIN), "lease")
        assert caught.value.detail == missing("lease", name).detail
    assert await owned(get, "there", somebody(Role.ADMIN, "beta"), "lease")


@pytest.mark.parametrize("text", ["a\0b", "", "é", "a b", "a/b", "x" * 201, "a\nb"])
def test_what_never_reaches_the_database(text):
    assert not is_identifier(text)
    assert quoted(text).isascii()
    assert quoted(text).isprintable()


async def test_a_stale_record_is_read_again():
    tries = []

    async def work(_uow) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise StaleError
        return "done"

    assert await in_unit(MemoryStore(), work) == "done"
    assert len(tries) == 3


async def test_a_record_that_stays_stale_is_reported():
    async def work(_uow) -> None:
        raise StaleError

    with pytest.raises(StaleError):
        await in_unit(MemoryStore(), work)


async def test_nothing_is_kept_of_work_that_fails():
    store = MemoryStore()

    async def work(uow) -> None:
        await uow.heartbeat(5)
        raise ForbiddenError

    with pytest.raises(ForbiddenError):
        await in_unit(store, work)
    async with store.begin(write=False) as uow:
        assert await uow.last_heartbeat_ms() is None
