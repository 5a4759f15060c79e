"""The quotas in force: what was set, and each tenant's own limit or the farm's default; what a farm's steward sees."""

from dataclasses import replace

import pytest

from cloudfarm.domain.quota import EVERYTHING, Amounts, Quota, QuotaTree, tree_in_force
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import InvalidInputError
from cloudfarm.testing.farm import MemoryFarm

DEFAULT = 4000


def tenant(slug: str, limit: int | None = None) -> Tenant:
    return Tenant(slug, slug, 1, limit_milli_gpus=limit)


def at_most(milli_gpus: int) -> Amounts:
    return replace(EVERYTHING, milli_gpus=milli_gpus)


@pytest.mark.parametrize(("own", "most"), [(None, 4000), (500, 500), (9000, 9000), (0, 0)])
def test_a_tenant_without_a_quota_stands_at_the_top_with_its_own_limit_or_the_default(own, most):
    tree = tree_in_force([], [tenant("kaist", own)], DEFAULT)
    assert tree.path("kaist/wind") == (
        Quota("kaist", None, limit=at_most(most)),
        Quota("kaist/wind", "kaist"),
    )


@pytest.mark.parametrize(
    ("own", "set_", "most"),
    [(None, 9000, 9000), (500, 9000, 500), (9000, 500, 500), (None, None, None), (500, None, 500)],
)
def test_a_tenant_with_a_quota_may_hold_the_smaller_of_both(own, set_, most):
    energy = Quota("energy", guarantee=Amounts(8000))
    limit = Amounts(EVERYTHING.milli_gpus if set_ is None else set_, 64, 2**40)
    quota = Quota("kaist", "energy", Amounts(300, 4), limit, weight=7, committed_milli_gpu_ms=5)
    tree = tree_in_force([energy, quota], [tenant("kaist", own)], DEFAULT)
    expected = EVERYTHING.milli_gpus if most is None else most
    assert tree.path("kaist") == (energy, replace(quota, limit=replace(limit, milli_gpus=expected)))


def test_what_is_set_for_programmes_projects_and_tenants_to_come_stays():
    stored = [Quota("energy"), Quota("kaist", "energy"), Quota("kaist/wind", "kaist", weight=2), Quota("new")]
    tree = tree_in_force(stored, [tenant("kaist"), tenant("snu")], DEFAULT)
    assert dict(tree.quotas) == {
        **{quota.id: quota for quota in stored},
        "snu": Quota("snu", limit=at_most(4000)),
    }


def test_whoever_is_not_known_may_hold_the_default():
    assert tree_in_force([], [], DEFAULT).get("nobody").limit == at_most(4000)


def test_an_own_limit_below_the_guarantee_stops_no_steward():
    stored = [Quota("kaist", guarantee=Amounts(8000), limit=Amounts(8000))]
    (quota,) = tree_in_force(stored, [tenant("kaist", 100)], DEFAULT).quotas.values()
    assert (quota.guarantee.milli_gpus, quota.limit.milli_gpus) == (8000, 100)


def test_nothing_stands_below_a_project():
    tree = [Quota("kaist"), Quota("kaist/wind", "kaist"), Quota("snu", "kaist/wind")]
    with pytest.raises(
        InvalidInputError, match="quota snu: nothing stands below a project, such as kaist/wind"
    ):
        QuotaTree.of(tree)


async def test_the_steward_sees_the_quotas_in_force():
    farm = MemoryFarm(limit_milli_gpus=3000)
    await farm.begin()
    epoch = farm.store.state.epoch
    alone = (await farm.steward.observer.look(epoch)).quotas
    assert {quota.id: quota.limit for quota in alone.quotas.values()} == {
        "a": at_most(3000),
        "b": at_most(3000),
    }
    async with farm.store.begin() as uow:
        await uow.quotas.replace_all([Quota("energy", weight=5), Quota("a", "energy")])
        await uow.tenants.update(replace(await uow.tenants.get("a"), limit_milli_gpus=700))
        await uow.commit()
    tree = (await farm.steward.observer.look(epoch)).quotas
    assert tree.path("a") == (Quota("energy", weight=5), Quota("a", "energy", limit=at_most(700)))
    assert tree.get("b").limit == at_most(3000)
