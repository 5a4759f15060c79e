"""Many tenants share a farm for some hours of simulated time, under the very policy that the live steward uses.

The workload is made up, in the sense of openb's: most leases want a share of a GPU or one, few want many; lifetimes are
log-normal, and time limits lie above them. Each tenant's leases arrive as a Poisson process, at a rate such that the
farm is offered ``load`` times what it has. Every tenant is guaranteed whole hosts, and together they are promised the
whole farm. In a burst the first tenant asks for four times its guarantee all the time, and the others share what is
left of the offered load, so that they stay within theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np

from cloudfarm.domain.host import Gpu, Host
from cloudfarm.domain.lease import Ask, Grade
from cloudfarm.domain.quantities import GIB, MAX_GPUS_IN_SLICE, MILLI, Shape
from cloudfarm.domain.quota import Amounts, Quota, QuotaTree
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.history import Memory
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.scheduler.space import ever_fits
from cloudfarm.simulate.measures import WINDOW_MS, Measures, Record, measure
from cloudfarm.simulate.policies import admission
from cloudfarm.simulate.world import Work, World

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS

SIZES = ((250, 0.20), (500, 0.18), (1000, 0.48), (2000, 0.06), (4000, 0.05), (8000, 0.03))
"""Milli-GPUs of a lease, and how many leases of 1 are so large."""
MEDIAN_MS = 30 * MINUTE_MS
SIGMA = 1.0
"""Of the lifetimes' logarithm: their mean is ``MEDIAN_MS * exp(SIGMA**2 / 2)``, 49 minutes."""
SHORTEST_MS, LONGEST_MS = MINUTE_MS, 12 * HOUR_MS
LIMITS = 1.2, 3.0
"""Time limits are so many times the lifetime, evenly distributed."""
PARTS = (1, 1, 2, 2, 2)
"""How the hosts of a farm are shared out among tenants."""
BURST = 4
GENERATOR = "openb-like"
CPUS_PER_GPU, GIB_PER_GPU = 8, 64


