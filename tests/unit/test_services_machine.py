"""Whatever happens to services in whatever order: who answers goes on, and nothing is held that nobody uses.

The machine of ``test_steward_machine.py`` with its faults, and services that are deployed, replaced, scaled, asked,
broken and deleted, while Serve is slow to let go of replicas or cannot be seen.
"""

from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, initialize, multiple, rule

from cloudfarm.domain.lease import Lease, LeaseKind
from cloudfarm.domain.load import Load, LoadReport
from cloudfarm.domain.status import EndReason, LeaseStatus, RevisionStatus, Target
from cloudfarm.domain.workload import Revision, Service
from cloudfarm.steward.scene import LEAVE_MS
from cloudfarm.testing.farm import MemoryFarm

from .test_steward_machine import FarmMachine

HOUR_MS = 3_600_000
ANSWERING = (RevisionStatus.RUNNING, RevisionStatus.IDLE)


@dataclass(slots=True)
class WatchedFarm(MemoryFarm):
    """Looks at every step whether it does what must never be done."""

    async def step(self) -> int:
        """Let the steward look once, and see that whoever is asked goes on answering."""
        before, current, served = await self.leases(), await self.current(), set(self.serving.applied)
        self.serving.seen = None
        changed = await MemoryFarm.step(self)
        after = await self.leases()
        for lease in before.values():
            if is_up(lease) and after[lease.id].reason in (EndReason.SCALED_DOWN, EndReason.SERVICE_DELETED):
                self.check_released(lease)
        for service_id, revision_id in (await self.current()).items():
            revisions = {each.id: each for each in await self.revisions(service_id)}
            assert revisions[revision_id].target is Target.RUN, "nothing answers"
            if current.get(service_id, revision_id) != revision_id:
                assert (self.serving.seen or {})[revisions[revision_id].app_name].running, (
                    "it does not answer"
                )
            for revision in revisions.values():
                held = any(is_up(lease) for lease in after.values() if lease.revision_id == revision.id)
                if revision.app_name in served and held and self.may_be_asked(revision):
                    assert revision.app_name in self.serving.applied, "requests may be on their way to it"
        return changed

    def check_released(self, lease: Lease) -> None:
        """See that a lease that the steward gives back had no replica when it looked."""
        assert self.serving.seen is not None, "Serve could not be seen"
        taken = {replica.node_id for app in self.serving.seen.values() for replica in app.replicas}
        assert taken.isdisjoint(piece.node_id for piece in lease.slices), "a replica was on it"

    def may_be_asked(self, revision: Revision) -> bool:
        """Whether the front door may send requests to a revision, or has until a moment ago."""
        left_ms = revision.left_ms
        return revision.status in ANSWERING and (left_ms is None or self.clock.now_ms() - left_ms < LEAVE_MS)

    async def leases(self) -> dict[str, Lease]:
        """Return all leases."""
        async with self.store.begin(write=False) as uow:
            return {lease.id: lease for lease in await uow.leases.list()}

    async def current(self) -> dict[str, str]:
        """Return by service the revision that its requests go to."""
        return {service.id: service.current_id or "" for service in await self.live()}

    async def live(self) -> list[Service]:
        """Return the services that are to run."""
        async with self.store.begin(write=False) as uow:
            return [each for each in await uow.services.list(open_only=True) if each.target is Target.RUN]


def is_up(lease: Lease) -> bool:
    return (lease.status, lease.target) == (LeaseStatus.ACTIVE, Target.RUN)


class ServicesMachine(FarmMachine):
    services = Bundle("services")

    def __init__(self) -> None:
        super().__init__()
        self.loads: dict[str, Load] = {}

    def make_farm(self) -> MemoryFarm:
        return WatchedFarm()

    @initialize(target=services)
    def begin(self):
        self.do(self.farm.begin())
        return multiple(self.deploy((0, 3), 300), self.deploy((1, 3), 500))

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

    @rule(
        name=services, canary=st.sampled_from([0, 0, 30]), broken=st.sampled_from([False, False, False, True])
    )
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
        self.step()

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

    @rule(place=st.integers(0, 5), notice_ms=st.sampled_from([2_000, 15_000]))
    def a_replica_is_preempted(self, place: int, notice_ms: int) -> None:
        async def work() -> None:
            async with self.farm.store.begin() as uow:
                leases = [
                    lease
                    for lease in await uow.leases.list(open_only=True)
                    if lease.kind is LeaseKind.SERVICE
                    and is_up(lease)
                    and lease.gone_by_ms is None
                    and lease.milli_gpus
                ]
                if leases:
                    lease = leases[place % len(leases)]
                    gone_by_ms = self.farm.clock.now_ms() + notice_ms
                    await uow.leases.update(replace(lease, preempted_ms=gone_by_ms))
                    await uow.commit()

        self.do(work())

    @rule(down=st.booleans(), blind=st.booleans())
    def serve_trouble(self, down: bool, blind: bool) -> None:
        self.farm.serving.down, self.farm.serving.blind = down, blind

    def calm(self) -> None:
        super().calm()
        self.farm.serving.down = self.farm.serving.blind = False
        self.farm.serving.busy.clear()

    async def everything_ends(self) -> None:
        for service in await self.farm.live():
            await self.farm.undeploy(service.id)
        await self.settle()
        await super().everything_ends()
        assert await self.farm.live() == []
        assert self.farm.serving.applied == {}

    async def settle(self) -> None:
        """Come to rest: what is replaced gives way after a while, and then makes room for others."""
        for _ in range(8):
            await self.farm.settle()
            self.farm.clock.advance(LEAVE_MS)
        await self.farm.settle()

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
                assert revision.status in (RevisionStatus.IDLE, RevisionStatus.FAILED if broken else None)
                assert standing == set()
            elif up:
                assert not broken
                assert revision.status is RevisionStatus.RUNNING
        for service in await self.farm.live():
            current = revisions[service.current_id]
            least = 0 if current.status is RevisionStatus.FAILED else service.min_replicas
            assert least <= current.replicas <= service.max_replicas


TestServicesMachine = ServicesMachine.TestCase
TestServicesMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
