"""The farm's records. ``store`` implements these; ``testing`` has the fake."""

from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from cloudfarm.domain.host import Host
from cloudfarm.domain.lease import Lease
from cloudfarm.domain.ledger import LedgerEntry
from cloudfarm.domain.quota import Quota
from cloudfarm.domain.served import DayUse, Note
from cloudfarm.domain.status import Event, Transition
from cloudfarm.domain.tenant import Credential, Limits, Tenant
from cloudfarm.domain.workload import Job, ModelVersion, Revision, Service


class TenantRepository(Protocol):
    """Tenants, by slug."""

    async def add(self, tenant: Tenant) -> None:
        """Store a new tenant; raises AlreadyExistsError."""

    async def get(self, tenant_id: str) -> Tenant:
        """Return a tenant; raises NotFoundError."""

    async def hold(self, tenant_id: str) -> Tenant:
        """As :meth:`get`; whoever else holds the tenant waits until this transaction has ended."""

    async def list(self) -> Sequence[Tenant]:
        """Return all tenants by slug."""

    async def update(self, tenant: Tenant) -> None:
        """Store changed fields; raises NotFoundError."""


class CredentialRepository(Protocol):
    """Tokens and keys, by id and by the hash of the secret."""

    async def add(self, credential: Credential) -> None:
        """Store a new credential; raises AlreadyExistsError."""

    async def find(self, secret_sha256: str) -> Credential | None:
        """Return the credential of a secret, live or not, or None."""

    async def get(self, credential_id: str) -> Credential:
        """Return a credential; raises NotFoundError."""

    async def list(self, tenant: str | None) -> Sequence[Credential]:
        """Return a tenant's credentials (operators' for None), newest first."""

    async def list_limited(self) -> Sequence[Credential]:
        """Return those that have a limit and are not revoked, by id."""

    async def find_dead(self, ids: Collection[str], now_ms: int) -> frozenset[str]:
        """Return which of some credentials are revoked, have expired, or are of a tenant that is closed."""

    async def limit(self, credential_id: str, limits: Limits) -> None:
        """Store other limits; raises NotFoundError."""

    async def revoke(self, credential_id: str, now_ms: int) -> None:
        """Revoke now; raises NotFoundError; a second time changes nothing."""


class LeaseRepository(Protocol):
    """Leases with their slices."""

    async def add(self, lease: Lease) -> None:
        """Store a new lease."""

    async def get(self, lease_id: str) -> Lease:
        """Return a lease; raises NotFoundError."""

    async def list(
        self,
        *,
        tenant: str | None = None,
        revision_id: str | None = None,
        open_only: bool = False,
        limit: int | None = None,
    ) -> Sequence[Lease]:
        """Return leases oldest first (with ``limit``: the newest so many, oldest first)."""

    async def list_open(self, known: Mapping[str, Lease]) -> Sequence[Lease]:
        """As ``list(open_only=True)``; of leases in ``known`` (by id) only those are read that have changed since.

        Whether one has changed its ``version`` tells, which every stored change counts up.
        """

    async def update(self, lease: Lease) -> None:
        """Store changed fields other than ``status``, if ``version`` is still the stored one, and count it up.

        Raises:
            StaleError: if somebody else changed it meanwhile.
        """

    async def update_all(self, leases: Sequence[Lease]) -> set[str]:
        """As :meth:`update` for many different leases.

        Returns:
            The ids of those that are left out because somebody else changed them meanwhile, or that are not there.
        """


