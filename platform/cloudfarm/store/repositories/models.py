"""Model versions."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select

from cloudfarm.domain.ids import new_id
from cloudfarm.domain.workload import ModelVersion
from cloudfarm.errors import NotFoundError
from cloudfarm.store import rows
from cloudfarm.store.records import Records
from cloudfarm.store.transaction import Transaction


class SqlModels:
    """See :class:`cloudfarm.ports.ModelRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self._records = Records(transaction, rows.models, ModelVersion, "model")

    async def register(
        self,
        *,
        tenant: str,
        name: str,
        uri: str,
        job_id: str | None,
        manifest: Mapping[str, Any],
        now_ms: int,
    ) -> ModelVersion:
        """Store a model under its name's next number; of one job and name, return the one stored before.

        Raises:
            NotFoundError: if there is no such tenant.
        """
        table = rows.models
        await self._lock(tenant)
        if job_id is not None:
            before = await self._records.find(table.c.job_id == job_id, table.c.name == name)
            if before is not None:
                return before
        numbers = select(func.max(table.c.number)).where(table.c.tenant == tenant, table.c.name == name)
        newest: int | None = (await self._records.transaction.read(numbers)).scalar_one()
        version = ModelVersion(
            id=new_id("m"),
            tenant=tenant,
            name=name,
            number=(newest or 0) + 1,
            uri=uri,
            job_id=job_id,
            manifest=manifest,
            created_ms=now_ms,
        )
        await self._records.insert(version)
        return await self._records.get(version.id)

    async def get(self, model_id: str) -> ModelVersion:
        """Return a version by id."""
        return await self._records.get(model_id)

    async def find(self, tenant: str, name: str, number: int | None = None) -> ModelVersion:
        """Return a tenant's version by name, the newest if no number is given."""
        table = rows.models
        where = [table.c.tenant == tenant, table.c.name == name]
        if number is not None:
            where.append(table.c.number == number)
        found = await self._records.list(*where, by=[table.c.number.desc()], limit=1)
        if not found:
            raise NotFoundError(f"there is no model {name}" + ("" if number is None else f":{number}"))
        return found[0]

    async def list(self, tenant: str) -> Sequence[ModelVersion]:
        """Return a tenant's versions by name and number."""
        table = rows.models
        return await self._records.list(table.c.tenant == tenant, by=[table.c.name, table.c.number])

    async def _lock(self, tenant: str) -> None:
        # Two jobs may report the same name at once: without the lock both would count to the same number on
        # PostgreSQL. FOR NO KEY UPDATE lets leases and jobs that only refer to the tenant pass.
        table = rows.tenants
        statement = select(table.c.id).where(table.c.id == tenant).with_for_update(key_share=True)
        if (await self._records.transaction.write(statement)).first() is None:
            raise NotFoundError(f"there is no tenant {tenant}")
