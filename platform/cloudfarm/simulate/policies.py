"""The policies that a simulation can run: the live one, and simpler ones to compare it with."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.quota import QuotaTree
from cloudfarm.errors import InvalidInputError
from cloudfarm.scheduler.future import Future
from cloudfarm.scheduler.queue import fair
from cloudfarm.scheduler.rules import Rules, capacity_of, waits
from cloudfarm.scheduler.space import Space
from cloudfarm.scheduler.standing import Standing
from cloudfarm.steward.decide import Admission
from cloudfarm.steward.view import FarmView, Grant

POLICIES: Mapping[str, Callable[[Rules, QuotaTree], Admission]] = {
    "fair": lambda rules, tree: fair(rules, lambda _view: tree),
    "fair-no-preempt": lambda rules, tree: fair(replace(rules, preempts=False), lambda _view: tree),
    "first-come": lambda _rules, tree: first_come(tree),
}
"""``fair`` is the live one."""


def admission(policy: str, rules: Rules, tree: QuotaTree) -> Admission:
    """Return a policy by its name.

    Raises:
        InvalidInputError: if there is none of that name.
    """
    if policy not in POLICIES:
        raise InvalidInputError(f"there is no policy '{policy}'; there are {', '.join(POLICIES)}")
    return POLICIES[policy](rules, tree)


def first_come(tree: QuotaTree) -> Admission:
    """Return the policy that most queues begin with: the oldest lease starts first, and nobody passes it.

    Limits are kept (who is at one is passed), guarantees and priorities count for nothing, nobody is preempted. Who can
    never be placed is passed as well. Leases are placed as by the live policy.
    """

    def admit(view: FarmView) -> tuple[Grant, ...]:
        holding = [lease for lease in view.leases if lease.status.holds_capacity]
        standing = Standing(tree, capacity_of(view), view.now_ms)
        standing.hold(holding)
        asks = view.asks or tuple(lease.ask for lease in view.leases)
        future = Future.of(Space.of(view.hosts), view.now_ms, holding, asks)
        empty = future.space.empty()
        starts = []
        for lease in sorted((each for each in view.leases if _is_due(each, view.now_ms)), key=_age):
            if standing.over_limit(lease) is not None or not future.space.fits(empty, lease.ask):
                continue
            slices = future.start(lease)
            if slices is None:
                break
            standing.take(lease)
            starts.append(Grant(lease.id, slices))
        return tuple(starts)

    return admit


def _is_due(lease: Lease, now_ms: int) -> bool:
    return waits(lease) and (lease.ask.not_before_ms or 0) <= now_ms


def _age(lease: Lease) -> tuple[int, str]:
    return lease.created_ms, lease.id
