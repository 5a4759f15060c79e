"""The repositories of the store in memory: dictionaries, and the refusals that a database would make."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.ledger import LedgerEntry, amount
from cloudfarm.domain.quota import Quota
from cloudfarm.domain.served import Note
from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import UNLIMITED, Credential, Limits, Tenant
from cloudfarm.domain.workload import Job, ModelVersion, Revision, Service
from cloudfarm.errors import (
    AlreadyExistsError,
    CloudfarmError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StaleError,
    TransitionError,
)
from cloudfarm.store.text import storable

R = TypeVar("R")
_INT64 = 2**63


@dataclass(slots=True)
class State:
    """Everything stored. A unit of work changes a copy; records are frozen, so a shallow one is enough."""

    tenants: dict[str, Tenant] = field(default_factory=dict)
    credentials: dict[str, Credential] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    revisions: dict[str, Revision] = field(default_factory=dict)
    models: dict[str, ModelVersion] = field(default_factory=dict)
    ledger: dict[tuple[str, int], LedgerEntry] = field(default_factory=dict)
    served: dict[str, tuple[Note, ...]] = field(default_factory=dict)
    """By batch."""
    events: list[Event] = field(default_factory=list)
    quotas: dict[str, Quota] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    epoch: int = 0
    heartbeat_ms: int | None = None
    stopping: bool = False

    def copy(self) -> "State":
        """Return a state that can be changed without this one."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return State(
            **{name: value.copy() if hasattr(value, "copy") else value for name, value in values.items()}
        )


class Unit(Protocol):
    """What a repository needs of its unit of work."""

    def reading(self) -> State:
        """Return the state, if this unit of work still goes on."""

    def writing(self) -> State:
        """Return the state, if this unit of work may change it."""

    def refused(self, error: CloudfarmError) -> CloudfarmError:
        """Return the error, after which, as after a failed statement, this transaction can only be left."""

    def need(self, table: Mapping[str, Any], *keys: str | None) -> None:
        """Refuse a record that refers to one that is not there."""

    def stored(self, record: R) -> R:
        """Return a record as a database would give it back."""


def stored(record: R) -> R:
    """Return a record as a database would give it back: cleaned text, plain dictionaries of its own."""
    changes: dict[str, Any] = {}
    for each in fields(record):  # type: ignore[arg-type]
        value = getattr(record, each.name)
        if type(value) is str:
            changes[each.name] = storable(value)
        elif isinstance(value, Mapping):
            changes[each.name] = json.loads(json.dumps(dict(value)))
        elif isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise InvalidInputError(f"the database refused a value: {each.name} has more than 64 bits")
    return replace(record, **changes)  # type: ignore[type-var]


class Records(Generic[R]):
    """What the repositories of records with an id share."""

    refers: ClassVar[Mapping[str, str]] = {"tenant": "tenants"}
    """Fields that hold the id of another record, and where that one is."""

    def __init__(self, unit: Unit, rows: dict[str, R], what: str) -> None:
        self.unit = unit
        self.rows = rows
        self.what = what

    async def get(self, record_id: str) -> R:
        """Return a record; raises NotFoundError."""
        self.unit.reading()
        if record_id not in self.rows:
            raise self.missing(record_id)
        return stored(self.rows[record_id])

    def insert(self, record: Any, *, taken: str = "") -> None:
        """Store a new record; ``taken`` says what of it is there already, if anything is."""
        self.unit.writing()
        if record.id in self.rows:
            taken = f"there is a {self.what} {record.id} already"
        if taken:
            raise self.unit.refused(AlreadyExistsError(taken))
        self._check_references(record)
        self.rows[record.id] = self.unit.stored(record)

    def put(self, record: Any, *, step: bool) -> None:
        """Store a changed record if its version is still the stored one."""
        self.unit.writing()
        now: Any = self.rows.get(record.id)
        if now is None:
            raise self.missing(record.id)
        if now.version != record.version:
            raise StaleError(f"{self.what} {record.id} has changed meanwhile", id=record.id)
        if not step and now.status is not record.status:
            raise TransitionError(
                f"{self.what} {record.id}: an update may not change the status; store a transition"
            )
        self._check_references(record)
        self.rows[record.id] = replace(self.unit.stored(record), version=record.version + 1)

    def put_all(self, records: Sequence[Any], *, step: bool) -> set[str]:
        """As ``put`` for many different records; return the ids of those left out."""
        rows: dict[str, Any] = self.rows
        versions = {record.id: rows[record.id].version for record in records if record.id in rows}
        left_out = {record.id for record in records if versions.get(record.id) != record.version}
        for record in records:
            if record.id not in left_out:
                self.put(record, step=step)
        return left_out

    def oldest_first(self, keep: Callable[[Any], bool], limit: int | None = None) -> list[R]:
        """Return records by age; with ``limit`` the newest so many."""
        self.unit.reading()
        rows: list[Any] = sorted(self.rows.values(), key=lambda row: (row.created_ms, row.id))
        kept = [stored(row) for row in rows if keep(row)]
        return kept if limit is None else kept[max(0, len(kept) - limit) :]

    def missing(self, record_id: str) -> NotFoundError:
        """Return the error for a record that is not there."""
        return NotFoundError(f"there is no {self.what} {record_id}")

    def _check_references(self, record: Any) -> None:
        for name, table in self.refers.items():
            self.unit.need(getattr(self.unit.writing(), table), getattr(record, name))


