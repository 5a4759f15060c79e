"""The decision: a pure function of the farm's view, the same for the live farm and for simulations."""

from collections.abc import Callable

from cloudfarm.domain.status import EndReason, LeaseStatus
from cloudfarm.steward import lifecycle, services, workloads
from cloudfarm.steward.view import Decision, Decisions, EndLease, FarmView, Policy

Admission = Callable[[FarmView], Decisions]
"""Who may start, who has to make room, and what the others are told: the seam for policies."""


def decide(view: FarmView, *, admit: Admission, policy: Policy) -> Decisions:
    """Return everything that should be done now.

    Nothing is concluded from what could not be observed (a silent host, a Ray API that did not answer), and deciding
    again from an unchanged view gives the same decisions: carrying one out twice must do no harm.
    """
    ground = lifecycle.Ground(view, policy)
    decisions: list[Decision] = []
    for lease in view.leases:
        if view.stopping and lease.status in (LeaseStatus.STARTING, LeaseStatus.ACTIVE):
            decisions.append(
                EndLease(lease.id, EndReason.FARM_STOPPED, "the farm is being stopped", view.now_ms)
            )
        else:
            decisions.extend(lifecycle.advance(lease, view, ground, policy))
    decisions.extend(lifecycle.leaks(view))
    decisions.extend(workloads.jobs(view))
    decisions.extend(services.services(view))
    if not view.stopping:
        decisions.extend(workloads.releases(view))
        decisions.extend(admit(view))
    return tuple(decisions)
