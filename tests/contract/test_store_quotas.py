"""What every store must do with quotas: see :class:`cloudfarm.ports.QuotaRepository`."""

import asyncio
from dataclasses import replace

import pytest

from cloudfarm.domain.quota import EVERYTHING, UNLIMITED, Amounts, Quota
from cloudfarm.errors import AlreadyExistsError, InvalidInputError
from cloudfarm.testing.factories import ids, keep, look

TREE = [
    Quota(
        "energy", None, Amounts(12_000, 96, 2**39), Amounts(16_000, UNLIMITED, 2**40), 3, 3_600_000_000_000
    ),
    Quota("kaist", "energy", weight=2),
    Quota("kaist/바람-1", "kaist", Amounts(1, 2, 3), Amounts(4, 5, 6), 1_000_000, 0),
]


async def put(store, quotas):
    await keep(store, lambda uow: uow.quotas.replace_all(quotas))


async def listed(store):
    return await look(store, lambda uow: uow.quotas.list())


async def test_come_back_as_they_were_in_the_order_of_their_ids(store, other):
    assert await listed(store) == []
    await put(store, TREE[::-1])
    assert await listed(other) == TREE


async def test_no_limit_is_no_limit_still(store, other):
    await put(store, [Quota("kaist")])
    (quota,) = await listed(other)
    assert (quota.limit, quota.committed_milli_gpu_ms) == (EVERYTHING, UNLIMITED)


async def test_the_tree_is_replaced_whole(store, other):
    await put(store, TREE)
    await put(store, [replace(TREE[1], parent=None, weight=9), Quota("arts")])
    assert await listed(other) == [Quota("arts"), Quota("kaist", weight=9)]
    await put(store, [])
    assert await listed(other) == []


async def test_what_is_refused_leaves_the_old_tree(store, other):
    await put(store, TREE)
    with pytest.raises(AlreadyExistsError, match="twice"):
        await put(store, [Quota("arts"), Quota("arts", weight=2)])
    with pytest.raises(InvalidInputError):
        await put(store, [Quota("arts", limit=Amounts(cpus=2**63))])
    with pytest.raises(RuntimeError, match="for reading"):
        await look(store, lambda uow: uow.quotas.replace_all([]))
    assert await listed(other) == TREE


async def test_nothing_is_kept_without_a_commit(store, other):
    await put(store, TREE)
    async with store.begin() as uow:
        await uow.quotas.replace_all([Quota("arts")])
        assert ids(await uow.quotas.list()) == ["arts"]
        assert await listed(other) == TREE
    assert await listed(store) == TREE


async def test_of_two_trees_at_once_one_stays_and_not_both(store, other):
    for _ in range(5):
        await put(store, [])
        await asyncio.gather(
            *(put((store, other)[n % 2], [Quota(f"a{n}"), Quota("shared", weight=n + 1)]) for n in range(4))
        )
        one, shared = await listed(store)
        assert one.id == f"a{shared.weight - 1}"
