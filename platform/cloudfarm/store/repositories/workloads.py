"""Jobs, services and their revisions."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select

from cloudfarm.domain.workload import Job, Revision, Service
from cloudfarm.errors import ConflictError, NotFoundError
from cloudfarm.store import rows
from cloudfarm.store.records import Records
from cloudfarm.store.transaction import Transaction


class SqlJobs:
    """See :class:`cloudfarm.ports.JobRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self.records = Records(transaction, rows.jobs, Job, "job")

    async def add(self, job: Job) -> None:
        """Store a new job."""
        await self.records.insert(job, taken=f"{job.tenant} has a job {job.submission_id} already")

    async def get(self, job_id: str) -> Job:
        """Return a job by the farm's id."""
        return await self.records.get(job_id)

    async def find(self, tenant: str, submission_id: str) -> Job:
        """Return a tenant's job by its submission id."""
        table = rows.jobs
        found = await self.records.find(table.c.tenant == tenant, table.c.submission_id == submission_id)
        if found is None:
            raise self.records.missing(submission_id)
        return found

    async def list(
        self,
        *,
        tenant: str | None = None,
        open_only: bool = False,
        lease_id: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """Return jobs oldest first (with ``limit``: the newest so many, oldest first)."""
        where = [] if tenant is None else [rows.jobs.c.tenant == tenant]
        if lease_id is not None:
            where.append(rows.jobs.c.lease_id == lease_id)
        if open_only:
            where.append(rows.OPEN_JOBS)
        return await self.records.oldest_first(*where, limit=limit)

    async def update(self, job: Job) -> None:
        """Store changed fields other than ``status``, guarded by the version."""
        await self.records.update(job, step=False)

    async def delete(self, job_id: str) -> None:
        """Forget an ended job.

        Raises:
            NotFoundError: if there is none.
            ConflictError: if it has not ended.
        """
        done = await self.records.transaction.write(
            delete(rows.jobs).where(rows.jobs.c.id == job_id, ~rows.OPEN_JOBS),
        )
        if not done.rowcount:
            job = await self.records.get(job_id)
            raise ConflictError(f"job {job_id} is {job.status}; only an ended job can be forgotten")


class SqlServices:
    """See :class:`cloudfarm.ports.ServiceRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self.records = Records(transaction, rows.services, Service, "service")

    async def add(self, service: Service) -> None:
        """Store a new service."""
        await self.records.insert(service, taken=f"{service.tenant} has a service {service.name} already")

    async def get(self, service_id: str) -> Service:
        """Return a service."""
        return await self.records.get(service_id)

    async def find(self, tenant: str, name: str) -> Service:
        """Return a tenant's live service by name."""
        table = rows.services
        found = await self.records.find(table.c.tenant == tenant, table.c.name == name, rows.OPEN_SERVICES)
        if found is None:
            raise NotFoundError(f"there is no service {name}")
        return found

    async def find_shared(self, name: str) -> Service:
        """Return the oldest live service of that name that is open to all tenants."""
        table = rows.services
        found = await self.records.oldest_first(table.c.name == name, table.c.shared, rows.OPEN_SERVICES)
        if not found:
            raise NotFoundError(f"there is no service {name}")
        return found[0]

    async def list(self, *, tenant: str | None = None, open_only: bool = False) -> Sequence[Service]:
        """Return services oldest first."""
        where = [] if tenant is None else [rows.services.c.tenant == tenant]
        if open_only:
            where.append(rows.OPEN_SERVICES)
        return await self.records.oldest_first(*where)

    async def update(self, service: Service) -> None:
        """Store changed fields other than ``status``, guarded by the version."""
        await self.records.update(service, step=False)


class SqlRevisions:
    """See :class:`cloudfarm.ports.RevisionRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        self.records = Records(transaction, rows.revisions, Revision, "revision")

    async def add(self, revision: Revision) -> None:
        """Store a new revision."""
        taken = f"{revision.tenant} has a revision {revision.number} of {revision.name} already"
        await self.records.insert(revision, taken=taken)

    async def get(self, revision_id: str) -> Revision:
        """Return a revision."""
        return await self.records.get(revision_id)

    async def last_number(self, tenant: str, name: str) -> int:
        """Return the highest number of a tenant's revisions of that name."""
        table = rows.revisions
        query = select(func.max(table.c.number)).where(table.c.tenant == tenant, table.c.name == name)
        return (await self.records.transaction.read(query)).scalar_one() or 0

    async def list(self, *, service_id: str | None = None, open_only: bool = False) -> Sequence[Revision]:
        """Return revisions oldest first."""
        where = [] if service_id is None else [rows.revisions.c.service_id == service_id]
        if open_only:
            where.append(rows.OPEN_REVISIONS)
        table = rows.revisions
        return await self.records.list(*where, by=(table.c.created_ms, table.c.number, table.c.id))

    async def update(self, revision: Revision) -> None:
        """Store changed fields other than ``status``, guarded by the version."""
        await self.records.update(revision, step=False)
