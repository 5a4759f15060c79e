"""What is measured of a simulated farm: waits, shares, what was taken back, and what lay idle.

Between two steps nothing changes, so a record of what each tenant holds and waits for after every step is all of it.
Times are seconds, GPU-time is GPU-seconds.

*Entitlement*. At any moment a tenant wants what it holds and waits for. It is entitled to that up to its guarantee, and
of what is left of the farm's GPUs to a part by its weight, up to what it wants (weighted max-min; the weights are the
guarantees). *Fair-share error*: for each tenant and each whole 10-minute window of the time in which leases arrive, if
it wanted something all through the window, ``|received - entitled| / entitled`` of the GPU-time. *Guarantee shortfall*:
likewise ``max(0, 1 - received / min(wanted, guarantee))``, which leaves the surplus out. *Unavoidable*: the fair-share
error if each tenant held, at any moment, the most that whole leases of those that it has can come to within what it is
entitled to; they would start, stop and go on at no cost, on a farm that is one large host.

*Sharing safety*: each tenant's leases are run once more, in a private farm of its guarantee under the same policy. A
tenant whose mean wait to the first start is longer in the shared farm is a violation, and so is one whose mean delay
(arrival to end less the run itself, so what was taken back and done twice counts) is.

*Idle*: GPU-time that nobody holds while the ask of a waiting lease would fit into it, kept for another or not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cloudfarm.domain.host import Host
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.space import Space
from cloudfarm.simulate.world import Story, World

WINDOW_MS = 600_000
LEAST_DELAY_S = 1.0
"""A longer mean wait than this in the shared farm than in the private one is a violation."""

Numbers = npt.NDArray[np.float64]


@dataclass(slots=True)
class Record:
    """What a world was like after every step."""

    hosts: Sequence[Host]
    guarantees: Mapping[str, int]
    """Milli-GPUs, by tenant."""
    times_ms: list[int] = field(default_factory=list)
    held: list[list[int]] = field(default_factory=list)
    """Milli-GPUs of each tenant."""
    wanted: list[list[int]] = field(default_factory=list)
    """Those that it waits for as well."""
    sizes: list[list[tuple[int, ...]]] = field(default_factory=list)
    """Milli-GPUs of each lease that a tenant holds or waits for."""
    idle: list[int] = field(default_factory=list)
    """Milli-GPUs that nobody holds, if somebody waits whom they would hold; otherwise 0."""
    stories: Mapping[str, Story] = field(default_factory=dict)
    _space: Space = field(init=False)

    def __post_init__(self) -> None:
        self._space = Space.of(self.hosts)

    def look(self, world: World) -> None:
        """Note how a world is now."""
        held = dict.fromkeys(self.guarantees, 0)
        waits = dict.fromkeys(self.guarantees, 0)
        free = self._space.empty()
        sizes: dict[str, list[int]] = {tenant: [] for tenant in self.guarantees}
        asks = {}
        for lease in world.leases.values():
            sizes[lease.tenant].append(lease.milli_gpus)
            if lease.status is LeaseStatus.WAITING:
                waits[lease.tenant] += lease.milli_gpus
                asks[lease.ask.shape, lease.ask.cpus, lease.ask.memory_bytes] = lease.ask
            else:
                held[lease.tenant] += lease.milli_gpus
                self._space.take(free, lease.slices)
        is_idle = any(self._space.fits(free, ask) for ask in asks.values())
        self.times_ms.append(world.now_ms)
        self.held.append(list(held.values()))
        self.wanted.append([held[each] + waits[each] for each in held])
        self.sizes.append([tuple(each) for each in sizes.values()])
        self.idle.append(int(free[:, : self._space.width].sum()) if is_idle else 0)


@dataclass(frozen=True, slots=True)
class Waits:
    """How long one tenant's leases waited and took."""

    leases: int
    wait_mean_s: float
    wait_p50_s: float
    wait_p99_s: float
    took_mean_s: float
    """Arrival to end."""
    took_p50_s: float
    took_p99_s: float
    private_wait_mean_s: float
    private_took_mean_s: float
    worst_extra_s: float
    """By how much longer one lease took than in the private farm, at most."""


