"""Quotas."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import delete, insert, select

from cloudfarm.domain.quota import Amounts, Quota
from cloudfarm.store import rows
from cloudfarm.store.transaction import Transaction

_RESOURCES = tuple(each.name for each in fields(Amounts))


class SqlQuotas:
    """See :class:`cloudfarm.ports.QuotaRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def list(self) -> Sequence[Quota]:
        """Return all quotas by id."""
        found = await self._transaction.read(select(rows.quotas).order_by(rows.quotas.c.id))
        return [
            Quota(
                row["id"],
                row["parent"],
                _amounts(row, "guarantee"),
                _amounts(row, "limit"),
                row["weight"],
                row["committed_milli_gpu_ms"],
            )
            for row in found.mappings()
        ]

    async def replace_all(self, quotas: Sequence[Quota]) -> None:
        """Store these instead of all that there are."""
        # Without the farm's row two at once, on PostgreSQL, would not see what the other stores, and both would stay.
        await self._transaction.write(select(rows.farm.c.id).with_for_update())
        await self._transaction.write(delete(rows.quotas))
        if quotas:
            values = [_values(quota) for quota in quotas]
            await self._transaction.write(insert(rows.quotas), values, taken="a quota is given twice")


def _amounts(row: Mapping[Any, Any], name: str) -> Amounts:
    return Amounts(*(row[f"{name}_{resource}"] for resource in _RESOURCES))


def _values(quota: Quota) -> dict[str, Any]:
    return {
        "id": quota.id,
        "parent": quota.parent,
        **{f"guarantee_{resource}": getattr(quota.guarantee, resource) for resource in _RESOURCES},
        **{f"limit_{resource}": getattr(quota.limit, resource) for resource in _RESOURCES},
        "weight": quota.weight,
        "committed_milli_gpu_ms": quota.committed_milli_gpu_ms,
    }
