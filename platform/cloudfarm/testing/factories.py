"""Records for tests, and the shortest ways to store and read them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.ledger import LedgerEntry, amount
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.tenant import Credential, CredentialKind, Role
from cloudfarm.domain.workload import Job, ModelVersion, Revision, Service
from cloudfarm.ports import Store, UnitOfWork

T = TypeVar("T")

ASK = Ask(Shape(2, 500), cpus=4, memory_bytes=3 * GIB, duration_ms=3_600_000)


def make_lease(lease_id: str = "l1", tenant: str = "kaist", created_ms: int = 10, **changes: Any) -> Lease:
    """Return a waiting lease of 2 x 0.5 GPU."""
    lease = Lease(lease_id, tenant, "kim", f"name of {lease_id}", LeaseKind.MANUAL, ASK, created_ms)
    return replace(lease, **changes)


def make_job(job_id: str = "j1", tenant: str = "kaist", submission_id: str = "train", **changes: Any) -> Job:
    """Return a pending job in the lease ``l1``."""
    job = Job(
        job_id, tenant, "kim", submission_id, "l1", owns_lease=True, entrypoint="python x.py", created_ms=10
    )
    return replace(job, **changes)


def make_service(
    service_id: str = "s1", tenant: str = "kaist", name: str = "wind", **changes: Any
) -> Service:
    """Return a service of replicas of half a GPU."""
    return replace(Service(service_id, tenant, "kim", name, 500, 4, 8 * GIB, 10), **changes)


def make_revision(
    revision_id: str = "r1", service_id: str = "s1", model_id: str = "m1", **changes: Any
) -> Revision:
    """Return a pending revision of the service ``wind``."""
    revision = Revision(revision_id, service_id, "kaist", "wind", 1, model_id, "a:b", 10)
    return replace(revision, **changes)


def make_credential(credential_id: str = "c1", tenant: str | None = "kaist", **changes: Any) -> Credential:
    """Return a member's token."""
    secret = f"hash of {credential_id}"
    credential = Credential(credential_id, CredentialKind.TOKEN, tenant, "kim", Role.MEMBER, secret, 10)
    return replace(credential, **changes)


def make_entry(
    lease_id: str = "l1",
    segment: int = 1,
    start_ms: int = 1000,
    end_ms: int = 5000,
    *,
    tenant: str = "kaist",
    milli_gpus: int = 1000,
    project: str = "",
) -> LedgerEntry:
    """Return a ledger entry whose amount is right."""
    seconds = amount(milli_gpus, start_ms, end_ms)
    return LedgerEntry(tenant, lease_id, segment, "manual", milli_gpus, start_ms, end_ms, seconds, project)


async def keep(store: Store, work: Callable[[UnitOfWork], Awaitable[T]]) -> T:
    """Do something in a unit of work and commit it."""
    async with store.begin() as uow:
        result = await work(uow)
        await uow.commit()
        return result


async def look(store: Store, work: Callable[[UnitOfWork], Awaitable[T]]) -> T:
    """Read something."""
    async with store.begin(write=False) as uow:
        return await work(uow)


async def add(store: Store, **records: Sequence[Any]) -> None:
    """Store records, given by the name of their repository, in one unit of work."""
    async with store.begin() as uow:
        for repository, each in records.items():
            for record in each:
                await getattr(uow, repository).add(record)
        await uow.commit()


async def register(
    store: Store,
    name: str = "wind",
    job_id: str | None = None,
    *,
    tenant: str = "kaist",
    manifest: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Register a model."""
    return await keep(
        store,
        lambda uow: uow.models.register(
            tenant=tenant, name=name, uri=f"/models/{name}", job_id=job_id, manifest=manifest or {}, now_ms=7
        ),
    )


def ids(records: Iterable[Any]) -> list[str]:
    """Return the ids of records."""
    return [record.id for record in records]
