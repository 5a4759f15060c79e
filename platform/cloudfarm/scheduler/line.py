"""The waiting leases in the order in which they are entitled to start."""

from collections import defaultdict
from collections.abc import Iterable
from heapq import heappop, heappush

from cloudfarm.domain.lease import Lease
from cloudfarm.domain.quota import Quota
from cloudfarm.scheduler.standing import Standing, amounts_of

Turn = tuple[int, float, int, str]


class Line:
    """A tree of waiting leases, walked from the top: at each level the sibling whose turn it is.

    A lease that starts changes whose turn is next, so the order is found one by one. The turn of a quota depends on its
    own account only; so after each lease those on its path are looked at anew, and :meth:`changed` tells of others.
    """

    def __init__(self, waiting: Iterable[Lease], standing: Standing) -> None:
        self._standing = standing
        self._leaves: dict[str, list[Lease]] = defaultdict(list)
        """Each with the most urgent last."""
        self._below: dict[str | None, list[tuple[Turn, int, str, Lease]]] = defaultdict(list)
        """By parent, a heap of its children, each with its age and its first lease; only the last age counts."""
        self._age: dict[str, int] = defaultdict(int)
        paths: dict[str, tuple[Quota, ...]] = {}
        for lease in sorted(waiting, key=_urgency, reverse=True):
            path = standing.path(lease)
            paths[path[-1].id] = path
            self._leaves[path[-1].id].append(lease)
        children: dict[str | None, set[str]] = defaultdict(set)
        for path in paths.values():
            for quota in path:
                children[quota.parent].add(quota.id)
        self._only = {next(iter(those)) for those in children.values() if len(those) == 1}
        """Quotas that wait without siblings: it is always their turn."""
        for path in paths.values():
            self._renew(path)
        self._last: tuple[Quota, ...] = ()

    def pop(self) -> Lease | None:
        """Take out and return the next lease, or None if none is left."""
        self._renew(self._last)
        self._last = ()
        lease = self._first(None)
        if lease is not None:
            self._last = self._standing.path(lease)
            self._leaves[self._last[-1].id].pop()
        return lease

    def changed(self, lease: Lease) -> None:
        """Look anew at the quotas of a lease whose account has changed, though it was not the last one here."""
        self._renew(self._standing.path(lease))

    def _renew(self, path: tuple[Quota, ...]) -> None:
        for quota in reversed(path):
            leaves = self._leaves.get(quota.id)
            lease = leaves[-1] if leaves else self._first(quota.id)
            self._age[quota.id] += 1
            if lease is not None:
                first = (
                    (0, 0.0) if quota.id in self._only else self._standing.turn(quota, amounts_of(lease.ask))
                )
                turn = *first, lease.created_ms, lease.id
                heappush(self._below[quota.parent], (turn, self._age[quota.id], quota.id, lease))

    def _first(self, parent: str | None) -> Lease | None:
        heap = self._below.get(parent)
        while heap:
            _, age, quota_id, lease = heap[0]
            if age == self._age[quota_id]:
                return lease
            heappop(heap)
        return None


def _urgency(lease: Lease) -> tuple[int, int, str]:
    return -lease.ask.priority, lease.created_ms, lease.id
