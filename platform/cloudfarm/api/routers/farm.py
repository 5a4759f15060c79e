"""The farm's state, its events, and what it was used for."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cloudfarm.api import schemas
from cloudfarm.api.auth import Operator, Viewer
from cloudfarm.api.context import Context
from cloudfarm.clock import iso
from cloudfarm.usecases import events, farm, usage

router = APIRouter(tags=["Farm"])


@router.get("/healthz")
async def healthz(context: Context) -> dict[str, str]:
    """Say that the front door and its store answer; open to everybody and tells nothing else."""
    await farm.is_alive(context.store)
    return {"status": "ok"}


@router.get("/v1/farm")
async def status(caller: Viewer, context: Context) -> dict[str, Any]:
    """Return the farm's state: all of it to an operator, totals and own leases to a tenant."""
    now = await farm.farm_status(context.store, context.clock, caller)
    totals = now.totals
    answer: dict[str, Any] = {
        "hosts": totals.hosts,
        "milli_gpus": totals.milli_gpus,
        "free_milli_gpus": totals.free_milli_gpus,
        "waiting_leases": totals.waiting_leases,
        "running_leases": totals.running_leases,
        "steward_seen": iso(now.steward_seen_ms),
        "steward_silent_ms": now.steward_silent_ms,
        "leases": [schemas.LeaseOut.of(lease) for lease in now.leases],
    }
    if caller.is_operator:
        answer["troubles"] = [schemas.EventOut.of(event) for event in now.troubles]
        answer["host_list"] = [
            {
                "id": host.id,
                "reachable": host.reachable,
                "cordoned": host.cordoned,
                "seen": iso(host.seen_ms),
                "grade": host.grade,
                "cpus": host.cpus,
                "memory_bytes": host.memory_bytes,
                "gpus": [
                    {"index": gpu.index, "model": gpu.model, "memory_mib": gpu.memory_mib, "uuid": gpu.uuid}
                    for gpu in host.gpus
                ],
                "slices": [schemas.SliceOut.of(piece) for piece in now.held if piece.host == host.id],
            }
            for host in now.hosts
        ]
    return answer


@router.patch("/v1/hosts/{host}", status_code=204)
async def change_host(host: str, body: schemas.HostChange, caller: Operator, context: Context) -> None:
    """Keep new slices off a host, or let them on it again."""
    await farm.cordon_host(context.store, context.clock, caller, host, cordoned=body.cordoned)
    context.nudge.nudge()


@router.delete("/v1/hosts/{host}", status_code=204)
async def forget_host(host: str, caller: Operator, context: Context) -> None:
    """Remove a host that will not come back."""
    await farm.forget_host(context.store, context.clock, caller, host)


@router.get("/v1/events")
async def list_events(
    caller: Viewer,
    context: Context,
    tenant: str | None = None,
    subject: str | None = None,
    limit: schemas.Limit = 100,
) -> list[schemas.EventOut]:
    """Return the newest events, newest first."""
    found = await events.list_events(context.store, caller, tenant=tenant, subject=subject, limit=limit)
    return [schemas.EventOut.of(event) for event in found]


@router.get("/v1/usage")
async def usage_statement(
    caller: Viewer,
    context: Context,
    *,
    tenant: str | None = None,
    lease: str | None = None,
    first_day: Annotated[str | None, Query(alias="from")] = None,
    last_day: Annotated[str | None, Query(alias="to")] = None,
) -> dict[str, Any]:
    """Return what was charged on whole UTC days; apart from it what leases cost that run, and what calls used."""
    found = await usage.statement(
        context.store,
        context.clock,
        caller,
        tenant=tenant,
        lease_id=lease,
        first_day=first_day,
        last_day=last_day,
    )
    return {
        "unit": "milli_gpu_seconds",
        "from": None if found.first_day is None else found.first_day.isoformat(),
        "to": None if found.last_day is None else found.last_day.isoformat(),
        "total": found.total,
        "by_tenant": found.by("tenant"),
        "by_lease": found.by("lease_id"),
        "by_day": found.by("day"),
        "lines": [
            {
                "day": line.day.isoformat(),
                "tenant": line.tenant,
                "lease": line.lease_id,
                "kind": line.kind,
                "milli_gpu_seconds": line.milli_gpu_seconds,
            }
            for line in found.lines
        ],
        "running": [
            {
                "tenant": each.tenant,
                "lease": each.lease_id,
                "milli_gpus": each.milli_gpus,
                "since": iso(each.since_ms),
                "milli_gpu_seconds": each.milli_gpu_seconds,
            }
            for each in found.running
        ],
        "served": {
            "total": asdict(found.served_total),
            **{
                f"by_{name}": {value: asdict(used) for value, used in found.served_by(name).items()}
                for name in ("day", "tenant", "key", "service", "model")
            },
            "lines": [
                {
                    "day": line.day.isoformat(),
                    "tenant": line.tenant,
                    "key": line.key,
                    "model": line.model,
                    "service": line.service,
                    "project": line.project,
                    **asdict(line.used),
                }
                for line in found.served
            ],
        },
    }
