"""The store in memory: the promises of the real ones, kept by one lock and a copy of the dictionaries."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from cloudfarm import ports
from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import Transition
from cloudfarm.domain.workload import Job, Revision, Service
from cloudfarm.errors import CloudfarmError, FencedError, InvalidInputError, NotFoundError
from cloudfarm.testing import memory_repositories as repositories
from cloudfarm.testing import memory_services
from cloudfarm.testing.memory_repositories import State, stored
from cloudfarm.testing.memory_served import Served

R = TypeVar("R")


class MemoryStore:
    """See :class:`cloudfarm.ports.Store`."""

    def __init__(self) -> None:
        self.state = State()
        self.lock = asyncio.Lock()

    def begin(self, *, write: bool = True) -> "MemoryUnitOfWork":
        """Return a unit of work to enter; writers wait for one another, readers for nobody."""
        return MemoryUnitOfWork(self, write=write)

    async def close(self) -> None:
        """Do nothing: what is stored stays, as it does in a database."""


class MemoryUnitOfWork:
    """See :class:`cloudfarm.ports.UnitOfWork`."""

    tenants: ports.TenantRepository
    credentials: ports.CredentialRepository
    leases: ports.LeaseRepository
    jobs: ports.JobRepository
    services: ports.ServiceRepository
    revisions: ports.RevisionRepository
    models: ports.ModelRepository
    ledger: ports.LedgerRepository
    served: ports.ServedRepository
    events: ports.EventRepository
    quotas: ports.QuotaRepository

    def __init__(self, store: MemoryStore, *, write: bool) -> None:
        self._store = store
        self._write = write
        self._over = ""
        self._state = store.state

    async def __aenter__(self) -> Self:
        """Begin."""
        if self._write:
            await self._store.lock.acquire()
        self._state = self._store.state.copy()
        self.tenants = repositories.Tenants(self, self._state.tenants, "tenant")
        self.credentials = repositories.Credentials(self, self._state.credentials, "credential")
        self.leases = repositories.Leases(self, self._state.leases, "lease")
        self.jobs = repositories.Jobs(self, self._state.jobs, "job")
        self.services = memory_services.Services(self, self._state.services, "service")
        self.revisions = memory_services.Revisions(self, self._state.revisions, "revision")
        self.models = repositories.Models(self, self._state.models, "model")
        self.ledger = repositories.Ledger(self)
        self.served = Served(self)
        self.events = repositories.Events(self)
        self.quotas = repositories.Quotas(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget whatever was not committed."""
        if self._write:
            self._store.lock.release()

    async def apply(self, step: Transition) -> None:
        """Store a status change with its event."""
        record = step.record
        versioned = {Lease: self.leases, Job: self.jobs, Service: self.services, Revision: self.revisions}
        repository: Any = versioned[type(record)]
        repository.put(record, step=True)
        await self.events.append(step.event)

    async def apply_all(self, steps: Sequence[Transition]) -> set[str]:
        """Store status changes of leases with their events; return the ids of those left out."""
        leases: Any = self.leases
        left_out: set[str] = leases.put_all([step.record for step in steps], step=True)
        await self.events.append_all([step.event for step in steps if step.event.subject not in left_out])
        return left_out

    async def take_epoch(self) -> int:
        """Count the steward's epoch up and return it."""
        self.writing().epoch += 1
        return self._state.epoch

    async def check_epoch(self, epoch: int) -> None:
        """Raise FencedError unless this is the epoch in force."""
        stored = self.reading().epoch
        if stored != epoch:
            raise FencedError(f"the steward's epoch is {stored}, not {epoch}", epoch=stored)

    async def heartbeat(self, now_ms: int) -> None:
        """Store that the steward observed the farm now."""
        self.writing().heartbeat_ms = now_ms

    async def last_heartbeat_ms(self) -> int | None:
        """Return when a steward last observed the farm, or None if never."""
        return self.reading().heartbeat_ms

    async def set_stopping(self, *, stopping: bool) -> None:
        """Store whether the operator is stopping the farm."""
        self.writing().stopping = stopping

    async def is_stopping(self) -> bool:
        """Return whether the operator is stopping the farm."""
        return self.reading().stopping

    async def put_hosts(self, hosts: Sequence[Host]) -> None:
        """Store hosts, new or known; one that is not named stays as it was."""
        known = self.writing().hosts
        for host in hosts:
            cordoned = known[host.id].cordoned if host.id in known else host.cordoned
            known[host.id] = replace(stored(host), nodes=(), cordoned=cordoned)

    async def set_cordoned(self, host_id: str, *, cordoned: bool) -> None:
        """Store whether new slices are kept off a host; raises NotFoundError."""
        self.writing().hosts[host_id] = replace(self._host(host_id), cordoned=cordoned)

    async def forget_host(self, host_id: str) -> None:
        """Remove a host; raises NotFoundError."""
        self._host(host_id)
        del self.writing().hosts[host_id]

    def _host(self, host_id: str) -> Host:
        found = self.writing().hosts.get(host_id)
        if found is None:
            raise NotFoundError(f"there is no host {host_id}")
        return found

    async def hosts(self) -> Sequence[Host]:
        """Return the hosts last seen, without nodes."""
        return [host for _, host in sorted(self.reading().hosts.items())]

    async def commit(self) -> None:
        """Keep everything."""
        self.reading()
        self._over = "has been committed"
        if self._write:
            self._store.state = self._state

    # === For the repositories ===

    def reading(self) -> State:
        """Return the state, if this unit of work still goes on."""
        if self._over:
            raise RuntimeError(f"this unit of work {self._over}; begin another")
        return self._state

    def writing(self) -> State:
        """Return the state, if this unit of work may change it."""
        if not self._write:
            raise RuntimeError("this unit of work was begun for reading")
        return self.reading()

    def refused(self, error: CloudfarmError) -> CloudfarmError:
        """Return the error, after which, as after a failed statement, this transaction can only be left."""
        self._over = "has failed"
        return error

    def need(self, table: Mapping[str, Any], *keys: str | None) -> None:
        """Refuse a record that refers to one that is not there."""
        for key in keys:
            if key is not None and key not in table:
                raise self.refused(NotFoundError(f"something that the record refers to is not there: {key}"))

    def stored(self, record: R) -> R:
        """Return a record as a database would give it back."""
        try:
            return stored(record)
        except InvalidInputError as error:
            raise self.refused(error) from None
