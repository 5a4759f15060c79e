"""The models that a tenant's jobs have published."""

import re
from collections.abc import Sequence

from cloudfarm.domain.bundles import MODEL_NAME
from cloudfarm.domain.tenant import Role
from cloudfarm.domain.workload import ModelVersion
from cloudfarm.errors import NotFoundError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.usecases.access import Principal, missing

_REF = re.compile(rf"({MODEL_NAME})(?::([1-9][0-9]{{0,8}}))?")


async def list_models(store: Store, principal: Principal) -> Sequence[ModelVersion]:
    """Return the tenant's model versions by name and number."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return await uow.models.list(principal.home)


async def get_model(store: Store, principal: Principal, ref: str) -> ModelVersion:
    """Return the version that ``name:number`` means, or the newest of ``name``."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return await find_model(uow, principal, ref)


async def find_model(uow: UnitOfWork, principal: Principal, ref: str) -> ModelVersion:
    """Return a model version of the principal's tenant, else raise what a missing one raises."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise missing("model", ref)
    try:
        return await uow.models.find(principal.home, match[1], int(match[2]) if match[2] else None)
    except NotFoundError:
        raise missing("model", ref) from None
