"""An admission that also tells those who wait when they will probably start."""

from collections.abc import Callable
from dataclasses import replace

from cloudfarm.domain.lease import ExpectedStart, Lease
from cloudfarm.domain.quota import QuotaTree
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.scheduler.calibration import Corrections
from cloudfarm.scheduler.forecast import forecast
from cloudfarm.scheduler.rules import Rules, waits
from cloudfarm.steward.view import Decisions, FarmView, Grant, Preempt, Wait

LEAST_NEWS_MS = 60_000
LEAST_NEWS = 0.1
"""What a person is told anew: a change by more than a minute, and by more than this part of the time to go."""


def foreseeing(
    admit: Callable[[FarmView], Decisions], rules: Rules, tree: Callable[[FarmView], QuotaTree]
) -> Callable[[FarmView], Decisions]:
    """Return an admission that adds forecasts to another's decisions, whenever the view says that it is time."""

    def both(view: FarmView) -> Decisions:
        decisions = admit(view)
        if view.corrections is None:
            return decisions
        news = _news(_after(view, decisions), rules, tree(view), view.corrections)
        told = [
            replace(each, expected_start=news.pop(each.lease_id)[1])
            if isinstance(each, Wait) and each.lease_id in news
            else each
            for each in decisions
        ]
        others = (Wait(lease.id, lease.message, lease.room, start) for lease, start in news.values())
        return (*told, *others)

    return both


def _after(view: FarmView, decisions: Decisions) -> FarmView:
    """Return the farm as it will be when these decisions are carried out."""
    leases = {lease.id: lease for lease in view.leases}
    for each in decisions:
        if isinstance(each, Grant):
            leases[each.lease_id] = replace(
                leases[each.lease_id], status=LeaseStatus.STARTING, slices=each.slices, room=()
            )
        elif isinstance(each, Preempt):
            leases[each.lease_id] = replace(leases[each.lease_id], preempted_ms=each.deadline_ms)
        elif isinstance(each, Wait):
            leases[each.lease_id] = replace(leases[each.lease_id], room=each.room)
    return replace(view, leases=tuple(leases.values()))


def _news(
    view: FarmView, rules: Rules, tree: QuotaTree, corrections: Corrections
) -> dict[str, tuple[Lease, ExpectedStart | None]]:
    """Return by id the waiting leases that are to be told something new, and what."""
    found = forecast(view, rules, tree, corrections)
    return {
        lease.id: (lease, found.get(lease.id))
        for lease in view.leases
        if waits(lease) and is_news(lease.expected_start, found.get(lease.id), view.now_ms)
    }


def is_news(old: ExpectedStart | None, new: ExpectedStart | None, now_ms: int) -> bool:
    """Whether a forecast differs from the one told before by something that a person would care about."""
    if old is None or new is None:
        return old is not new
    if old.basis != new.basis or old.latest_ms < now_ms:
        return True
    return any(
        abs(one - other) > max(LEAST_NEWS_MS, LEAST_NEWS * (other - now_ms))
        for one, other in (
            (old.earliest_ms, new.earliest_ms),
            (old.expected_ms, new.expected_ms),
            (old.latest_ms, new.latest_ms),
        )
    )
