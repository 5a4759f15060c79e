"""What if: a farm's past replayed by the live policy, under its own hosts and quotas or under others.

The replay starts leases the moment they are granted and is never down, so it is a little kinder than life was: compare
one replay with another, and see beside it how far the one under the present hosts and quotas is from what really was.
Hosts and quotas are those of the whole window: what changed meanwhile is not in the store.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cloudfarm.domain.host import Gpu, Host
from cloudfarm.domain.quantities import MAX_GPUS_IN_SLICE, MILLI
from cloudfarm.domain.quota import NOTHING, Amounts, Quota, QuotaTree, completed, quota_of, tree_in_force
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.history import Memory
from cloudfarm.scheduler.rules import Rules, next_look_ms
from cloudfarm.scheduler.space import Space
from cloudfarm.scheduler.standing import amounts_of
from cloudfarm.simulate.compare import Course, Outcome, Window
from cloudfarm.simulate.history import Past, Told
from cloudfarm.simulate.policies import admission
from cloudfarm.simulate.report import Comparison
from cloudfarm.simulate.world import Story, World
from cloudfarm.steward.decide import Admission
from cloudfarm.steward.past import ASKS

MOST_HOSTS = 10_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """A farm under which a past is replayed."""

    hosts: tuple[Host, ...]
    tree: QuotaTree
    rules: Rules
    memory: Memory
    policy: str = "fair"

    def __post_init__(self) -> None:
        self.admission()  # a policy that is not there is noticed before anything is replayed

    def admission(self) -> Admission:
        """Return the policy; raises InvalidInputError if there is none of that name."""
        return admission(self.policy, self.rules, self.tree)


def compare(past: Past, told: Told, base: Scenario, other: Scenario) -> Comparison:
    """Return what really was, a replay of it under the farm as it is, and one under another if that differs."""
    outcomes = [
        as_it_was(told, base.hosts),
        replay(told, base, "replay", "under the present hosts and quotas"),
    ]
    notes = _notes(past, told, base)
    if other != base:
        outcomes.append(replay(told, other, "what-if", differences(base, other)))
        stuck = impossible(told, other)
        if stuck:
            notes.append(f"Leases that can never start in what-if: {stuck}.")
    return Comparison(tuple(outcomes), tuple(notes))


def as_it_was(told: Told, hosts: Sequence[Host]) -> Outcome:
    """Return what really became of the leases."""
    courses = tuple(told.courses.values())
    return Outcome("past", "as it really was", _milli_gpus(hosts), told.window, courses)


def replay(told: Told, scenario: Scenario, name: str, title: str) -> Outcome:
    """Replay a past and return what became of it."""
    world = World(
        scenario.hosts,
        scenario.tree,
        scenario.admission(),
        wake=partial(next_look_ms, rules=scenario.rules, tree=scenario.tree),
        memory=scenario.memory,
        uses=told.uses,
        asks=deque(told.asks, maxlen=ASKS),
    )
    world.run(told.works, told.window.until_ms)
    courses = tuple(
        _course(world.stories[lease_id], world, told.window, real) for lease_id, real in told.courses.items()
    )
    return Outcome(name, title, world.milli_gpus, told.window, courses)


def _course(story: Story, world: World, window: Window, real: Course) -> Course:
    lease = world.leases.get(real.id)
    segments = list(story.segments)
    if lease is not None and lease.started_ms is not None:
        segments.append((lease.started_ms, window.until_ms))
    over_ms = story.ended_ms
    if lease is None and over_ms is None:
        over_ms = story.work.gives_up_ms
    return replace(
        real,
        segments=window.cut(segments),
        over_ms=over_ms,
        preempted=len(story.segments) - (story.ended_ms is not None),
        lost_ms=story.lost_ms,
    )


def present(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Return the hosts that would take leases now: the cordoned ones are left out, silent ones count.

    Raises:
        InvalidInputError: if there are none.
    """
    found = tuple(replace(host, reachable=True, nodes=()) for host in hosts if not host.cordoned)
    if not found:
        raise InvalidInputError("the store knows no host that is not cordoned")
    return found


def differences(base: Scenario, other: Scenario) -> str:
    """Return in words what is different."""
    says: list[str] = []
    if other.hosts != base.hosts:
        says.append(f"{len(other.hosts)} hosts")
    if other.tree != base.tree:
        says.append("other quotas")
    if other.policy != base.policy:
        says.append(f"policy {other.policy}")
    if other.rules.min_run_ms != base.rules.min_run_ms:
        says.append(f"borrowers run {other.rules.min_run_ms // 1000} s at least")
    if other.rules.preempt_notice_ms != base.rules.preempt_notice_ms:
        says.append(f"notice of {other.rules.preempt_notice_ms // 1000} s")
    return ", ".join(says)