@dataclass(frozen=True, slots=True)
class Setup:
    """One simulation; the same setup gives the same figures."""

    hosts: int = 8
    gpus: int = 8
    """Of each host."""
    load: float = 1.0
    """GPU-time asked for, as a part of the farm's."""
    burst: bool = False
    hours: float = 12
    """For so long leases arrive; then the queue runs empty, unmeasured but for the waits."""
    seed: int = 42
    rules: Rules = field(default_factory=Rules)
    workload: str = GENERATOR
    """Where the leases come from: the generator here, or the name of a file of them."""
    policy: str = "fair"
    """One of :data:`~cloudfarm.simulate.policies.POLICIES`; ``fair`` is the live one."""
    memory: Memory | None = None
    """How past use counts; None: not at all, as the entitlement that is measured against knows no past either."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    setup: Setup
    leases: int
    measures: Measures

    def as_json(self) -> Mapping[str, object]:
        """Return plain data."""
        return asdict(self)


def run(setup: Setup, works: Sequence[Work] | None = None) -> Report:
    """Simulate the farm, and each tenant alone in a private farm of its guarantee, and compare.

    Raises:
        InvalidInputError: for a farm, a load, a length or a policy that cannot be, or for works that never fit.
    """
    check(setup)
    hosts = farm(setup)
    if works is None:
        parts = shares(setup.hosts)
        works = workload(setup, parts)
    else:
        parts = equal_shares(setup.hosts, works)
        setup = replace(setup, hours=_whole_windows_h(works))  # the generator'''s knobs say nothing then
        _check_fit(hosts, works)
    shared = simulate(setup, hosts, parts, works)
    private: dict[str, Record] = {}
    at = 0
    for tenant, count in parts.items():
        own = [work for work in works if work.tenant == tenant]
        private[tenant] = simulate(setup, hosts[at : at + count], {tenant: count}, own)
        at += count
    until_ms = round(setup.hours * HOUR_MS)
    return Report(setup, len(works), measure(shared, private, until_ms))


def check(setup: Setup) -> None:
    """Refuse a farm, a load or a length that cannot be.

    Raises:
        InvalidInputError: with a sentence that says why.
    """
    if setup.hosts < 1 or not 1 <= setup.gpus <= MAX_GPUS_IN_SLICE or setup.load <= 0 or setup.hours <= 0:
        raise InvalidInputError(
            f"hosts, GPUs, load and hours are positive, and a host has at most {MAX_GPUS_IN_SLICE} GPUs"
        )


def farm(setup: Setup) -> Sequence[Host]:
    """Return the hosts of a setup."""
    gpus = tuple(Gpu(index, "SIM", 81_920) for index in range(setup.gpus))
    return tuple(
        Host(
            f"h{number:04}", gpus, CPUS_PER_GPU * setup.gpus, GIB_PER_GPU * setup.gpus * GIB, Grade.SIMULATED
        )
        for number in range(setup.hosts)
    )


def shares(hosts: int) -> Mapping[str, int]:
    """Return how many hosts each tenant is promised: as :data:`PARTS`, but every one at least one, in all the farm."""
    parts = PARTS[: min(hosts, len(PARTS))]
    whole = sum(parts)
    counts = [max(1, hosts * part // whole) for part in parts]
    counts[-1] += hosts - sum(counts)
    return {f"t{number}": count for number, count in enumerate(counts)}


def equal_shares(hosts: int, works: Sequence[Work]) -> Mapping[str, int]:
    """Return how many hosts each tenant of a workload is promised: as many as any other, or one more."""
    names = sorted({work.tenant for work in works})
    if len(names) > hosts:
        raise InvalidInputError(
            f"a farm of {hosts} hosts cannot promise a host to each of {len(names)} tenants"
        )
    return {name: hosts // len(names) + (number < hosts % len(names)) for number, name in enumerate(names)}


def _whole_windows_h(works: Sequence[Work]) -> float:
    """Return for how long leases arrive, up to a whole number of the windows that are measured."""
    return (max(work.arrives_ms for work in works) // WINDOW_MS + 1) * WINDOW_MS / HOUR_MS


def _check_fit(hosts: Sequence[Host], works: Sequence[Work]) -> None:
    for work in works:
        if not ever_fits(hosts, work.ask):
            raise InvalidInputError(
                f"lease {work.id} can never be placed on these hosts, not even if they are empty"
            )


def workload(setup: Setup, parts: Mapping[str, int]) -> Sequence[Work]:
    """Return all leases in the order of their arrival. No size is larger than a host."""
    rng = np.random.default_rng(setup.seed)
    sizes = [(milli, chance) for milli, chance in SIZES if milli <= MILLI * setup.gpus]
    millis = np.array([milli for milli, _ in sizes])
    chances = np.array([chance for _, chance in sizes])
    chances /= chances.sum()
    lifetimes = np.clip(rng.lognormal(np.log(MEDIAN_MS), SIGMA, 100_000), SHORTEST_MS, LONGEST_MS)
    each_milli_ms = float(millis @ chances) * float(lifetimes.mean())
    offered = _offered(setup, parts)
    works: list[Work] = []
    for tenant, loaded in offered.items():
        gap_ms = each_milli_ms / (loaded * MILLI * setup.gpus)
        at_ms, number = rng.exponential(gap_ms), 0
        while at_ms < setup.hours * HOUR_MS:
            runs_ms = int(rng.choice(lifetimes))
            limit_ms = -(-int(runs_ms * rng.uniform(*LIMITS)) // MINUTE_MS) * MINUTE_MS
            milli = int(rng.choice(millis, p=chances))
            cpus = max(1, CPUS_PER_GPU * milli // MILLI)
            ask = Ask(Shape(1, milli), cpus, GIB_PER_GPU * GIB * milli // MILLI, limit_ms)
            told = bool(rng.random() < 0.5)  # noqa: PLR2004 - every second one saves when it is told to go
            works.append(Work(f"{tenant}-{number}", tenant, ask, int(at_ms), runs_ms, saves_when_told=told))
            at_ms, number = at_ms + rng.exponential(gap_ms), number + 1
    return sorted(works, key=lambda work: (work.arrives_ms, work.id))


def _offered(setup: Setup, parts: Mapping[str, int]) -> Mapping[str, float]:
    """Return the load that each tenant offers, in hosts."""
    if not setup.burst:
        return {tenant: setup.load * count for tenant, count in parts.items()}
    first, *others = parts
    left = max(0.05, (setup.load * setup.hosts - BURST * parts[first]) / max(1, setup.hosts - parts[first]))
    return {first: BURST * parts[first], **{tenant: min(left, 1.0) * parts[tenant] for tenant in others}}


def simulate(setup: Setup, hosts: Sequence[Host], parts: Mapping[str, int], works: Sequence[Work]) -> Record:
    """Run a workload on a farm and record it."""
    each = Amounts(MILLI * setup.gpus, CPUS_PER_GPU * setup.gpus, GIB_PER_GPU * setup.gpus * GIB)
    tree = QuotaTree.of(
        Quota(tenant, guarantee=_times(each, count), weight=count) for tenant, count in parts.items()
    )
    record = Record(hosts, {tenant: MILLI * setup.gpus * count for tenant, count in parts.items()})
    world = World(
        hosts,
        tree,
        admission(setup.policy, setup.rules, tree),
        watch=record.look,
        wake=partial(next_look_ms, rules=setup.rules, tree=tree),
        memory=setup.memory,
    )
    world.run(works)
    record.stories = world.stories
    return record


def with_seeds(setup: Setup, seeds: Sequence[int]) -> Sequence[Report]:
    """Run one setup under several seeds."""
    return [run(replace(setup, seed=seed)) for seed in seeds]


def _times(amounts: Amounts, count: int) -> Amounts:
    return Amounts(count * amounts.milli_gpus, count * amounts.cpus, count * amounts.memory_bytes)
