"""When running work was last saved: what a preemption would cost, and what is given back after one.

Ray Train writes a run's snapshot file with each checkpoint that it takes over. The start-up hook names runs by their
job; for a run that its script has named itself, the newest snapshot of any such run of the tenant is taken: rather too
little given back than too much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.workload import Job
from cloudfarm.errors import InvalidInputError
from cloudfarm.ports import Artifacts

SNAPSHOT = "checkpoint_manager_snapshot.json"
RUN_PREFIX = "ray_train_run-"
EVERY_MS = 10_000
"""How old what is known may be: the artifact store may be far away."""


@dataclass(slots=True)
class Checkpoints:
    """Looks into the tenants' run folders, now and then."""

    artifacts: Artifacts
    _known: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    """By lease: when it was looked at, and what was found."""

    async def saved_ms(self, leases: Sequence[Lease], jobs: Sequence[Job], now_ms: int) -> Mapping[str, int]:
        """Return by lease when its jobs' work was last saved, of those of which that can be told."""
        by_lease: dict[str, list[Job]] = {}
        for job in jobs:
            by_lease.setdefault(job.lease_id, []).append(job)
        holding = [lease for lease in leases if lease.started_ms is not None and lease.id in by_lease]
        for lease in holding:
            seen_ms, _ = self._known.get(lease.id, (0, None))
            if now_ms - seen_ms >= EVERY_MS:
                self._known[lease.id] = now_ms, await self._look(lease.tenant, by_lease[lease.id])
        held = {lease.id for lease in holding}
        self._known = {lease_id: known for lease_id, known in self._known.items() if lease_id in held}
        return {lease_id: saved for lease_id, (_, saved) in self._known.items() if saved is not None}

    async def _look(self, tenant: str, jobs: Sequence[Job]) -> int | None:
        runs = await self.artifacts.list("tenants", tenant, "runs")
        ours = tuple(f"{RUN_PREFIX}{job.id}-" for job in jobs)
        mine = [run for run in runs if run.startswith(ours)] or [
            run for run in runs if not run.startswith(RUN_PREFIX)
        ]
        times = [await self._snapshot_ms(tenant, run) for run in mine]
        return max((each for each in times if each is not None), default=None)

    async def _snapshot_ms(self, tenant: str, run: str) -> int | None:
        try:
            return await self.artifacts.modified_ms("tenants", tenant, "runs", run, SNAPSHOT)
        except InvalidInputError:
            return None  # tenants name their runs as they like; such a name no farm's file has