@dataclass(frozen=True, slots=True)
class Measures:
    """See the module's docstring."""

    tenants: Mapping[str, Waits]
    wait_violations: int
    delay_violations: int
    share_error_worst: float
    share_error_p99: float
    share_error_mean: float
    unavoidable_worst: float
    """Fair-share error that whole leases have under any schedule that keeps within what is entitled."""
    unavoidable_p99: float
    unavoidable_mean: float
    shortfall_worst: float
    shortfall_p99: float
    private_shortfall_worst: float
    """In their private farms: a lease starts whole or not at all, there as well."""
    windows: int
    jain: float
    """Of received / entitled GPU-time over all windows, by tenant: (sum x)^2 / (n sum x^2)."""
    within_p50_s: float
    """Request to start of leases with which all that their tenant wanted was within its guarantee."""
    within_p99_s: float
    reclaims: int
    """Leases for which others were told to go."""
    reclaim_p50_s: float
    """Telling them to its start."""
    reclaim_p99_s: float
    after_deadline_p99_s: float
    preemptions: int
    lost_gpu_s: float
    utilisation: float
    idle_part: float
    """Idle GPU-time, as a part of the farm's."""


def measure(shared: Record, private: Mapping[str, Record], until_ms: int) -> Measures:
    """Return the figures of a shared farm, against each tenant's private one, for leases arriving until a moment."""
    stories = [story for story in shared.stories.values() if story.ended_ms is not None]
    tenants = {tenant: _waits(tenant, shared, own) for tenant, own in private.items()}
    held = _by_window(shared, np.array(shared.held, dtype=np.float64), until_ms)
    wanted_now = np.array(shared.wanted, dtype=np.float64)
    guarantees = np.array(list(shared.guarantees.values()), dtype=np.float64)
    entitled_now = entitlement(wanted_now, guarantees)
    entitled = _by_window(shared, entitled_now, until_ms)
    whole_now = [
        [most_within(own, most) for own, most in zip(sizes, row, strict=True)]
        for sizes, row in zip(shared.sizes, entitled_now.tolist(), strict=True)
    ]
    whole = _by_window(shared, np.array(whole_now, dtype=np.float64), until_ms)
    promised = _by_window(shared, np.minimum(wanted_now, guarantees), until_ms)
    wants = _by_window(shared, (wanted_now > 0).astype(np.float64), until_ms) >= WINDOW_MS * (1 - 1e-9)
    errors = (np.abs(held - entitled) / np.maximum(entitled, 1))[wants]
    unavoidable = (np.abs(whole - entitled) / np.maximum(entitled, 1))[wants]
    shortfalls = np.maximum(0, 1 - held / np.maximum(promised, 1))[wants]
    received = held.sum(axis=0) / np.maximum(entitled.sum(axis=0), 1)
    claims = [
        (min(start_ms for start_ms, _ in story.segments if start_ms >= story.claimed_ms), story)
        for story in stories
        if story.claimed_ms is not None
    ]
    within = [
        (story.segments[0][0] - story.work.arrives_ms) / MILLI
        for story in stories
        if _is_within(story, shared)
    ]
    capacity = MILLI * sum(len(host.gpus) for host in shared.hosts)
    idle = _by_window(shared, np.array(shared.idle, dtype=np.float64)[:, None], until_ms)
    return Measures(
        tenants=tenants,
        wait_violations=sum(
            each.wait_mean_s > each.private_wait_mean_s + LEAST_DELAY_S for each in tenants.values()
        ),
        delay_violations=sum(
            each.took_mean_s > each.private_took_mean_s + LEAST_DELAY_S for each in tenants.values()
        ),
        share_error_worst=_at(errors, 100),
        share_error_p99=_at(errors, 99),
        share_error_mean=float(errors.mean()) if errors.size else 0.0,
        unavoidable_worst=_at(unavoidable, 100),
        unavoidable_p99=_at(unavoidable, 99),
        unavoidable_mean=float(unavoidable.mean()) if unavoidable.size else 0.0,
        shortfall_worst=_at(shortfalls, 100),
        shortfall_p99=_at(shortfalls, 99),
        private_shortfall_worst=max(
            _worst_shortfall(own, tenant, until_ms) for tenant, own in private.items()
        ),
        windows=int(wants.sum()),
        jain=float(received.sum() ** 2 / max(1e-9, len(received) * (received**2).sum())),
        within_p50_s=_at(within, 50),
        within_p99_s=_at(within, 99),
        reclaims=len(claims),
        reclaim_p50_s=_at([(at_ms - (story.claimed_ms or 0)) / MILLI for at_ms, story in claims], 50),
        reclaim_p99_s=_at([(at_ms - (story.claimed_ms or 0)) / MILLI for at_ms, story in claims], 99),
        after_deadline_p99_s=_at(
            [max(0, at_ms - (story.deadline_ms or 0)) / MILLI for at_ms, story in claims], 99
        ),
        preemptions=sum(story.preempted for story in stories),
        lost_gpu_s=sum(story.lost_ms * story.work.ask.shape.total_milli_gpus for story in stories) / MILLI**2,
        utilisation=float(held.sum() / (held.shape[0] * WINDOW_MS * capacity)),
        idle_part=float(idle.sum() / (held.shape[0] * WINDOW_MS * capacity)),
    )


