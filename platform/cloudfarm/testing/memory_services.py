"""The repositories of services and their revisions in memory."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from cloudfarm.domain.workload import Revision, Service
from cloudfarm.testing.memory_repositories import Records


class Services(Records[Service]):
    """See :class:`cloudfarm.ports.ServiceRepository`."""

    async def add(self, service: Service) -> None:
        """Store a new one."""
        self.unit.writing()
        there = self._find(service.tenant, service.name) is not None
        self.insert(service, taken=f"{service.tenant} has a service {service.name} already" if there else "")

    async def find(self, tenant: str, name: str) -> Service:
        """Return the one meant."""
        self.unit.reading()
        found = self._find(tenant, name)
        if found is None:
            raise self.missing(name)
        return found

    async def find_shared(self, name: str) -> Service:
        """Return the one meant."""
        found = self.oldest_first(lambda row: row.name == name and row.shared and not row.status.is_terminal)
        if not found:
            raise self.missing(name)
        return found[0]

    async def list(self, *, tenant: str | None = None, open_only: bool = False) -> Sequence[Service]:
        """Return those asked for, in the port's order."""
        return self.oldest_first(
            lambda row: tenant in (None, row.tenant) and not (open_only and row.status.is_terminal)
        )

    async def update(self, service: Service) -> None:
        """Store changed fields."""
        self.put(service, step=False)

    def _find(self, tenant: str, name: str) -> Service | None:
        live = (row for row in self.rows.values() if not row.status.is_terminal)
        return next((row for row in live if (row.tenant, row.name) == (tenant, name)), None)


class Revisions(Records[Revision]):
    """See :class:`cloudfarm.ports.RevisionRepository`."""

    refers: ClassVar[Mapping[str, str]] = {
        "tenant": "tenants",
        "service_id": "services",
        "model_id": "models",
    }

    async def add(self, revision: Revision) -> None:
        """Store a new one."""
        self.unit.writing()
        there = revision.number in self._numbers(revision.tenant, revision.name)
        taken = f"{revision.tenant} has a revision {revision.number} of {revision.name} already"
        self.insert(revision, taken=taken if there else "")

    async def last_number(self, tenant: str, name: str) -> int:
        """Return the highest number."""
        self.unit.reading()
        return max(self._numbers(tenant, name), default=0)

    async def list(self, *, service_id: str | None = None, open_only: bool = False) -> Sequence[Revision]:
        """Return those asked for, in the port's order."""
        found = self.oldest_first(
            lambda row: service_id in (None, row.service_id) and not (open_only and row.status.is_terminal)
        )
        return sorted(found, key=lambda row: (row.created_ms, row.number))

    async def update(self, revision: Revision) -> None:
        """Store changed fields."""
        self.put(revision, step=False)

    def _numbers(self, tenant: str, name: str) -> set[int]:
        return {row.number for row in self.rows.values() if (row.tenant, row.name) == (tenant, name)}
