"""How many replicas a service should have, from what it is asked."""

from cloudfarm.domain.load import WINDOW_MS, Load, LoadReport
from cloudfarm.domain.status import RevisionStatus
from cloudfarm.domain.workload import Revision, Service

SILENT_MS = 10_000
"""After so long without a word from the front door nothing is known of the load."""


def is_fresh(report: LoadReport | None, now_ms: int) -> bool:
    """Whether a report tells of now."""
    return report is not None and now_ms - report.at_ms <= SILENT_MS


def wanted_replicas(
    service: Service,
    revision: Revision,
    report: LoadReport | None,
    now_ms: int,
    *,
    at_least: int = 0,
    is_followed: bool = False,
    needs_restart: bool = False,
) -> int:
    """Return how many replicas a revision should have.

    As many as the peak of the last 30 seconds needs with ``target_load`` requests on each: more at once, fewer only
    when the peak has passed, and none once nobody has asked for ``idle_ms``; but what has never run yet runs once,
    however long that takes, so that its owner sees whether it does. What is not known shrinks nothing. What has failed
    answers nobody: it may fall asleep though it has never run; and once it is given up it has none at all, until the
    steward has it tried again, which is when it has failed no more.

    Args:
        service: its settings.
        revision: what runs, or is to.
        report: what all services are asked; None if nothing is known of it.
        now_ms: the time.
        at_least: fewer are not wanted, whatever the load.
        is_followed: whether another revision is to take over from this one.
        needs_restart: whether nothing but another beginning helps this one.
    """
    if revision.is_given_up or (revision.status is RevisionStatus.FAILED and needs_restart):
        return 0
    least, most = max(service.min_replicas, at_least), service.max_replicas
    if revision.is_own_app:  # has one lease, whatever was asked for another revision
        least, most = min(least, 1), 1
    if is_followed and revision.status is RevisionStatus.IDLE:
        least = 0
    present = revision.replicas
    if report is None:
        return _within(present, least, most)
    load = report.loads.get(service.id, Load())
    peak = load.peak * revision.canary_percent if revision.canary_percent else load.peak * 100
    needed = -(-peak // (100 * service.target_load))
    if now_ms - report.since_ms < WINDOW_MS:
        needed = max(needed, present)
    asleep = present == 0 and load.peak == 0
    if not asleep and not _is_idle(service, revision, report, now_ms):
        needed = max(needed, 1)
    return _within(needed, least, most)


def _is_idle(service: Service, revision: Revision, report: LoadReport, now_ms: int) -> bool:
    began_ms = revision.started_ms
    if began_ms is None:
        if revision.status is not RevisionStatus.FAILED:
            return False
        began_ms = revision.created_ms
    last_ms = report.loads.get(service.id, Load()).last_request_ms
    return now_ms - max(last_ms, report.since_ms, began_ms) >= service.idle_ms


def _within(replicas: int, least: int, most: int) -> int:
    return max(least, min(replicas, max(least, most)))
