"""Tokens for people and keys for programs: issued once, stored hashed, limited in time, revocable."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from cloudfarm.clock import Clock
from cloudfarm.domain.ids import new_id
from cloudfarm.domain.quantities import parse_hours
from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import (
    UNLIMITED,
    Credential,
    CredentialKind,
    Limits,
    Role,
    check_slug,
    hash_secret,
    new_secret,
)
from cloudfarm.errors import InvalidInputError, NotFoundError, UnauthenticatedError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.usecases.access import Principal, in_unit, is_identifier, missing
from cloudfarm.usecases.limits import checked_limits
from cloudfarm.usecases.tenants import find_tenant

MAX_SECRET = 200
MAX_KEY_SERVICES = 50


async def authenticate(store: Store, clock: Clock, secret: str | None) -> Principal:
    """Return who holds the secret; raises as :func:`identify`."""
    async with store.begin(write=False) as uow:
        return await identify(uow, clock, secret)


async def identify(uow: UnitOfWork, clock: Clock, secret: str | None) -> Principal:
    """Return who holds the secret.

    Raises:
        UnauthenticatedError: in the same words for a secret that is unknown, expired or revoked.
    """
    if not secret:
        raise UnauthenticatedError("send your token in the header 'Authorization: Bearer cf_...'")
    if len(secret) <= MAX_SECRET and secret.isascii():
        found = await uow.credentials.find(hash_secret(secret))
        if found is not None and found.is_live(clock.now_ms()) and await _is_open(uow, found.tenant):
            return Principal(found.tenant, found.user, found.role, found.kind, found.id, found.services)
    raise UnauthenticatedError("this token is unknown, has expired or was revoked")


async def issue_token(
    store: Store,
    clock: Clock,
    principal: Principal,
    *,
    user: str,
    role: Role,
    tenant: str | None = None,
    hours: str | float | None = None,
) -> tuple[Credential, str]:
    """Issue a token and return it with its secret, which nobody can ever see again.

    A tenant's admin issues tokens of the own tenant; an operator those of any tenant, and operators' (no
    tenant).
    """
    principal.need(Role.ADMIN)
    owner = principal.scope(tenant)
    if (role is Role.OPERATOR) != (owner is None):
        raise InvalidInputError(
            "a token is either an operator's and of no tenant, or another role's and of a tenant"
        )
    return await _issue(
        store,
        clock,
        principal,
        kind=CredentialKind.TOKEN,
        tenant=owner,
        user=user,
        role=role,
        hours=hours,
    )


async def issue_key(
    store: Store,
    clock: Clock,
    principal: Principal,
    *,
    user: str,
    services: Sequence[str] = (),
    tenant: str | None = None,
    hours: str | float | None = None,
    limits: Limits = UNLIMITED,
) -> tuple[Credential, str]:
    """Issue an API key for the named services of a tenant (none: for all), and return it with its secret."""
    principal.need(Role.ADMIN)
    owner = principal.scope(tenant)
    if owner is None:
        raise InvalidInputError("a key belongs to a tenant: name it")
    if len(services) > MAX_KEY_SERVICES:
        raise InvalidInputError(
            f"a key names at most {MAX_KEY_SERVICES} services; one that names none may call all"
        )
    names = tuple(dict.fromkeys(check_slug(name, what="service") for name in services))
    return await _issue(
        store,
        clock,
        principal,
        kind=CredentialKind.KEY,
        tenant=owner,
        user=user,
        role=Role.VIEWER,
        hours=hours,
        services=names,
        limits=checked_limits(limits),
    )


async def limit_key(
    store: Store, clock: Clock, principal: Principal, key_id: str, changes: Mapping[str, int | None]
) -> Credential:
    """Change limits of a key, by their names; None lifts one, and one that is not named stays."""
    principal.need(Role.ADMIN)

    async def work(uow: UnitOfWork) -> Credential:
        found = await _find(uow, principal, CredentialKind.KEY, key_id)
        limits = checked_limits(replace(found.limits, **changes))
        await uow.credentials.limit(found.id, limits)
        message = ", ".join(f"{name} {value or 'unlimited'}" for name, value in asdict(limits).items())
        await uow.events.append(
            Event(clock.now_ms(), "key.changed", found.id, found.tenant, principal.actor, message)
        )
        return await uow.credentials.get(found.id)

    return await in_unit(store, work)


async def list_credentials(
    store: Store,
    principal: Principal,
    kind: CredentialKind,
    *,
    tenant: str | None = None,
) -> Sequence[Credential]:
    """Return a tenant's credentials of a kind, newest first; the operators' to an operator who names none."""
    principal.need(Role.ADMIN)
    owner = principal.scope(tenant)
    async with store.begin(write=False) as uow:
        if owner is not None:
            await find_tenant(uow, principal, owner)
        return [found for found in await uow.credentials.list(owner) if found.kind is kind]


async def revoke(
    store: Store, clock: Clock, principal: Principal, kind: CredentialKind, credential_id: str
) -> None:
    """Revoke a credential now; a second time changes nothing."""
    principal.need(Role.ADMIN)

    async def work(uow: UnitOfWork) -> None:
        found = await _find(uow, principal, kind, credential_id)
        if found.revoked_ms is None:
            await uow.credentials.revoke(found.id, clock.now_ms())
            await uow.events.append(
                Event(
                    clock.now_ms(),
                    f"{kind}.revoked",
                    found.id,
                    found.tenant,
                    principal.actor,
                    f"of {found.user}",
                ),
            )

    await in_unit(store, work)


async def _issue(
    store: Store,
    clock: Clock,
    principal: Principal,
    *,
    kind: CredentialKind,
    tenant: str | None,
    user: str,
    role: Role,
    hours: str | float | None,
    services: tuple[str, ...] = (),
    limits: Limits = UNLIMITED,
) -> tuple[Credential, str]:
    secret = new_secret(kind)
    now_ms = clock.now_ms()
    credential = Credential(
        id=new_id("c"),
        kind=kind,
        tenant=tenant,
        user=check_slug(user, what="user"),
        role=role,
        secret_sha256=hash_secret(secret),
        created_ms=now_ms,
        expires_ms=None if hours is None else now_ms + parse_hours(hours),
        services=services,
        **asdict(limits),
    )

    async def work(uow: UnitOfWork) -> None:
        if tenant is not None:
            await find_tenant(uow, principal, tenant)
        await uow.credentials.add(credential)
        message = f"for {credential.user} as {role}"
        await uow.events.append(
            Event(now_ms, f"{kind}.issued", credential.id, tenant, principal.actor, message)
        )

    await in_unit(store, work)
    return credential, secret


async def _find(
    uow: UnitOfWork, principal: Principal, kind: CredentialKind, credential_id: str
) -> Credential:
    if is_identifier(credential_id):
        try:
            found = await uow.credentials.get(credential_id)
        except NotFoundError:
            raise missing(kind, credential_id) from None
        if found.kind is kind and principal.sees(found.tenant):
            return found
    raise missing(kind, credential_id)


async def _is_open(uow: UnitOfWork, tenant: str | None) -> bool:
    return tenant is None or (await uow.tenants.get(tenant)).closed_ms is None
