"""The front door in memory: two tenants with a token for each role, and what a steward would do, by hand."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from cloudfarm.api import ApiContext, create_app
from cloudfarm.artifacts import FileArtifacts
from cloudfarm.domain.bundles import CAUSAL_LM, LORA_ADAPTER, version_of
from cloudfarm.domain.host import Host
from cloudfarm.domain.ledger import LedgerEntry, amount
from cloudfarm.domain.status import JobStatus, LeaseStatus, RevisionStatus, transition
from cloudfarm.domain.tenant import Credential, CredentialKind, Role, Tenant, hash_secret, new_secret
from cloudfarm.domain.workload import Job, ModelVersion
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.settings import Settings
from cloudfarm.steward.placing import lease_for_replica
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.fake_apps import FakeApps
from cloudfarm.testing.fake_farm import make_host
from cloudfarm.testing.fakes_api import FakeInference, FakeLiveLogs, FakeNudge, RecordingMeter
from cloudfarm.testing.memory_journal import MemoryJournal
from cloudfarm.testing.memory_store import MemoryStore
from cloudfarm.usecases import paths

TENANTS = ("alpha", "beta")
BASE_URL = "http://farm.test"


@dataclass(slots=True)
class FrontDoor:
    """A front door with its parts at hand.

    ``tokens`` has ``operator``, and for each tenant ``<tenant>.admin``, ``.member``, ``.viewer`` and
    ``.key``.
    """

    context: ApiContext
    app: FastAPI
    store: Store
    clock: ManualClock
    live_logs: FakeLiveLogs
    inference: FakeInference
    apps: FakeApps
    meter: RecordingMeter
    nudge: FakeNudge
    tokens: dict[str, str] = field(default_factory=dict)

    def client(self, who: str | None = None, **headers: str) -> httpx.AsyncClient:
        """Return a client with that token (``alpha.member``), or with none."""
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=BASE_URL, headers=headers)

    async def call(self, who: str | None, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Send one request."""
        async with self.client(who) as client:
            return await client.request(method, path, **kwargs)

    async def submit(self, who: str = "alpha.member", **fields: Any) -> str:
        """Submit a job and return its submission id."""
        answer = await self.call(who, "POST", "/api/jobs/", json={"entrypoint": "python train.py", **fields})
        assert answer.status_code == 200, answer.text  # noqa: PLR2004 - a test helper
        submission_id: str = answer.json()["submission_id"]
        return submission_id

    async def lease(self, who: str = "alpha.member", **fields: Any) -> dict[str, Any]:
        """Request a lease and return it."""
        answer = await self.call(who, "POST", "/v1/leases", json={"gpus": "0.5", **fields})
        assert answer.status_code == 201, answer.text  # noqa: PLR2004 - a test helper
        lease: dict[str, Any] = answer.json()
        return lease

    # === What a steward would do ===

    async def start_lease(self, lease_id: str) -> None:
        """Make a lease active."""
        now_ms = self.clock.now_ms()
        async with self.store.begin() as uow:
            lease = await uow.leases.get(lease_id)
            await uow.apply(transition(lease, LeaseStatus.STARTING, now_ms=now_ms, granted_ms=now_ms))
            lease = await uow.leases.get(lease_id)
            ends_ms = now_ms + lease.ask.duration_ms
            await uow.apply(
                transition(
                    lease,
                    LeaseStatus.ACTIVE,
                    now_ms=now_ms,
                    started_ms=now_ms,
                    ends_ms=ends_ms,
                    segment=1,
                    message="",
                ),
            )
            await uow.commit()

    async def end_lease(self, lease_id: str) -> None:
        """End an active lease and charge it."""
        now_ms = self.clock.now_ms()
        async with self.store.begin() as uow:
            await uow.apply(transition(await uow.leases.get(lease_id), LeaseStatus.ENDING, now_ms=now_ms))
            lease = await uow.leases.get(lease_id)
            await uow.apply(transition(lease, LeaseStatus.ENDED, now_ms=now_ms, ended_ms=now_ms))
            started_ms = lease.started_ms or now_ms
            cost = amount(lease.milli_gpus, started_ms, now_ms)
            await uow.ledger.append(
                LedgerEntry(
                    lease.tenant,
                    lease.id,
                    1,
                    lease.kind.value,
                    lease.milli_gpus,
                    started_ms,
                    now_ms,
                    cost,
                    lease.project,
                ),
            )
            await uow.commit()

    async def say(self, lease_id: str, message: str) -> None:
        """Give a waiting lease's reason."""
        async with self.store.begin() as uow:
            await uow.leases.update(replace(await uow.leases.get(lease_id), message=message))
            await uow.commit()

    async def job(self, submission_id: str, tenant: str = "alpha") -> Job:
        """Return a job's record."""
        async with self.store.begin(write=False) as uow:
            return await uow.jobs.find(tenant, submission_id)

    async def move_job(
        self,
        submission_id: str,
        status: JobStatus,
        *,
        tenant: str = "alpha",
        log: str | None = None,
        attempt: int = 0,
    ) -> None:
        """Give a job another status, and its archived log."""
        job = await self.job(submission_id, tenant)
        changes: dict[str, Any] = {"submitted_ms": self.clock.now_ms(), "attempt": attempt}
        if log is not None:
            parts = paths.job_log(job)
            await self.context.artifacts.write(*parts, data=once(log.encode()), max_bytes=2**30)
            changes["log_uri"] = self.context.artifacts.uri(*parts)
        if status.is_terminal:
            changes |= {"ended_ms": self.clock.now_ms(), "driver_exit_code": 0}
        async with self.store.begin() as uow:
            fresh = await uow.jobs.get(job.id)
            await uow.apply(
                transition(fresh, status, now_ms=self.clock.now_ms(), message=str(status), **changes)
            )
            await uow.commit()

    async def model(self, name: str = "wind", tenant: str = "alpha", **manifest: Any) -> ModelVersion:
        """Register a model that the farm can serve, with these members of its manifest."""
        async with self.store.begin() as uow:
            model = await uow.models.register(
                tenant=tenant,
                name=name,
                uri=f"/models/{name}",
                job_id=None,
                manifest={"kind": "windpower-forecaster", **manifest},
                now_ms=self.clock.now_ms(),
            )
            await uow.commit()
        return model

    async def serve(self, name: str, kind: str = CAUSAL_LM, tenant: str = "alpha") -> ModelVersion:
        """Register a model whose weights are its name's, and make a service of that name run it."""
        weights = {"model.safetensors": {"bytes": 1, "sha256": hashlib.sha256(name.encode()).hexdigest()}}
        model = await self.model(name, tenant, kind=kind, files=weights)
        body = {"model": name, "gpus": 0.25}
        answer = await self.call(f"{tenant}.member", "POST", "/v1/services", json=body)
        assert answer.status_code == 201, answer.text  # noqa: PLR2004 - a test helper
        await self.start_service(name, tenant)
        return model

    async def adapter(self, name: str, base: ModelVersion, tenant: str = "alpha") -> ModelVersion:
        """Register an adapter for the weights of another model."""
        return await self.model(name, tenant, kind=LORA_ADAPTER, spec={"base": version_of(base.manifest)})

    async def start_service(self, name: str, tenant: str = "alpha") -> None:
        """Make everything run that a service has, each replica in a lease of its own."""
        now_ms = self.clock.now_ms()
        async with self.store.begin() as uow:
            service = await uow.services.find(tenant, name)
            revisions = await uow.revisions.list(service_id=service.id, open_only=True)
            for revision in revisions:
                for _ in range(revision.replicas):
                    lease = lease_for_replica(service, revision, now_ms)
                    await uow.leases.add(replace(lease, status=LeaseStatus.ACTIVE, started_ms=now_ms))
            await uow.commit()
        for revision in revisions:
            await self.move_revision(revision.id, RevisionStatus.RUNNING)

    async def move_revision(self, revision_id: str, status: RevisionStatus, **changes: Any) -> None:
        """Give a revision another status, and what else is to be changed of it."""
        now_ms = self.clock.now_ms()
        async with self.store.begin() as uow:
            revision = replace(await uow.revisions.get(revision_id), **changes)
            if revision.status is status:
                await uow.revisions.update(revision)
            else:
                await uow.apply(transition(revision, status, now_ms=now_ms))
            await uow.commit()


