"""Who may start: first come, first served, within capacity and a flat limit for each tenant.

The seam for richer policies is the function's type: :data:`Admission`.
"""

from collections import Counter
from collections.abc import Callable

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.placement import Rooms, place
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.status import LeaseStatus, Target
from cloudfarm.steward.view import Decision, Decisions, FarmView, Grant, Wait

Admission = Callable[[FarmView], Decisions]


def first_come(default_limit_milli_gpus: int) -> Admission:
    """Return the policy that admits in order of arrival.

    A lease held back by its own tenant's limit delays nobody else. One that waits for room holds back everything
    that came later, so that a large lease cannot be starved by small ones.
    """

    def admit(view: FarmView) -> Decisions:
        rooms = Rooms.of(
            view.hosts,
            (piece for lease in view.leases if lease.status.holds_capacity for piece in lease.slices),
        )
        held: Counter[str] = Counter()
        for lease in view.leases:
            if lease.status.holds_capacity:
                held[lease.tenant] += lease.milli_gpus
        queue = [
            lease
            for lease in view.leases
            if lease.status is LeaseStatus.WAITING and lease.target is Target.RUN
        ]
        decisions: list[Decision] = []
        first_blocked: Lease | None = None
        place_in_queue = 0
        for lease in queue:
            limit = view.tenants[lease.tenant].limit_milli_gpus
            limit = default_limit_milli_gpus if limit is None else limit
            if held[lease.tenant] + lease.milli_gpus > limit:
                reason = f"its tenant holds {_gpus(held[lease.tenant])} of at most {_gpus(limit)}"
            elif first_blocked is not None:
                reason = f"{first_blocked.id} came first and waits for room"
            else:
                slices = place(rooms, lease.id, lease.ask)
                if slices is not None:
                    held[lease.tenant] += lease.milli_gpus
                    decisions.append(Grant(lease.id, slices))
                    continue
                first_blocked = lease
                reason = f"{_ask(lease)} is not free at the moment"
            place_in_queue += 1
            message = f"place {place_in_queue} in the queue: {reason}"
            if message != lease.message:
                decisions.append(Wait(lease.id, message))
        return tuple(decisions)

    return admit


def _gpus(milli: int) -> str:
    return f"{milli / MILLI:g} GPU"


def _ask(lease: Lease) -> str:
    ask = lease.ask
    model = f" {ask.gpu_model}" if ask.gpu_model else ""
    return f"{ask.shape}{model} GPU with {ask.cpus} CPUs and {ask.memory_bytes / 1024**3:g} GiB a slice"
