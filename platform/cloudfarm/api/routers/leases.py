"""Leases."""

from fastapi import APIRouter

from cloudfarm.api import schemas
from cloudfarm.api.auth import Member, Viewer
from cloudfarm.api.context import Context
from cloudfarm.usecases import leases
from cloudfarm.usecases.asks import build_ask, build_not_before

router = APIRouter(prefix="/v1/leases", tags=["Leases"])


@router.post("", status_code=201)
async def request_lease(body: schemas.LeaseBody, caller: Member, context: Context) -> schemas.LeaseOut:
    """Queue a lease."""
    ask = build_ask(
        context.settings,
        gpus=body.gpus,
        cpus=body.cpus,
        memory=body.memory,
        hours=body.hours,
        gpu_model=body.gpu_model,
        distinct_gpus=body.distinct_gpus,
        priority=body.priority,
        not_before_ms=build_not_before(body.not_before, context.clock.now_ms()),
    )
    lease = await leases.request_lease(
        context.store, context.clock, context.settings, caller, ask, name=body.name, project=body.project
    )
    context.nudge.nudge()
    return schemas.LeaseOut.of(lease)


@router.get("")
async def list_leases(
    caller: Viewer,
    context: Context,
    *,
    tenant: str | None = None,
    open_only: bool = False,
    limit: schemas.Limit = 100,
) -> list[schemas.LeaseOut]:
    """Return the newest leases, oldest first."""
    found = await leases.list_leases(context.store, caller, tenant=tenant, open_only=open_only, limit=limit)
    return [schemas.LeaseOut.of(lease) for lease in found]


@router.get("/{lease_id}")
async def show(lease_id: str, caller: Viewer, context: Context) -> schemas.LeaseOut:
    """Return a lease."""
    return schemas.LeaseOut.of(await leases.get_lease(context.store, caller, lease_id))


@router.post("/{lease_id}/extend")
async def extend(
    lease_id: str, body: schemas.ExtendBody, caller: Member, context: Context
) -> schemas.LeaseOut:
    """Move the time limit further away."""
    lease = await leases.extend_lease(context.store, context.clock, caller, lease_id, hours=body.hours)
    context.nudge.nudge()
    return schemas.LeaseOut.of(lease)


@router.delete("/{lease_id}")
async def release(lease_id: str, caller: Member, context: Context) -> schemas.LeaseOut:
    """Let the lease end now."""
    lease = await leases.release_lease(context.store, context.clock, caller, lease_id)
    context.nudge.nudge()
    return schemas.LeaseOut.of(lease)
