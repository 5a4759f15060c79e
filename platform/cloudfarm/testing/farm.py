"""A whole farm in memory: the real steward over the memory store and the fakes, moved on by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.quantities import parse_shape
from cloudfarm.domain.quota import Quota
from cloudfarm.domain.status import Target
from cloudfarm.domain.tenant import Tenant
from cloudfarm.domain.workload import Job, Revision, Service
from cloudfarm.scheduler.foreseeing import foreseeing
from cloudfarm.scheduler.history import Memory
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.steward.act import Actor
from cloudfarm.steward.checkpoints import Checkpoints
from cloudfarm.steward.loop import Steward
from cloudfarm.steward.observe import Observer
from cloudfarm.steward.past import Past
from cloudfarm.steward.view import Policy
from cloudfarm.testing.clock import ManualClock
from cloudfarm.testing.fake_farm import GIB, FakeHosts, FakeRayJobs, FakeWatch, make_host
from cloudfarm.testing.fake_serving import FakeServing
from cloudfarm.testing.memory_artifacts import MemoryArtifacts
from cloudfarm.testing.memory_store import MemoryStore

POLICY = Policy(start_timeout_ms=60_000, notice_ms=30_000, host_lost_ms=60_000)
MAX_STEPS = 50


@dataclass(slots=True)
class MemoryFarm:
    """Two hosts with two GPUs each, tenants ``a`` and ``b``, and a steward that may crash at any time."""

    clock: ManualClock = field(default_factory=ManualClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    artifacts: MemoryArtifacts = field(init=False)
    hosts: FakeHosts = field(init=False)
    ray_jobs: FakeRayJobs = field(init=False)
    serving: FakeServing = field(default_factory=FakeServing)
    watch: FakeWatch = field(init=False)
    steward: Steward = field(init=False)
    limit_milli_gpus: int = 4000
    rules: Rules = field(default_factory=Rules)
    quotas: Sequence[Quota] = ()
    """Beside those that tenants have by default."""

    def __post_init__(self) -> None:
        self.artifacts = MemoryArtifacts(clock=self.clock)
        self.hosts = FakeHosts(self.clock, {name: make_host(name) for name in ("h0", "h1")})
        self.serving.hosts = self.hosts
        self.ray_jobs = FakeRayJobs(self.clock)
        self.watch = FakeWatch(self.clock, self.ray_jobs)
        self.steward = self.new_steward()

    def new_steward(self) -> Steward:
        """Return another steward over the same world; it acts once it has taken over."""
        return Steward(
            store=self.store,
            clock=self.clock,
            observer=Observer(
                self.store,
                self.clock,
                self.hosts,
                self.ray_jobs,
                self.serving,
                Checkpoints(self.artifacts),
                Past(Memory()),
                self.limit_milli_gpus,
                gpu_reserve_percent=3,
            ),
            actor=Actor(
                self.store,
                self.clock,
                self.hosts,
                self.ray_jobs,
                self.serving,
                self.artifacts,
                max_log_bytes=1_000_000,
            ),
            watch=self.watch,
            admit=foreseeing(
                fair(self.rules, lambda view: view.quotas), self.rules, lambda view: view.quotas
            ),
            next_look_ms=lambda view: next_look_ms(view, self.rules, view.quotas),
            policy=POLICY,
            tick_s=1.0,
            watch_s=1.0,
        )

    async def begin(self) -> None:
        """Make the tenants and let the steward take over."""
        async with self.store.begin() as uow:
            for name in ("a", "b"):
                await uow.tenants.add(Tenant(name, name, self.clock.now_ms()))
            await uow.quotas.replace_all(self.quotas)
            await uow.commit()
        await self.steward.take_over()

    async def crash(self) -> None:
        """Lose the steward; another one takes over."""
        self.hosts.forget()
        self.steward = self.new_steward()
        await self.steward.take_over()

    async def step(self) -> int:
        """Let the steward look once, and wait for all that it orders; return how many decisions changed something."""
        changed = await self.steward.step()
        await self.steward.actor.finish()
        if self.steward.actor.troubles.mistake is not None:
            raise self.steward.actor.troubles.mistake
        return changed

    async def settle(self) -> None:
        """Step until nothing changes any more, Serve's replicas included; time stands still."""
        before = None
        for _ in range(MAX_STEPS):
            changed = await self.step()
            replicas = self.serving.replicas()
            if not changed and replicas == before:
                return
            before = replicas
        raise AssertionError(f"the farm did not come to rest within {MAX_STEPS} steps")

    async def request(
        self,
        lease_id: str,
        shape: str,
        *,
        tenant: str = "a",
        hours: float = 1.0,
        kind: LeaseKind = LeaseKind.MANUAL,
        project: str = "",
    ) -> None:
        """Queue a lease."""
        ask = Ask(parse_shape(shape), cpus=1, memory_bytes=GIB, duration_ms=int(hours * 3_600_000))
        lease = Lease(lease_id, tenant, "kim", lease_id, kind, ask, self.clock.now_ms(), project=project)
        async with self.store.begin() as uow:
            await uow.leases.add(lease)
            await uow.commit()

    async def release(self, lease_id: str) -> None:
        """Give a lease back."""
        async with self.store.begin() as uow:
            await uow.leases.update(replace(await uow.leases.get(lease_id), target=Target.END))
            await uow.commit()

    async def submit(self, job_id: str, lease_id: str, *, tenant: str = "a", owns_lease: bool = True) -> Job:
        """Queue a job in a lease."""
        job = Job(job_id, tenant, "kim", job_id, lease_id, owns_lease, "python x.py", self.clock.now_ms())
        async with self.store.begin() as uow:
            await uow.jobs.add(job)
            await uow.commit()
        return job

    async def lease(self, lease_id: str) -> Lease:
        """Return a lease as stored."""
        async with self.store.begin(write=False) as uow:
            return await uow.leases.get(lease_id)

    async def job(self, job_id: str) -> Job:
        """Return a job as stored."""
        async with self.store.begin(write=False) as uow:
            return await uow.jobs.get(job_id)

    async def service(self, service_id: str) -> Service:
        """Return a service as stored."""
        async with self.store.begin(write=False) as uow:
            return await uow.services.get(service_id)

    async def deploy(
        self,
        name: str,
        *,
        tenant: str = "a",
        milli_gpus: int = 500,
        import_path: str = "a:b",
        manifest: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Service:
        """Keep a new service, or give the one of that name another revision; both have ids made of its name."""
        now_ms = self.clock.now_ms()
        async with self.store.begin() as uow:
            number = await uow.revisions.last_number(tenant, name) + 1
            model = await uow.models.register(
                tenant=tenant,
                name=name,
                uri=f"/{name}/{number}",
                job_id=None,
                manifest=manifest or {},
                now_ms=now_ms,
            )
            canary = settings.pop("canary_percent", 0)
            if number == 1:
                service = Service(f"s-{name}", tenant, "kim", name, milli_gpus, 1, GIB, now_ms, **settings)
                await uow.services.add(replace(service, current_id=f"r-{name}-1"))
            else:
                service = await uow.services.find(tenant, name)
                for each in await uow.revisions.list(service_id=service.id, open_only=True):
                    if each.id != service.current_id and each.target is Target.RUN:
                        await uow.revisions.update(each.leave(now_ms, f"gave way to revision {number}"))
            await uow.revisions.add(
                Revision(
                    f"r-{name}-{number}",
                    service.id,
                    tenant,
                    name,
                    number,
                    model.id,
                    import_path,
                    now_ms,
                    replicas=max(1, service.min_replicas),
                    canary_percent=canary,
                    promoted_ms=now_ms if number == 1 else None,
                )
            )
            await uow.commit()
        return await self.service(service.id)

    async def undeploy(self, service_id: str) -> None:
        """Delete a service."""
        async with self.store.begin() as uow:
            service = await uow.services.get(service_id)
            await uow.services.update(replace(service, target=Target.END))
            for revision in await uow.revisions.list(service_id=service_id, open_only=True):
                await uow.revisions.update(revision.leave(self.clock.now_ms(), "its service is deleted"))
            await uow.commit()

    async def revisions(self, service_id: str) -> Sequence[Revision]:
        """Return a service's revisions as stored."""
        async with self.store.begin(write=False) as uow:
            return await uow.revisions.list(service_id=service_id)

    async def leases_of(self, revision_id: str) -> Sequence[Lease]:
        """Return the open leases of a revision."""
        async with self.store.begin(write=False) as uow:
            leases = await uow.leases.list(open_only=True)
        return [lease for lease in leases if lease.revision_id == revision_id]
