"""Tenants and their credentials."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, fields

from sqlalchemy import func, or_, select, update

from cloudfarm.domain.tenant import Credential, Limits, Tenant
from cloudfarm.store import rows
from cloudfarm.store.records import AT_ONCE, Records
from cloudfarm.store.transaction import Transaction


class SqlTenants:
    """See :class:`cloudfarm.ports.TenantRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self._records = Records(transaction, rows.tenants, Tenant, "tenant")

    async def add(self, tenant: Tenant) -> None:
        """Store a new tenant."""
        await self._records.insert(tenant)

    async def get(self, tenant_id: str) -> Tenant:
        """Return a tenant."""
        return await self._records.get(tenant_id)

    async def hold(self, tenant_id: str) -> Tenant:
        """Return a tenant and keep its row until the commit. On SQLite a writer is alone anyway."""
        row = select(rows.tenants.c.id).where(rows.tenants.c.id == tenant_id).with_for_update()
        await self._records.transaction.read(row)
        return await self._records.get(tenant_id)

    async def list(self) -> Sequence[Tenant]:
        """Return all tenants by slug."""
        return await self._records.list(by=[rows.tenants.c.id])

    async def update(self, tenant: Tenant) -> None:
        """Store changed fields."""
        statement = (
            update(rows.tenants).where(rows.tenants.c.id == tenant.id).values(self._records.values(tenant))
        )
        done = await self._records.transaction.write(statement)
        if not done.rowcount:
            raise self._records.missing(tenant.id)


class SqlCredentials:
    """See :class:`cloudfarm.ports.CredentialRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self._records = Records(transaction, rows.credentials, Credential, "credential")

    async def add(self, credential: Credential) -> None:
        """Store a new credential."""
        await self._records.insert(credential, taken="there is a credential of that id or secret already")

    async def find(self, secret_sha256: str) -> Credential | None:
        """Return the credential of a secret, or None."""
        return await self._records.find(rows.credentials.c.secret_sha256 == secret_sha256)

    async def get(self, credential_id: str) -> Credential:
        """Return a credential."""
        return await self._records.get(credential_id)

    async def list(self, tenant: str | None) -> Sequence[Credential]:
        """Return a tenant's credentials (operators' for None), newest first."""
        table = rows.credentials
        whose = table.c.tenant.is_(None) if tenant is None else table.c.tenant == tenant
        return (await self._records.oldest_first(whose))[::-1]

    async def list_limited(self) -> Sequence[Credential]:
        """Return those that have a limit and are not revoked, by id."""
        table = rows.credentials
        limits = [table.c[each.name].is_not(None) for each in fields(Limits)]
        return await self._records.list(or_(*limits), table.c.revoked_ms.is_(None), by=[table.c.id])

    async def find_dead(self, ids: Collection[str], now_ms: int) -> frozenset[str]:
        """Return which of some are revoked, have expired, or are of a tenant that is closed."""
        table, tenants, asked = rows.credentials, rows.tenants, sorted(ids)
        closed = select(tenants.c.id).where(tenants.c.closed_ms.is_not(None))
        dead = or_(table.c.revoked_ms.is_not(None), table.c.expires_ms <= now_ms, table.c.tenant.in_(closed))
        found: set[str] = set()
        for first in range(0, len(asked), AT_ONCE):
            query = select(table.c.id).where(table.c.id.in_(asked[first : first + AT_ONCE]), dead)
            found.update((await self._records.transaction.read(query)).scalars())
        return frozenset(found)

    async def limit(self, credential_id: str, limits: Limits) -> None:
        """Store other limits, and nothing else: it may be being revoked."""
        table = rows.credentials
        done = await self._records.transaction.write(
            update(table).where(table.c.id == credential_id).values(asdict(limits)),
        )
        if not done.rowcount:
            raise self._records.missing(credential_id)

    async def revoke(self, credential_id: str, now_ms: int) -> None:
        """Revoke now; a second time changes nothing."""
        table = rows.credentials
        first = func.coalesce(table.c.revoked_ms, now_ms)
        done = await self._records.transaction.write(
            update(table).where(table.c.id == credential_id).values(revoked_ms=first),
        )
        if not done.rowcount:
            raise self._records.missing(credential_id)
