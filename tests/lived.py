"""What tests of replays share: leases that were lived, and what the store of their farm would know of them."""

from dataclasses import replace

from cloudfarm.domain.lease import Ask, Lease, LeaseKind
from cloudfarm.domain.ledger import REFUND, LedgerEntry, amount
from cloudfarm.domain.quantities import GIB, Shape
from cloudfarm.domain.status import EndReason, LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.scheduler.history import Memory
from cloudfarm.scheduler.rules import Rules
from cloudfarm.simulate import what_if
from cloudfarm.simulate.history import Past, retell, window_of
from cloudfarm.testing.fake_farm import make_host
from tests.scheduling import MINUTE

T0 = 1_700_000_040_000
CHECKPOINT = 10 * MINUTE
RULES = Rules(min_run_ms=0, preempt_notice_ms=MINUTE)
MEMORY = Memory()


def at(minutes):
    """Return a moment."""
    return T0 + round(minutes * MINUTE)


def lived(id_, asked, *segments, over=None, limit=60, lost=(), **more):
    """Return a lease and its ledger entries as the steward writes them; times are minutes.

    All its segments but the last were cut short; one without an end still runs. ``lost`` is what of each cut one was
    done in vain.
    """
    cut = segments if more.pop("waits_anew", False) else segments[:-1]
    lost = [*lost, *[0] * (len(segments) - len(lost))]
    used = sum(end - start - gone for (start, end), gone in zip(cut, lost, strict=False))
    lease = Lease(
        id_,
        id_.rstrip("0123456789"),
        "kim",
        id_,
        more.pop("kind", LeaseKind.JOB),
        Ask(Shape(1, more.pop("milli", 1000)), 1, GIB, round((limit - used) * MINUTE)),
        created_ms=at(asked),
        segment=2 * len(cut) + (len(cut) < len(segments)),
        **more,
    )
    is_running = len(cut) < len(segments)
    if is_running:
        lease = replace(
            lease, status=LeaseStatus.ACTIVE, granted_ms=at(segments[-1][0]), started_ms=at(segments[-1][0])
        )
    if over is not None:
        lease = replace(
            lease, status=LeaseStatus.ENDED, ended_ms=at(over), reason=lease.reason or EndReason.JOB_FINISHED
        )
    entries = []
    for number, (start, *end) in enumerate(segments):
        if not end:
            continue
        entries.append(_entry(lease, 2 * number + 1, lease.milli_gpus, start, end[0], kind="job"))
        if lost[number]:
            entries.append(
                _entry(lease, 2 * number + 2, -lease.milli_gpus, end[0] - lost[number], end[0], kind=REFUND)
            )
    return lease, entries


def _entry(lease, segment, milli, start, end, *, kind):
    return LedgerEntry(
        lease.tenant, lease.id, segment, kind, milli, at(start), at(end), amount(milli, at(start), at(end))
    )


def past(*lives, hosts=1, quotas=(), seen=600):
    """Return what the store of a farm of so many hosts of one GPU would know."""
    leases = sorted((lease for lease, _ in lives), key=lambda lease: (lease.created_ms, lease.id))
    return Past(
        leases,
        [entry for _, entries in lives for entry in entries],
        quotas,
        [Tenant(name, name, 0) for name in sorted({lease.tenant for lease in leases})],
        [make_host(f"h{number}", 1) for number in range(hosts)],
        at(seen),
    )


def tell(found, from_=None, until=None):
    """Tell it anew, in a window."""
    window = window_of(found, None if from_ is None else at(from_), None if until is None else at(until))
    return retell(found, window, CHECKPOINT)


def scenario(found, **changes):
    """Return the farm of a past, with some changes."""
    hosts = what_if.present(found.hosts)
    made = what_if.Scenario(hosts, what_if.tree_of(found, hosts, 100_000), RULES, MEMORY)
    return replace(made, **changes)


def minutes_of(course):
    """Return when a lease ran, in minutes."""
    return [((start - T0) / MINUTE, (end - T0) / MINUTE) for start, end in course.segments]
