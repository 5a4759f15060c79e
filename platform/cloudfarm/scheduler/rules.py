"""The queue's knobs, and what of a view does not depend on whose turn it is."""

from dataclasses import dataclass

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.quota import NOTHING, UNLIMITED, Amounts, QuotaTree
from cloudfarm.domain.status import LeaseStatus, Target
from cloudfarm.steward.view import FarmView

COMMITMENTS_MS = 60_000
"""How often bounds on committed time, which ease as time goes by, are looked at."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The queue's knobs."""

    min_run_ms: int = 300_000
    """How long a borrower runs before it may be preempted. Whoever is promised something waits for so long at most, and
    for the notice; in a farm of its own it would not."""
    preempt_notice_ms: int = 60_000
    """How long it is told before."""
    bookings: int = 16
    """For how many leases beyond their guarantee room is booked; those behind them start only beside what is booked."""
    reclaims: int = 16
    """For how many leases at most it is sought in one pass who gives way; the next pass goes on."""
    preempts: bool = True
    """Whether borrowed share is taken back at all."""
    spare_gpus: int = 0
    """How many GPUs borrowers leave free while a tenant that asks for nothing is promised as many: what it then asks
    for starts at once, and not after a notice."""
    spare_patience_ms: int = 86_400_000
    """Who has waited for so long may borrow those as well."""
    moves: int = 0
    """How many leases at most may be on the move at once to make room for others: see ``defrag.py``. 0: none, ever."""
    power_weight: float = 0.0
    """How many milli-GPUs of worth are given up to save a watt: see ``packing/power.py``."""


def next_look_ms(view: FarmView, rules: Rules, tree: QuotaTree) -> int | None:
    """Return when time alone may change a decision: a borrower has run long enough, a reservation's time comes.

    None if nothing waits, or only an event can change anything.
    """
    waiting = [lease for lease in view.leases if waits(lease)]
    if not waiting:
        return None
    times = [
        lease.started_ms + rules.min_run_ms
        for lease in view.leases
        if lease.started_ms is not None and rules.preempts
    ]
    for lease in waiting:
        at_ms = lease.ask.not_before_ms or 0
        times += [at_ms - rules.preempt_notice_ms, at_ms]
        if rules.spare_gpus:
            times.append(lease.created_ms + rules.spare_patience_ms)
    is_bounded = any(
        quota.committed_milli_gpu_ms < UNLIMITED for quota in (tree.default, *tree.quotas.values())
    )
    if is_bounded and any(lease.status.holds_capacity for lease in view.leases):
        times.append(view.now_ms + COMMITMENTS_MS)
    return min((each for each in times if each > view.now_ms), default=None)


def capacity_of(view: FarmView) -> Amounts:
    """Return what the farm's reachable hosts have together."""
    whole = NOTHING
    for host in view.hosts:
        if host.reachable:
            whole += Amounts(MILLI * len(host.gpus), host.cpus, host.memory_bytes)
    return whole


def waits(lease: Lease) -> bool:
    """Whether a lease waits to start."""
    return lease.status is LeaseStatus.WAITING and lease.target is Target.RUN