class Tenants(Records[Tenant]):
    """See :class:`cloudfarm.ports.TenantRepository`."""

    refers: ClassVar[Mapping[str, str]] = {}

    async def add(self, tenant: Tenant) -> None:
        """Store a new one."""
        self.insert(tenant)

    async def hold(self, tenant_id: str) -> Tenant:
        """Return one; writers are alone anyway."""
        return await self.get(tenant_id)

    async def list(self) -> Sequence[Tenant]:
        """Return those asked for, in the port's order."""
        self.unit.reading()
        return [tenant for _, tenant in sorted(self.rows.items())]

    async def update(self, tenant: Tenant) -> None:
        """Store changed fields."""
        self.unit.writing()
        if tenant.id not in self.rows:
            raise self.missing(tenant.id)
        self.rows[tenant.id] = self.unit.stored(tenant)


class Credentials(Records[Credential]):
    """See :class:`cloudfarm.ports.CredentialRepository`."""

    async def add(self, credential: Credential) -> None:
        """Store a new one."""
        there = await self.find(credential.secret_sha256) is not None
        self.insert(credential, taken="there is a credential of that secret already" if there else "")

    async def find(self, secret_sha256: str) -> Credential | None:
        """Return the one meant."""
        self.unit.reading()
        return next((row for row in self.rows.values() if row.secret_sha256 == secret_sha256), None)

    async def list(self, tenant: str | None) -> Sequence[Credential]:
        """Return those asked for, in the port's order."""
        return self.oldest_first(lambda row: row.tenant == tenant)[::-1]

    async def list_limited(self) -> Sequence[Credential]:
        """Return those asked for, in the port's order."""
        self.unit.reading()
        return [row for _, row in sorted(self.rows.items()) if row.limits != UNLIMITED and not row.revoked_ms]

    async def find_dead(self, ids: Collection[str], now_ms: int) -> frozenset[str]:
        """Return those that may not be used."""
        tenants = self.unit.reading().tenants.values()
        closed = {tenant.id for tenant in tenants if tenant.closed_ms is not None}
        found = [self.rows[each] for each in ids if each in self.rows]
        return frozenset(row.id for row in found if not row.is_live(now_ms) or row.tenant in closed)

    async def limit(self, credential_id: str, limits: Limits) -> None:
        """Store other limits."""
        self.unit.writing()
        self.rows[credential_id] = self.unit.stored(replace(await self.get(credential_id), **asdict(limits)))

    async def revoke(self, credential_id: str, now_ms: int) -> None:
        """Revoke now; a second time changes nothing."""
        self.unit.writing()
        row = await self.get(credential_id)
        if row.revoked_ms is None:
            self.rows[row.id] = replace(row, revoked_ms=now_ms)


class Leases(Records[Lease]):
    """See :class:`cloudfarm.ports.LeaseRepository`."""

    async def add(self, lease: Lease) -> None:
        """Store a new one."""
        self.insert(lease)

    async def list(
        self,
        *,
        tenant: str | None = None,
        revision_id: str | None = None,
        open_only: bool = False,
        limit: int | None = None,
    ) -> Sequence[Lease]:
        """Return those asked for, in the port's order."""
        return self.oldest_first(
            lambda row: (
                tenant in (None, row.tenant)
                and revision_id in (None, row.revision_id)
                and not (open_only and row.status.is_terminal)
            ),
            limit,
        )

    async def list_open(self, known: Mapping[str, Lease]) -> Sequence[Lease]:
        """Return those that are open; nothing is won by knowing some."""
        return await self.list(open_only=True)

    async def update(self, lease: Lease) -> None:
        """Store changed fields."""
        self.put(lease, step=False)

    async def update_all(self, leases: Sequence[Lease]) -> set[str]:
        """Store changed fields of those that are as they were."""
        return self.put_all(leases, step=False)


