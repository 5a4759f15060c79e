"""Quotas: who is promised how much, and what each holds."""

from fastapi import APIRouter

from cloudfarm.api import quota_schemas as schemas
from cloudfarm.api.auth import Operator, Viewer
from cloudfarm.api.context import Context
from cloudfarm.usecases import quotas

router = APIRouter(prefix="/v1/quotas", tags=["Quotas"])


@router.get("")
async def show(caller: Viewer, context: Context) -> schemas.QuotasOut:
    """Return the quotas and what each holds: all to an operator, to a tenant its own and those above."""
    found = await quotas.show_quotas(context.store, context.clock, context.settings, caller)
    return schemas.QuotasOut.of(found)


@router.put("")
async def replace(body: list[schemas.QuotaBody], caller: Operator, context: Context) -> schemas.QuotasOut:
    """Put another tree in the place of the one there is."""
    tree = [each.quota() for each in body]
    found = await quotas.replace_quotas(context.store, context.clock, context.settings, caller, tree)
    context.nudge.nudge()
    return schemas.QuotasOut.of(found)
