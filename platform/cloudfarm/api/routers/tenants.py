"""Tenants, tokens, keys, and who one is."""

from typing import Any

from fastapi import APIRouter, Response

from cloudfarm.api import schemas
from cloudfarm.api.auth import Admin, Operator, Viewer
from cloudfarm.api.context import Context
from cloudfarm.domain.tenant import CredentialKind, Limits
from cloudfarm.usecases import credentials, tenants

router = APIRouter(prefix="/v1", tags=["Tenants"])


@router.get("/whoami")
async def whoami(caller: Viewer) -> dict[str, Any]:
    """Return who the token speaks for."""
    return {"tenant": caller.tenant, "user": caller.user, "role": caller.role, "token": caller.credential_id}


@router.post("/tenants", status_code=201)
async def create_tenant(body: schemas.TenantBody, caller: Operator, context: Context) -> schemas.TenantOut:
    """Make a tenant."""
    made = await tenants.create_tenant(
        context.store,
        context.clock,
        caller,
        slug=body.id,
        title=body.title,
        limit_gpus=body.limit_gpus,
    )
    return schemas.TenantOut.of(made)


@router.get("/tenants")
async def list_tenants(caller: Viewer, context: Context) -> list[schemas.TenantOut]:
    """Return all tenants to an operator, and to others their own."""
    return [schemas.TenantOut.of(tenant) for tenant in await tenants.list_tenants(context.store, caller)]


@router.get("/tenants/{tenant}")
async def show_tenant(tenant: str, caller: Viewer, context: Context) -> schemas.TenantOut:
    """Return a tenant."""
    return schemas.TenantOut.of(await tenants.get_tenant(context.store, caller, tenant))


@router.patch("/tenants/{tenant}")
async def change_tenant(
    tenant: str,
    body: schemas.TenantChange,
    caller: Operator,
    context: Context,
) -> schemas.TenantOut:
    """Change a tenant's title or limit, close it or open it."""
    changed = await tenants.update_tenant(
        context.store,
        context.clock,
        caller,
        tenant,
        title=body.title,
        limit_gpus=body.limit_gpus,
        limit_tokens_per_month=(
            body.limit_tokens_per_month if "limit_tokens_per_month" in body.model_fields_set else ...
        ),
        closed=body.closed,
    )
    await context.meter.refresh()
    context.nudge.nudge()
    return schemas.TenantOut.of(changed)


@router.post("/tokens", status_code=201)
async def issue_token(body: schemas.TokenBody, caller: Admin, context: Context) -> schemas.CredentialOut:
    """Issue a token; its secret is in this answer only."""
    made, secret = await credentials.issue_token(
        context.store,
        context.clock,
        caller,
        user=body.user,
        role=body.role,
        tenant=body.tenant,
        hours=body.hours,
    )
    return schemas.CredentialOut.of(made, secret)


@router.get("/tokens")
async def list_tokens(
    caller: Admin, context: Context, tenant: str | None = None
) -> list[schemas.CredentialOut]:
    """Return a tenant's tokens, newest first."""
    found = await credentials.list_credentials(context.store, caller, CredentialKind.TOKEN, tenant=tenant)
    return [schemas.CredentialOut.of(each) for each in found]


@router.delete("/tokens/{token_id}", status_code=204)
async def revoke_token(token_id: str, caller: Admin, context: Context) -> Response:
    """Revoke a token."""
    await credentials.revoke(context.store, context.clock, caller, CredentialKind.TOKEN, token_id)
    await context.meter.refresh()
    return Response(status_code=204)


@router.post("/keys", status_code=201)
async def issue_key(body: schemas.KeyBody, caller: Admin, context: Context) -> schemas.CredentialOut:
    """Issue an API key; its secret is in this answer only."""
    made, secret = await credentials.issue_key(
        context.store,
        context.clock,
        caller,
        user=body.user,
        services=body.services,
        tenant=body.tenant,
        hours=body.hours,
        limits=Limits(body.requests_per_minute, body.tokens_per_minute, body.tokens_per_month),
    )
    await context.meter.refresh()
    return schemas.CredentialOut.of(made, secret)


@router.get("/keys")
async def list_keys(
    caller: Admin, context: Context, tenant: str | None = None
) -> list[schemas.CredentialOut]:
    """Return a tenant's API keys, newest first."""
    found = await credentials.list_credentials(context.store, caller, CredentialKind.KEY, tenant=tenant)
    return [schemas.CredentialOut.of(each) for each in found]


@router.patch("/keys/{key_id}")
async def limit_key(
    key_id: str, body: schemas.KeyChange, caller: Admin, context: Context
) -> schemas.CredentialOut:
    """Change an API key's limits."""
    changed = await credentials.limit_key(
        context.store, context.clock, caller, key_id, body.model_dump(exclude_unset=True)
    )
    await context.meter.refresh()
    return schemas.CredentialOut.of(changed)


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(key_id: str, caller: Admin, context: Context) -> Response:
    """Revoke an API key."""
    await credentials.revoke(context.store, context.clock, caller, CredentialKind.KEY, key_id)
    await context.meter.refresh()
    return Response(status_code=204)
