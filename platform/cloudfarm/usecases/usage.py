"""What the farm was used for: statements from the ledger, to the milli-GPU-second."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from cloudfarm.clock import Clock
from cloudfarm.domain.ledger import DAY_MS, LedgerEntry, amount, split
from cloudfarm.domain.served import DayUse, Used
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import Role
from cloudfarm.errors import InvalidInputError
from cloudfarm.ports import Store
from cloudfarm.usecases.access import Principal
from cloudfarm.usecases.routes import EVERYBODYS

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What one lease cost on one day."""

    day: date
    tenant: str
    lease_id: str
    kind: str
    milli_gpu_seconds: int


@dataclass(frozen=True, slots=True)
class Running:
    """What a lease that still runs has cost so far; the ledger has it when the lease has ended."""

    tenant: str
    lease_id: str
    milli_gpus: int
    since_ms: int
    milli_gpu_seconds: int


@dataclass(frozen=True, slots=True)
class ServedLine:
    """What calls to a service used on one day.

    Who reads a tenant's statement sees of others that called its services only which tenant it was.
    """

    day: date
    tenant: str
    """The caller's."""
    key: str
    model: str
    service: str
    """With its tenant before it, ``tenant/name``; to callers of other tenants it is ``farm/name``."""
    project: str
    used: Used


@dataclass(frozen=True, slots=True)
class Statement:
    """Charged lines of whole UTC days; apart from them what runs now, and what callers used of services.

    What callers used is not charged beside the leases of the services, which the lines have: it says whose use of them
    it was.
    """

    first_day: date | None
    last_day: date | None
    lines: tuple[UsageLine, ...]
    running: tuple[Running, ...]
    served: tuple[ServedLine, ...]

    @property
    def total(self) -> int:
        """Milli-GPU-seconds charged."""
        return sum(line.milli_gpu_seconds for line in self.lines)

    def by(self, field: str) -> dict[str, int]:
        """Return the total for each value of a line's field; they sum to the statement's total."""
        sums: Counter[str] = Counter()
        for line in self.lines:
            sums[str(getattr(line, field))] += line.milli_gpu_seconds
        return dict(sorted(sums.items()))

    @property
    def served_total(self) -> Used:
        """What all calls used."""
        return sum((line.used for line in self.served), Used())

    def served_by(self, field: str) -> dict[str, Used]:
        """Return what calls used for each value of a line's field; they sum to the total."""
        sums: dict[str, Used] = {}
        for line in self.served:
            value = str(getattr(line, field))
            sums[value] = sums.get(value, Used()) + line.used
        return dict(sorted(sums.items()))


async def statement(
    store: Store,
    clock: Clock,
    principal: Principal,
    *,
    tenant: str | None = None,
    lease_id: str | None = None,
    first_day: str | None = None,
    last_day: str | None = None,
) -> Statement:
    """Return what was charged from ``first_day`` to ``last_day`` (UTC, both included, both optional)."""
    principal.need(Role.VIEWER)
    scope = principal.scope(tenant)
    first, last = _day(first_day, "from"), _day(last_day, "to")
    if first is not None and last is not None and last < first:
        raise InvalidInputError("the last day comes before the first")
    now_ms = clock.now_ms()
    from_ms = None if first is None else (first - _EPOCH).days * DAY_MS
    until_ms = None if last is None else ((last - _EPOCH).days + 1) * DAY_MS
    async with store.begin(write=False) as uow:
        entries = await uow.ledger.list(tenant=scope, lease_id=lease_id, from_ms=from_ms, until_ms=until_ms)
        days = (
            await uow.served.days(tenant=scope, from_ms=from_ms, until_ms=until_ms)
            if lease_id is None
            else ()
        )
        leases = await uow.leases.list(tenant=scope, open_only=True)
    lines = [line for entry in entries for line in _lines(entry) if _within(line.day, first, last)]
    running = [
        Running(
            tenant=lease.tenant,
            lease_id=lease.id,
            milli_gpus=lease.milli_gpus,
            since_ms=lease.started_ms,
            milli_gpu_seconds=amount(lease.milli_gpus, lease.started_ms, max(now_ms, lease.started_ms)),
        )
        for lease in leases
        if lease.started_ms is not None
        and lease.status in (LeaseStatus.ACTIVE, LeaseStatus.ENDING)
        and lease_id in (None, lease.id)
    ]
    return Statement(first, last, tuple(lines), tuple(running), _served(days, scope))


def _served(days: Sequence[DayUse], reader: str | None) -> tuple[ServedLine, ...]:
    sums: dict[ServedLine, Used] = {}
    for each in days:
        account = each.account
        is_own_call = reader in (None, account.tenant)
        is_own_service = reader in (None, account.service_tenant)
        line = ServedLine(
            day=_EPOCH + timedelta(days=each.day),
            tenant=account.tenant,
            key=account.key_id if is_own_call else "",
            model=account.model if is_own_call else "",
            service=f"{account.service_tenant if is_own_service else EVERYBODYS}/{account.service}",
            project=account.project if is_own_service else "",
            used=Used(),
        )
        sums[line] = sums.get(line, Used()) + each.used
    return tuple(replace(line, used=used) for line, used in sums.items())


def _lines(entry: LedgerEntry) -> list[UsageLine]:
    return [
        UsageLine(_EPOCH + timedelta(days=day), entry.tenant, entry.lease_id, entry.kind, cost)
        for day, cost in split(entry)
    ]


def _within(day: date, first: date | None, last: date | None) -> bool:
    return (first is None or first <= day) and (last is None or day <= last)


def _day(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        if _DAY.fullmatch(text):
            return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        pass  # 2026-02-31: refused below like anything else that is no day
    raise InvalidInputError(f"{name}: write a day as 2026-11-21")