@asynccontextmanager
async def open_front_door(
    folder: Path,
    *,
    hosts: tuple[Host, ...] = (make_host("h0"), make_host("h1")),
    store: Store | None = None,
    **settings: Any,
) -> AsyncIterator[FrontDoor]:
    """Open a front door over an empty store, by default in memory; its files go into the folder."""
    store, clock = store or MemoryStore(), ManualClock()
    live_logs, inference, meter, nudge = (
        FakeLiveLogs(),
        FakeInference(),
        RecordingMeter(store, clock, MemoryJournal()),
        FakeNudge(),
    )
    apps = FakeApps()
    context = ApiContext(
        store=store,
        clock=clock,
        settings=Settings(state_dir=folder, **settings),
        artifacts=FileArtifacts(str(folder / "artifacts")),
        live_logs=live_logs,
        inference=inference,
        apps=apps,
        meter=meter,
        nudge=nudge,
        log_poll_s=0.0,
    )
    door = FrontDoor(context, create_app(context), store, clock, live_logs, inference, apps, meter, nudge)
    async with store.begin() as uow:
        await uow.put_hosts(hosts)
        await _add_credential(uow, door, None, Role.OPERATOR)
        for slug in TENANTS:
            await uow.tenants.add(Tenant(slug, slug.title(), clock.now_ms()))
            for role in (Role.ADMIN, Role.MEMBER, Role.VIEWER):
                await _add_credential(uow, door, slug, role)
            await _add_credential(uow, door, slug, Role.VIEWER, CredentialKind.KEY)
        await uow.commit()
    async with door.app.router.lifespan_context(door.app):
        yield door


async def _add_credential(
    uow: UnitOfWork,
    door: FrontDoor,
    tenant: str | None,
    role: Role,
    kind: CredentialKind = CredentialKind.TOKEN,
) -> None:
    name = "key" if kind is CredentialKind.KEY else role.value
    who = name if tenant is None else f"{tenant}.{name}"
    secret = new_secret(kind)
    door.tokens[who] = secret
    await uow.credentials.add(
        Credential(
            id=f"c-{who.replace('.', '-')}",
            kind=kind,
            tenant=tenant,
            user=f"{name}-of-{tenant or 'farm'}",
            role=role,
            secret_sha256=hash_secret(secret),
            created_ms=door.clock.now_ms(),
        ),
    )


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Yield the data in one piece."""
    yield data
