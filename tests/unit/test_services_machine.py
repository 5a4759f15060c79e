"""Whatever happens to services in whatever order: who answers goes on, and nothing is held that nobody uses.

The machine of ``test_steward_machine.py`` with its faults, and services that are deployed, replaced, scaled, asked,
broken and deleted, while Serve is slow to let go of replicas or cannot be seen.
"""

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, rule

from cloudfarm.domain.lease import LeaseKind
from cloudfarm.domain.load import Load, LoadReport
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus, Target
from cloudfarm.steward.services import LEAVE_MS

from .test_steward_machine import FarmMachine

HOUR_MS = 3_600_000


class ServicesMachine(FarmMachine):
    services = Bundle("services")

    def __init__(self) -> None:
        super().__init__()
        self.loads: dict[str, Load] = {}
        self.seen = None

    @rule(
        target=services,
        bounds=st.sampled_from([(0, 1), (1, 1), (0, 3), (1, 3), (2, 2)]),
        milli_gpus=st.sampled_from([0, 300, 500, 1000]),
    )
    def deploy(self, bounds: tuple[int, int], milli_gpus: int) -> str:
        name = self.new_id("w")
        settings_of = {
            "min_replicas": bounds[0],
            "max_replicas": bounds[1],
            "idle_ms": 10_000,
            "target_load": 4,
        }
        self.do(self.farm.deploy(name, milli_gpus=milli_gpus, **settings_of))
        return name

    @rule(name=services, canary=st.sampled_from([0, 0, 30]), broken=st.booleans())
    def replace_model(self, name: str, canary: int, broken: bool) -> None:
        number = len(self.do(self.farm.revisions(f"s-{name}"))) + 1
        if broken:
            self.farm.serving.failing.add(f"a.{name}.{number}")
        self.do(self.farm.deploy(name, canary_percent=canary))

    @rule(name=services)
    def promote(self, name: str) -> None:
        async def work() -> None:
            async with self.farm.store.begin() as uow:
                for revision in await uow.revisions.list(service_id=f"s-{name}", open_only=True):
                    await uow.revisions.update(replace(revision, canary_percent=0))
                await uow.commit()

        self.do(work())

    @rule(name=services, peak=st.sampled_from([0, 1, 5, 12]))
    def ask(self, name: str, peak: int) -> None:
        self.loads[f"s-{name}"] = Load(peak, 0, self.farm.clock.now_ms() if peak else 0)
        self.report()

    @rule()
    def report(self) -> None:
        now_ms = self.farm.clock.now_ms()
        self.farm.steward.report(LoadReport(now_ms, now_ms - HOUR_MS, dict(self.loads)))

    @rule(name=consumes(services))
    def undeploy(self, name: str) -> None:
        self.do(self.farm.undeploy(f"s-{name}"))

    @rule(name=services, number=st.sampled_from([1, 2]), on=st.booleans())
    def streams(self, name: str, number: int, on: bool) -> None:
        (self.farm.serving.busy.add if on else self.farm.serving.busy.discard)(f"a.{name}.{number}")

    @rule(down=st.booleans())
    def serve_trouble(self, down: bool) -> None:
        self.farm.serving.down = down

    def calm(self) -> None:
        super().calm()
        self.farm.serving.down = False
        self.farm.serving.busy.clear()

    async def everything_ends(self) -> None:
        for service in await self.live():
            await self.farm.undeploy(service.id)
        await self.settle()
        await super().everything_ends()
        assert await self.live() == []
        assert self.farm.serving.applied == {}

    async def settle(self) -> None:
        """Come to rest: what is replaced gives way after a while, and then makes room for others."""
        for _ in range(8):
            await self.farm.settle()
            self.farm.clock.advance(LEAVE_MS)
        await self.farm.settle()

    async def live(self):
        async with self.farm.store.begin(write=False) as uow:
            return [each for each in await uow.services.list(open_only=True) if each.target is Target.RUN]

    async def step_and_look(self) -> None:
        """One step, and what must never come of it."""
        farm, serving = self.farm, self.farm.serving
        before = await self.all_leases()
        current = {service.id: service.current_id for service in await self.live()}
        applied = set(serving.applied)
        observer = farm.steward.observer
        object.__setattr__(observer, "serving", _Seen(self))
        await farm.steward.step()
        await farm.steward.actor.finish()
        object.__setattr__(observer, "serving", serving)
        after = await self.all_leases()
        seen = self.seen or {}
        occupied = {replica.node_id for app in seen.values() for replica in app.replicas}
        for lease_id, lease in before.items():
            released = (
                lease.kind is LeaseKind.SERVICE
                and (lease.status, lease.target) == (LeaseStatus.ACTIVE, Target.RUN)
                and after[lease_id].reason in (EndReason.SCALED_DOWN, EndReason.SERVICE_DELETED)
            )
            if released:
                assert self.seen is not None, "Serve could not be seen"
                assert occupied.isdisjoint(piece.node_id for piece in lease.slices)
        for service in await self.live():
            revisions = {each.id: each for each in await farm.revisions(service.id)}
            assert revisions[service.current_id].target is Target.RUN
            if service.id in current and current[service.id] != service.current_id:
                assert seen[revisions[service.current_id].app_name].running, "it took over and does not run"
            for revision in revisions.values():
                held = [
                    lease
                    for lease in after.values()
                    if lease.revision_id == revision.id
                    and (lease.status, lease.target) == (LeaseStatus.ACTIVE, Target.RUN)
                ]
                recent = revision.left_ms is None or farm.clock.now_ms() - revision.left_ms < LEAVE_MS
                if (
                    revision.app_name in applied
                    and recent
                    and held
                    and revision.status is RevisionStatus.RUNNING
                ):
                    assert revision.app_name in serving.applied, "requests may be on their way to it"

    async def all_leases(self):
        async with self.farm.store.begin(write=False) as uow:
            return {lease.id: lease for lease in await uow.leases.list()}

    @rule()
    def step_with_services(self) -> None:
        self.do(self.step_and_look())

    @rule()
    def calm_down_and_settle(self) -> None:
        self.calm()
        self.do(self.settle())
        self.do(self.work_is_conserved())
        self.do(self.services_are_as_wanted())

    async def services_are_as_wanted(self) -> None:
        """With no trouble left each revision has a lease for each replica, and each lease that is up a replica."""
        farm = self.farm
        async with farm.store.begin(write=False) as uow:
            leases = [
                lease
                for lease in await uow.leases.list(open_only=True)
                if lease.kind is LeaseKind.SERVICE and lease.target is Target.RUN
            ]
            revisions = {each.id: each for each in await uow.revisions.list(open_only=True)}
        assert {lease.revision_id for lease in leases} <= set(revisions)
        for revision in revisions.values():
            mine = [lease for lease in leases if lease.revision_id == revision.id]
            assert revision.target is Target.RUN
            assert len(mine) == revision.replicas
            up = {
                lease.slices[0].node_id
                for lease in mine
                if lease.status is LeaseStatus.ACTIVE and lease.preempted_ms is None
            }
            standing = farm.serving.nodes_of(revision.app_name)
            assert up <= standing
            broken = revision.app_name in farm.serving.failing
            if revision.replicas == 0:
                assert (revision.status, standing) == (RevisionStatus.IDLE, set())
            elif up:
                assert revision.status is (RevisionStatus.FAILED if broken else RevisionStatus.RUNNING)
        for service in await self.live():
            assert service.min_replicas <= revisions[service.current_id].replicas <= service.max_replicas


class _Seen:
    """Serve as the steward sees it, remembered."""

    def __init__(self, machine: ServicesMachine) -> None:
        self.machine = machine

    async def apps(self):
        self.machine.seen = None
        self.machine.seen = await self.machine.farm.serving.apps()
        return self.machine.seen


TestServicesMachine = ServicesMachine.TestCase
TestServicesMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