def _worst_shortfall(own: Record, tenant: str, until_ms: int) -> float:
    """Return the worst guarantee shortfall of a tenant in its private farm."""
    wanted = np.array(own.wanted, dtype=np.float64)
    if not wanted.size:
        return 0.0
    held = _by_window(own, np.array(own.held, dtype=np.float64), until_ms)
    promised = _by_window(own, np.minimum(wanted, own.guarantees[tenant]), until_ms)
    wants = _by_window(own, (wanted > 0).astype(np.float64), until_ms) >= WINDOW_MS * (1 - 1e-9)
    return _at(np.maximum(0, 1 - held / np.maximum(promised, 1))[wants], 100)


def entitlement(wanted: Numbers, guarantees: Numbers) -> Numbers:
    """Return what each tenant (column) is entitled to at each moment (row); the guarantees are all there is."""
    entitled = np.minimum(wanted, guarantees)
    for _ in range(len(guarantees)):  # each round fills at least one tenant up, or shares out all
        left = np.maximum(0, guarantees.sum() - entitled.sum(axis=1, keepdims=True))
        weights = np.where(wanted > entitled, guarantees, 0)
        parts = left * weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        entitled = np.minimum(wanted, entitled + parts)
    return entitled


def most_within(sizes: Iterable[int], most: float) -> int:
    """Return the most that some of these sizes come to without being above an amount."""
    allowed = (1 << int(most + 0.5) + 1) - 1  # a float that should be whole may be a little below
    sums = 1  # bit n is set if n is the sum of some
    for size in sizes:
        sums |= sums << size & allowed
    return sums.bit_length() - 1


def _by_window(record: Record, values: Numbers, until_ms: int) -> Numbers:
    """Return the integral over time (ms) of values that were noted after each step, by window."""
    times = np.array([*record.times_ms, max(until_ms, record.times_ms[-1])], dtype=np.float64)
    sums = np.concatenate(
        [np.zeros((1, values.shape[1])), np.cumsum(values * np.diff(times)[:, None], axis=0)]
    )
    edges = np.arange(0, until_ms + 1, WINDOW_MS)
    at_edges = np.stack([np.interp(edges, times, column) for column in sums.T], axis=1)
    windows: Numbers = np.diff(at_edges, axis=0)
    return windows


def _waits(tenant: str, shared: Record, private: Record) -> Waits:
    alone = private.stories
    stories = [
        story
        for id_, story in shared.stories.items()
        if story.work.tenant == tenant
        and story.ended_ms is not None
        and id_ in alone
        and alone[id_].ended_ms is not None
    ]
    waits = [story.waited_ms / MILLI for story in stories]
    took = [((story.ended_ms or 0) - story.work.arrives_ms) / MILLI for story in stories]
    others = [alone[story.work.id] for story in stories]
    took_alone = [((story.ended_ms or 0) - story.work.arrives_ms) / MILLI for story in others]
    return Waits(
        leases=len(stories),
        wait_mean_s=_mean(waits),
        wait_p50_s=_at(waits, 50),
        wait_p99_s=_at(waits, 99),
        took_mean_s=_mean(took),
        took_p50_s=_at(took, 50),
        took_p99_s=_at(took, 99),
        private_wait_mean_s=_mean([story.waited_ms / MILLI for story in others]),
        private_took_mean_s=_mean(took_alone),
        worst_extra_s=max([0.0, *(mine - own for mine, own in zip(took, took_alone, strict=True))]),
    )


def _is_within(story: Story, record: Record) -> bool:
    """Whether all that a tenant wanted when it asked, this included, was within its guarantee."""
    step = int(np.searchsorted(record.times_ms, story.work.arrives_ms, side="left"))
    tenant = list(record.guarantees).index(story.work.tenant)
    return record.wanted[step][tenant] <= record.guarantees[story.work.tenant]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _at(values: Sequence[float] | Numbers, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else 0.0