class JobRepository(Protocol):
    """Jobs."""

    async def add(self, job: Job) -> None:
        """Store a new job; raises AlreadyExistsError if the tenant has used the submission id."""

    async def get(self, job_id: str) -> Job:
        """Return a job by the farm's id; raises NotFoundError."""

    async def find(self, tenant: str, submission_id: str) -> Job:
        """Return a tenant's job by its submission id; raises NotFoundError."""

    async def list(
        self,
        *,
        tenant: str | None = None,
        open_only: bool = False,
        lease_id: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """Return jobs oldest first (with ``limit``: the newest so many, oldest first)."""

    async def update(self, job: Job) -> None:
        """As :meth:`LeaseRepository.update`."""

    async def delete(self, job_id: str) -> None:
        """Forget an ended job; its lease and ledger entries stay."""


class ServiceRepository(Protocol):
    """Services."""

    async def add(self, service: Service) -> None:
        """Store a new service; raises AlreadyExistsError if the tenant has a live one of that name."""

    async def get(self, service_id: str) -> Service:
        """Return a service; raises NotFoundError."""

    async def find(self, tenant: str, name: str) -> Service:
        """Return a tenant's live service by name; raises NotFoundError."""

    async def find_shared(self, name: str) -> Service:
        """Return the oldest live service of that name that is open to all tenants; raises NotFoundError."""

    async def list(self, *, tenant: str | None = None, open_only: bool = False) -> Sequence[Service]:
        """Return services oldest first."""

    async def update(self, service: Service) -> None:
        """As :meth:`LeaseRepository.update`."""


class RevisionRepository(Protocol):
    """What runs, or ran, of services."""

    async def add(self, revision: Revision) -> None:
        """Store a new revision; raises AlreadyExistsError if the number is taken."""

    async def get(self, revision_id: str) -> Revision:
        """Return a revision; raises NotFoundError."""

    async def last_number(self, tenant: str, name: str) -> int:
        """Return the highest number of all revisions that a tenant's services of that name have had; 0 for none."""

    async def list(self, *, service_id: str | None = None, open_only: bool = False) -> Sequence[Revision]:
        """Return revisions oldest first."""

    async def update(self, revision: Revision) -> None:
        """As :meth:`LeaseRepository.update`."""


class ModelRepository(Protocol):
    """Model versions; they never change."""

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
        """Store a model under its name's next number; the same (job_id, name) again returns the one stored before."""

    async def get(self, model_id: str) -> ModelVersion:
        """Return a version by id; raises NotFoundError."""

    async def find(self, tenant: str, name: str, number: int | None = None) -> ModelVersion:
        """Return a tenant's version by name, the newest if no number is given; raises NotFoundError."""

    async def list(self, tenant: str) -> Sequence[ModelVersion]:
        """Return a tenant's versions by name and number."""


class LedgerRepository(Protocol):
    """Append-only: there is no update and no delete, and the database itself refuses them."""

    async def append(self, entry: LedgerEntry) -> None:
        """Store an entry; the same (lease_id, segment) a second time raises AlreadyExistsError."""

    async def list(
        self,
        *,
        tenant: str | None = None,
        lease_id: str | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Sequence[LedgerEntry]:
        """Return entries that touch the interval, by start."""


class ServedRepository(Protocol):
    """What callers used of services. Append-only, as the ledger is."""

    async def append(self, batch: str, notes: Sequence[Note]) -> None:
        """Store a batch, all of it; the same batch a second time raises AlreadyExistsError.

        Raises:
            InvalidInputError: for a note that takes back, or that is longer than its minute.
        """

    async def days(
        self,
        *,
        tenant: str | None = None,
        from_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Sequence[DayUse]:
        """Return the sums of each UTC day and account, by day, of whole days or whatever the interval cuts.

        Args:
            tenant: only what this tenant called, or others called of its services.
            from_ms: only what ended from then on.
            until_ms: only what ended before.
        """

    async def tokens(self, *, tenant: str, key_id: str | None, from_ms: int, until_ms: int) -> int:
        """Return how many tokens a tenant's calls used, or those with one of its keys."""


class EventRepository(Protocol):
    """What happened; only ever added."""

    async def append(self, event: Event) -> None:
        """Store an event."""

    async def append_all(self, events: Sequence[Event]) -> None:
        """Store events, in their order."""

    async def list(
        self,
        *,
        tenant: str | None = None,
        subject: str | None = None,
        limit: int = 100,
    ) -> Sequence[Event]:
        """Return the newest events, newest first."""


class QuotaRepository(Protocol):
    """The farm's quotas: one tree, stored whole, since a part of one may be no tree."""

    async def list(self) -> Sequence[Quota]:
        """Return all quotas by id."""

    async def replace_all(self, quotas: Sequence[Quota]) -> None:
        """Store these instead of all that there are; who does so at the same time waits.

        Raises:
            AlreadyExistsError: if an id is given twice.
        """


class UnitOfWork(Protocol):
    """One transaction: nothing is kept unless :meth:`commit` is called. Never held across a Ray or network call."""

    tenants: TenantRepository
    credentials: CredentialRepository
    leases: LeaseRepository
    jobs: JobRepository
    services: ServiceRepository
    revisions: RevisionRepository
    models: ModelRepository
    ledger: LedgerRepository
    served: ServedRepository
    events: EventRepository
    quotas: QuotaRepository

    async def __aenter__(self) -> Self:
        """Begin."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Roll back whatever was not committed."""

    async def apply(self, step: Transition) -> None:
        """Store a status change with its event; raises StaleError as ``update`` does."""

    async def apply_all(self, steps: Sequence[Transition]) -> set[str]:
        """As :meth:`apply` for steps of many different leases.

        Returns:
            The ids of those that are left out, as of :meth:`LeaseRepository.update_all`; they have no event either.
        """

    async def take_epoch(self) -> int:
        """Count the steward's epoch up and return it: every older steward is fenced from now on."""

    async def check_epoch(self, epoch: int) -> None:
        """Raise FencedError if a newer epoch was taken (and hold the row, so that none is taken before the commit)."""

    async def heartbeat(self, now_ms: int) -> None:
        """Store that the steward observed the farm now."""

    async def last_heartbeat_ms(self) -> int | None:
        """Return when a steward last observed the farm, or None if never."""

    async def set_stopping(self, *, stopping: bool) -> None:
        """Store whether the operator is stopping the farm; taking a new epoch does not change it."""

    async def is_stopping(self) -> bool:
        """Return what :meth:`set_stopping` stored, False at first."""

    async def put_hosts(self, hosts: Sequence[Host]) -> None:
        """Store hosts' capacities and when they were seen, so that the API can show them.

        Not their nodes, and of a known host not whether it is cordoned: that is the operator's to say.
        """

    async def set_cordoned(self, host_id: str, *, cordoned: bool) -> None:
        """Store whether new slices are kept off a host; raises NotFoundError."""

    async def forget_host(self, host_id: str) -> None:
        """Remove a host; raises NotFoundError. One that is still there comes back when it is next seen."""

    async def hosts(self) -> Sequence[Host]:
        """Return the hosts last seen, without nodes."""

    async def commit(self) -> None:
        """Keep everything."""


class Store(Protocol):
    """Where units of work come from."""

    def begin(self, *, write: bool = True) -> UnitOfWork:
        """Return a unit of work to enter with ``async with``. Readers pass ``write=False`` and never wait."""

    async def close(self) -> None:
        """Let go of every connection."""