def _notes(past: Past, told: Told, base: Scenario) -> list[str]:
    numbers = {
        "Cordoned hosts, left out": sum(host.cordoned for host in past.hosts),
        "Leases that ended while they were starting, left out": told.left_out,
        "Leases that still ran or had never started, whose run time is assumed": told.assumed,
        "Leases that can never start under the present hosts and quotas": impossible(told, base),
    }
    return [
        "Replays start a lease the moment it is granted and are never down; hosts and quotas are the present ones.",
        *(f"{what}: {number}." for what, number in numbers.items() if number),
    ]


def changed(
    hosts: Sequence[Host],
    *,
    count: int | None = None,
    gpus: int | None = None,
    add: int = 0,
    without: Iterable[str] = (),
) -> tuple[Host, ...]:
    """Return other hosts than those that there are.

    Args:
        hosts: those that there are.
        count: so many instead of them, all alike.
        gpus: of each new host; CPUs and memory in proportion. None: as many as the most common host has.
        add: so many more.
        without: ids of those to leave out.

    Raises:
        InvalidInputError: for a host that is not there, for numbers that no farm has, or if no host is left.
    """
    gone = set(without)
    unknown = sorted(gone - {host.id for host in hosts})
    if unknown:
        raise InvalidInputError(
            f"there is no host {unknown[0]}; there are {', '.join(host.id for host in hosts)}"
        )
    if not 0 <= add <= MOST_HOSTS or not 0 <= (count or 0) <= MOST_HOSTS:
        raise InvalidInputError(f"a farm has at most {MOST_HOSTS} hosts")
    if gpus is not None and not 0 <= gpus <= MAX_GPUS_IN_SLICE:
        raise InvalidInputError(f"a host has at most {MAX_GPUS_IN_SLICE} GPUs")
    like = _most_common(hosts)
    kept = [host for host in hosts if host.id not in gone] if count is None else []
    new = [_like(like, f"new-{number:04}", gpus) for number in range((count or 0) + add)]
    if not kept and not new:
        raise InvalidInputError("no host is left")
    return (*kept, *new)


def _most_common(hosts: Sequence[Host]) -> Host:
    """Return one of the hosts of which there are most; of the largest of them."""
    kinds = Counter(_kind(host) for host in hosts)
    return max(hosts, key=lambda host: (kinds[_kind(host)], len(host.gpus), host.cpus, host.id))


def _kind(host: Host) -> tuple[object, ...]:
    return tuple(gpu.model for gpu in host.gpus), host.cpus, host.memory_bytes


def _like(host: Host, name: str, gpus: int | None) -> Host:
    if gpus is None or gpus == len(host.gpus):
        return replace(host, id=name)
    if not host.gpus or not gpus:
        raise InvalidInputError(f"no host of {gpus} GPUs can be made after one of {len(host.gpus)}")
    first = host.gpus[0]
    return replace(
        host,
        id=name,
        gpus=tuple(Gpu(index, first.model, first.memory_mib) for index in range(gpus)),
        cpus=max(1, host.cpus * gpus // len(host.gpus)),
        memory_bytes=host.memory_bytes * gpus // len(host.gpus),
    )


def tree_of(
    past: Past, hosts: Iterable[Host], default_limit_milli_gpus: int, quotas: Sequence[Quota] | None = None
) -> QuotaTree:
    """Return the quotas in force: those of the store, or others in their place, and the tenants' own limits.

    Raises:
        InvalidInputError: if the others are no tree, or promise more than the hosts have.
    """
    if quotas is None:
        return tree_in_force(past.quotas, past.tenants, default_limit_milli_gpus)
    has = (Amounts(MILLI * len(host.gpus), host.cpus, host.memory_bytes) for host in hosts)
    capacity = sum(has, NOTHING)
    whole = [completed(quota, capacity) for quota in quotas]
    QuotaTree.of(whole, capacity=capacity)
    return tree_in_force(whole, past.tenants, default_limit_milli_gpus)


def impossible(told: Told, scenario: Scenario) -> int:
    """Return how many leases can never start under a scenario: too large for its hosts, or beyond a limit."""
    space = Space.of(scenario.hosts)
    empty = space.empty()
    return sum(
        not space.fits(empty, work.ask)
        or any(
            not amounts_of(work.ask).within(quota.limit)
            for quota in scenario.tree.path(quota_of(work.tenant, work.project))
        )
        for work in told.works
    )


def _milli_gpus(hosts: Iterable[Host]) -> int:
    return sum(MILLI * len(host.gpus) for host in hosts)