class Jobs(Records[Job]):
    """See :class:`cloudfarm.ports.JobRepository`."""

    refers: ClassVar[Mapping[str, str]] = {"tenant": "tenants", "lease_id": "leases"}

    async def add(self, job: Job) -> None:
        """Store a new one."""
        self.unit.writing()
        there = self._find(job.tenant, job.submission_id) is not None
        self.insert(job, taken=f"{job.tenant} has a job {job.submission_id} already" if there else "")

    async def find(self, tenant: str, submission_id: str) -> Job:
        """Return the one meant."""
        self.unit.reading()
        found = self._find(tenant, submission_id)
        if found is None:
            raise self.missing(submission_id)
        return stored(found)

    async def list(
        self,
        *,
        tenant: str | None = None,
        open_only: bool = False,
        lease_id: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """Return those asked for, in the port's order."""
        return self.oldest_first(
            lambda row: (
                tenant in (None, row.tenant)
                and lease_id in (None, row.lease_id)
                and not (open_only and row.status.is_terminal)
            ),
            limit,
        )

    async def update(self, job: Job) -> None:
        """Store changed fields."""
        self.put(job, step=False)

    async def delete(self, job_id: str) -> None:
        """Forget an ended job."""
        self.unit.writing()
        job = await self.get(job_id)
        if not job.status.is_terminal:
            raise ConflictError(f"job {job_id} is {job.status}; only an ended job can be forgotten")
        del self.rows[job_id]

    def _find(self, tenant: str, submission_id: str) -> Job | None:
        wanted = (tenant, submission_id)
        return next((row for row in self.rows.values() if (row.tenant, row.submission_id) == wanted), None)


class Models(Records[ModelVersion]):
    """See :class:`cloudfarm.ports.ModelRepository`."""

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
        """Store a model, or return the one that the job reported before."""
        state = self.unit.writing()
        if tenant not in state.tenants:
            raise NotFoundError(f"there is no tenant {tenant}")
        for row in self.rows.values():
            if job_id is not None and (row.job_id, row.name) == (job_id, name):
                return stored(row)
        version = ModelVersion(
            id=f"m{len(self.rows) + 1:08d}",
            tenant=tenant,
            name=name,
            number=max((row.number for row in self._named(tenant, name)), default=0) + 1,
            uri=uri,
            job_id=job_id,
            manifest=manifest,
            created_ms=now_ms,
        )
        self.insert(version)
        return await self.get(version.id)

    async def find(self, tenant: str, name: str, number: int | None = None) -> ModelVersion:
        """Return the one meant."""
        self.unit.reading()
        found = [row for row in self._named(tenant, name) if number in (None, row.number)]
        if not found:
            raise NotFoundError(f"there is no model {name}" + ("" if number is None else f":{number}"))
        return stored(max(found, key=lambda row: row.number))

    async def list(self, tenant: str) -> Sequence[ModelVersion]:
        """Return those asked for, in the port's order."""
        self.unit.reading()
        found = [stored(row) for row in self.rows.values() if row.tenant == tenant]
        return sorted(found, key=lambda row: (row.name, row.number))

    def _named(self, tenant: str, name: str) -> Sequence[ModelVersion]:
        return [row for row in self.rows.values() if (row.tenant, row.name) == (tenant, name)]


class Ledger:
    """See :class:`cloudfarm.ports.LedgerRepository`."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    async def append(self, entry: LedgerEntry) -> None:
        """Store one."""
        state = self._unit.writing()
        key = (entry.lease_id, entry.segment)
        if key in state.ledger:
            taken = f"segment {entry.segment} of lease {entry.lease_id} is in the ledger already"
            raise self._unit.refused(AlreadyExistsError(taken))
        if entry.end_ms < entry.start_ms or entry.milli_gpu_seconds != amount(
            entry.milli_gpus, entry.start_ms, entry.end_ms
        ):
            raise self._unit.refused(InvalidInputError("the amount is not that of the interval"))
        self._unit.need(state.tenants, entry.tenant)
        self._unit.need(state.leases, entry.lease_id)
        state.ledger[key] = self._unit.stored(entry)

    async def list(
        self,
        *,
        tenant: str | None = None,
        lease_id: str | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Sequence[LedgerEntry]:
        """Return those asked for, in the port's order."""
        found = [
            entry
            for entry in self._unit.reading().ledger.values()
            if tenant in (None, entry.tenant)
            and lease_id in (None, entry.lease_id)
            and (from_ms is None or entry.end_ms > from_ms or entry.start_ms >= from_ms)
            and (until_ms is None or entry.start_ms < until_ms)
        ]
        return sorted(found, key=lambda entry: (entry.start_ms, entry.lease_id, entry.segment))


class Events:
    """See :class:`cloudfarm.ports.EventRepository`."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    async def append(self, event: Event) -> None:
        """Store one."""
        self._unit.writing().events.append(self._unit.stored(event))

    async def append_all(self, events: Sequence[Event]) -> None:
        """Store some."""
        for event in events:
            await self.append(event)

    async def list(
        self, *, tenant: str | None = None, subject: str | None = None, limit: int = 100
    ) -> Sequence[Event]:
        """Return those asked for, in the port's order."""
        newest = reversed(self._unit.reading().events)
        found = [row for row in newest if tenant in (None, row.tenant) and subject in (None, row.subject)]
        return found[:limit]


class Quotas:
    """See :class:`cloudfarm.ports.QuotaRepository`."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    async def list(self) -> Sequence[Quota]:
        """Return those asked for, in the port's order."""
        return [quota for _, quota in sorted(self._unit.reading().quotas.items())]

    async def replace_all(self, quotas: Sequence[Quota]) -> None:
        """Store these instead of all that there are."""
        state = self._unit.writing()
        state.quotas = {}
        for quota in quotas:
            if quota.id in state.quotas:
                raise self._unit.refused(AlreadyExistsError("a quota is given twice"))
            for amounts in (quota.guarantee, quota.limit):
                self._unit.stored(amounts)
            state.quotas[quota.id] = self._unit.stored(quota)
