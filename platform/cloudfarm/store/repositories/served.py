"""What callers used of services: an append-only table."""

from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlalchemy import BigInteger, cast, func, insert, or_, select

from cloudfarm.domain.ledger import DAY_MS
from cloudfarm.domain.served import USED, Account, DayUse, Note, Used
from cloudfarm.store import rows
from cloudfarm.store.transaction import Transaction

_TABLE = rows.served
_ACCOUNT = [_TABLE.c[each.name] for each in fields(Account)]


class SqlServed:
    """See :class:`cloudfarm.ports.ServedRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def append(self, batch: str, notes: Sequence[Note]) -> None:
        """Store a batch."""
        if notes:
            values = [
                {
                    "batch": batch,
                    "number": number,
                    "start_ms": note.start_ms,
                    "end_ms": note.end_ms,
                    **asdict(note.account),
                    **asdict(note.used),
                }
                for number, note in enumerate(notes)
            ]
            await self._transaction.write(
                insert(_TABLE), values, taken=f"the batch {batch} was handed over before"
            )

    async def days(
        self,
        *,
        tenant: str | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Sequence[DayUse]:
        """Return the sums of each day and account."""
        day = (_TABLE.c.end_ms // DAY_MS).label("day")
        # PostgreSQL's sum of BIGINT is NUMERIC, which the driver would make a Decimal of.
        sums = [cast(func.sum(_TABLE.c[name]), BigInteger) for name in USED]
        query = select(day, *_ACCOUNT, *sums).group_by(day, *_ACCOUNT).order_by(day, *_ACCOUNT)
        if tenant is not None:
            query = query.where(or_(_TABLE.c.tenant == tenant, _TABLE.c.service_tenant == tenant))
        if from_ms is not None:
            query = query.where(_TABLE.c.end_ms >= from_ms)
        if until_ms is not None:
            query = query.where(_TABLE.c.end_ms < until_ms)
        split = 1 + len(_ACCOUNT)
        return [
            DayUse(row[0], Account(*row[1:split]), Used(*row[split:]))
            for row in await self._transaction.read(query)
        ]

    async def tokens(self, *, tenant: str, key_id: str | None, from_ms: int, until_ms: int) -> int:
        """Return how many tokens a tenant's calls used, or those with one of its keys."""
        tokens = func.sum(_TABLE.c.prompt_tokens + _TABLE.c.completion_tokens)
        query = select(cast(func.coalesce(tokens, 0), BigInteger)).where(
            _TABLE.c.tenant == tenant, _TABLE.c.end_ms >= from_ms, _TABLE.c.end_ms < until_ms
        )
        if key_id is not None:
            query = query.where(_TABLE.c.key_id == key_id)
        found: int = (await self._transaction.read(query)).scalar_one()
        return found
