"""One transaction over all repositories."""

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cloudfarm import ports
from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.status import Transition
from cloudfarm.domain.workload import Job, Revision, Service
from cloudfarm.errors import CloudfarmError
from cloudfarm.store.faults import our_errors
from cloudfarm.store.records import Records  # noqa: TC001 - one import style for all
from cloudfarm.store.repositories.access import SqlCredentials, SqlTenants
from cloudfarm.store.repositories.farm import FarmState
from cloudfarm.store.repositories.history import SqlEvents, SqlLedger
from cloudfarm.store.repositories.leases import SqlLeases
from cloudfarm.store.repositories.models import SqlModels
from cloudfarm.store.repositories.quotas import SqlQuotas
from cloudfarm.store.repositories.served import SqlServed
from cloudfarm.store.repositories.workloads import SqlJobs, SqlRevisions, SqlServices
from cloudfarm.store.transaction import Transaction

log = logging.getLogger(__name__)


class SqlUnitOfWork:
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

    def __init__(self, engine: AsyncEngine, *, write: bool) -> None:
        self._engine = engine
        self._write = write
        self._connection: AsyncConnection
        self._transaction: Transaction
        self._farm: FarmState
        self._versioned: dict[type, Records[Any]]

    async def __aenter__(self) -> Self:
        """Begin."""
        self._connection = self._engine.connect()
        with our_errors():
            await self._connection.start()
            try:
                await self._connection.begin()
            except BaseException:
                # SQLite's BEGIN IMMEDIATE waits for other writers, so it may fail or be cancelled.
                await self._let_go()
                raise
        transaction = self._transaction = Transaction(self._connection, write=self._write)
        self.tenants = SqlTenants(transaction)
        self.credentials = SqlCredentials(transaction)
        self.models = SqlModels(transaction)
        self.ledger = SqlLedger(transaction)
        self.served = SqlServed(transaction)
        self.events = SqlEvents(transaction)
        self.quotas = SqlQuotas(transaction)
        self.leases, self.jobs, self.services = (
            SqlLeases(transaction),
            SqlJobs(transaction),
            SqlServices(transaction),
        )
        self.revisions = SqlRevisions(transaction)
        self._versioned = {
            Lease: self.leases.records,
            Job: self.jobs.records,
            Service: self.services.records,
            Revision: self.revisions.records,
        }
        self._farm = FarmState(transaction)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Roll back whatever was not committed."""
        try:
            with our_errors():
                await self._let_go()
        except CloudfarmError as failed:
            if error is None:
                raise
            # The database rolls back by itself when a connection is lost; the first error says more.
            log.warning("a connection could not be given back after %r: %s", error, failed)

    async def _let_go(self) -> None:
        # Shielded: a cancelled request must not leave its transaction, and with it SQLite's write lock, open.
        await asyncio.shield(asyncio.create_task(self._connection.close()))

    async def apply(self, step: Transition) -> None:
        """Store a status change with its event."""
        await self._versioned[type(step.record)].update(step.record, step=True)
        await self.events.append(step.event)

    async def apply_all(self, steps: Sequence[Transition]) -> set[str]:
        """As :meth:`apply` for steps of different leases; return the ids of those left out."""
        left_out = await self._versioned[Lease].update_all([step.record for step in steps], step=True)
        await self.events.append_all([step.event for step in steps if step.event.subject not in left_out])
        return left_out

    async def take_epoch(self) -> int:
        """Count the steward's epoch up and return it."""
        return await self._farm.take_epoch()

    async def check_epoch(self, epoch: int) -> None:
        """Raise FencedError if a newer epoch was taken; a writer lets none be taken before the commit."""
        await self._farm.check_epoch(epoch)

    async def heartbeat(self, now_ms: int) -> None:
        """Store that the steward observed the farm now."""
        await self._farm.heartbeat(now_ms)

    async def last_heartbeat_ms(self) -> int | None:
        """Return when a steward last observed the farm, or None if never."""
        return await self._farm.last_heartbeat_ms()

    async def set_stopping(self, *, stopping: bool) -> None:
        """Store whether the operator is stopping the farm."""
        await self._farm.set_stopping(stopping=stopping)

    async def is_stopping(self) -> bool:
        """Return whether the operator is stopping the farm."""
        return await self._farm.is_stopping()

    async def put_hosts(self, hosts: Sequence[Host]) -> None:
        """Store hosts, new or known; one that is not named stays as it was."""
        await self._farm.put_hosts(hosts)

    async def set_cordoned(self, host_id: str, *, cordoned: bool) -> None:
        """Store whether new slices are kept off a host; raises NotFoundError."""
        await self._farm.set_cordoned(host_id, cordoned=cordoned)

    async def forget_host(self, host_id: str) -> None:
        """Remove a host; raises NotFoundError."""
        await self._farm.forget_host(host_id)

    async def hosts(self) -> Sequence[Host]:
        """Return the hosts last seen, without nodes."""
        return await self._farm.hosts()

    async def commit(self) -> None:
        """Keep everything."""
        await self._transaction.commit()
