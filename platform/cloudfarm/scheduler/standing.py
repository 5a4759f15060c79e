"""Where every quota stands: what it holds against what it is promised, and so whose turn it is."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cloudfarm.domain.lease import Ask, Lease
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.quota import (
    EVERYTHING,
    NOTHING,
    UNLIMITED,
    Amounts,
    Quota,
    QuotaTree,
    fit_together,
    quota_of,
)


def amounts_of(ask: Ask) -> Amounts:
    """Return what all slices of an ask take together."""
    count = ask.shape.count
    return Amounts(ask.shape.total_milli_gpus, count * ask.cpus, count * ask.memory_bytes)


@dataclass(slots=True)
class Account:
    """What one quota holds, with all below it."""

    held: Amounts = NOTHING
    """By what runs and stays, and by what starts in this pass."""
    leaving: Amounts = NOTHING
    """By what is on its way out."""
    due: Amounts = NOTHING
    """What is promised to it and will start as soon as others have made room."""
    booked: Amounts = NOTHING
    """By all for which room is kept, due or not."""
    booked_from_ms: int = UNLIMITED
    """When the first of those starts."""
    committed: int = 0
    """Milli-GPU-milliseconds still to run of what is held."""


@dataclass(slots=True)
class Standing:
    """What each quota holds, rolled up the tree; changed while a decision is made."""

    tree: QuotaTree
    capacity: Amounts
    now_ms: int
    past: Mapping[str, float] = field(default_factory=dict)
    """Decayed past use by quota (see :mod:`cloudfarm.scheduler.history`); 1 is the whole farm, always."""
    accounts: dict[str, Account] = field(default_factory=lambda: defaultdict(Account))
    """By quota."""
    _paths: dict[tuple[str, str], tuple[Quota, ...]] = field(default_factory=dict)

    def path(self, lease: Lease) -> tuple[Quota, ...]:
        """Return the quotas that a lease counts against, from the top down."""
        key = lease.tenant, lease.project
        if key not in self._paths:
            self._paths[key] = self.tree.path(quota_of(*key))
        return self._paths[key]

    # Changes

    def hold(self, leases: Iterable[Lease]) -> None:
        """Count leases as holding what they asked for."""
        for lease in leases:
            self.take(lease)

    def take(self, lease: Lease) -> None:
        """Count a lease as holding."""
        amounts, commitment = amounts_of(lease.ask), commitment_of(lease, self.now_ms)
        for quota in self.path(lease):
            account = self.accounts[quota.id]
            account.held += amounts
            account.committed += commitment

    def give(self, lease: Lease) -> None:
        """Count a lease as holding no longer."""
        amounts, commitment = amounts_of(lease.ask), commitment_of(lease, self.now_ms)
        for quota in self.path(lease):
            account = self.accounts[quota.id]
            account.held -= amounts
            account.committed -= commitment

    def leave(self, lease: Lease) -> None:
        """Count a lease as on its way out: it borrows no longer, but limits are still touched by it."""
        amounts = amounts_of(lease.ask)
        for quota in self.path(lease):
            self.accounts[quota.id].leaving += amounts

    def book(self, lease: Lease, from_ms: int, *, is_due: bool) -> None:
        """Count a lease as waiting for room that is kept for it; due if others make that room."""
        amounts = amounts_of(lease.ask)
        for quota in self.path(lease):
            account = self.accounts[quota.id]
            if is_due and self.is_promised(quota, amounts):
                account.due += amounts
            account.booked += amounts
            account.booked_from_ms = min(account.booked_from_ms, from_ms)

    # Questions

    def over_limit(self, lease: Lease, *, from_ms: int | None = None) -> Quota | None:
        """Return the quota whose limit keeps a lease from starting, or None.

        What room is booked for counts as well if the lease would still run then: it would delay what came before it.

        Args:
            lease: that waits.
            from_ms: when it would start; None for now. By any later time whoever is on the way out has gone.
        """
        amounts = amounts_of(lease.ask)
        until_ms = (self.now_ms if from_ms is None else from_ms) + lease.ask.duration_ms
        for quota in self.path(lease):
            if quota.limit == EVERYTHING:
                continue
            account = self.accounts[quota.id]
            leaving = account.leaving if from_ms is None else NOTHING
            if not fit_together(quota.limit, account.held, amounts, leaving):
                return quota
            if until_ms > account.booked_from_ms and not fit_together(
                quota.limit, account.held, amounts, account.booked
            ):
                return quota
        return None

    def over_commitment(self, lease: Lease) -> Quota | None:
        """Return the quota that has too much long work running to borrow for this lease, or None."""
        amounts = amounts_of(lease.ask)
        for quota in self.path(lease):
            if quota.committed_milli_gpu_ms >= UNLIMITED:
                continue
            account = self.accounts[quota.id]
            if fit_together(quota.guarantee, account.held, amounts):
                continue
            if account.committed + commitment_of(lease, self.now_ms) > quota.committed_milli_gpu_ms:
                return quota
        return None

    def is_promised(self, quota: Quota, amounts: Amounts) -> bool:
        """Whether a quota may take so much more without borrowing, with what is due to it already."""
        account = self.accounts[quota.id]
        return fit_together(quota.guarantee, account.held, account.due, amounts)

    def idle_promise(self, waiting: Iterable[Lease]) -> int:
        """Return how many whole GPUs a quota may still take without borrowing: the most of any that asks for nothing.

        Args:
            waiting: who asks.
        """
        asking = {quota.id for lease in waiting for quota in self.path(lease)}
        most = 0
        for quota_id in self.tree.quotas:
            path = self.tree.path(quota_id)
            if quota_id not in asking and not path[-1].is_project:
                most = max(most, min(self._left(quota) for quota in path) // MILLI)
        return most

    def _left(self, quota: Quota) -> int:
        """Return the milli-GPUs that a quota may still take without borrowing."""
        account = self.accounts[quota.id]
        return quota.guarantee.milli_gpus - (account.held + account.due).milli_gpus

    def has_claim(self, lease: Lease) -> bool:
        """Whether a lease is within the guarantee of any of its quotas, so that others may have to make room."""
        amounts = amounts_of(lease.ask)
        return any(self.is_promised(quota, amounts) for quota in self.path(lease))

    def borrows(self, quota: Quota) -> bool:
        """Whether a quota holds more than its guarantee, in any resource."""
        return not self.accounts[quota.id].held.within(quota.guarantee)

    def may_reclaim(self, lease: Lease, victim: Lease) -> bool:
        """Whether a waiting lease may take back what a running one borrows.

        They are compared where their paths part: there the one's quota must stay within its guarantee. The other's, and
        all below it, must be beyond their own; if a quota is, then one below it is, so somebody always is. So nothing
        that was promised is ever taken, and what was reclaimed cannot be reclaimed back: the borrower would have to be
        within its guarantee, with what it lost on top.
        """
        mine, theirs = self.path(lease), self.path(victim)
        for level, (one, other) in enumerate(zip(mine, theirs, strict=False)):
            if one.id != other.id:
                return self.is_promised(one, amounts_of(lease.ask)) and all(
                    self.borrows(quota) for quota in theirs[level:]
                )
        return False

    def turn(self, quota: Quota, amounts: Amounts) -> tuple[int, float]:
        """Return a quota's place among its siblings, least first; who is equal goes by age.

        Who is within the guarantee comes before who borrows. Among the former nothing but age counts: there is enough
        for all of them, and room that is made for one must not go to who comes later. Among the latter the one with the
        least surplus, present and past, for its weight comes first. What is booked counts as if it ran, so that
        siblings take turns at being booked, too.
        """
        if self.is_promised(quota, amounts):
            return 0, 0.0
        account = self.accounts[quota.id]
        surplus = max(0.0, (account.held + account.booked - quota.guarantee).share_of(self.capacity))
        return 1, (surplus + self.past.get(quota.id, 0.0)) / quota.weight


def commitment_of(lease: Lease, now_ms: int) -> int:
    """Return the milli-GPU-milliseconds that a lease may still run by its time limit."""
    left_ms = lease.ask.duration_ms if lease.ends_ms is None else max(0, lease.ends_ms - now_ms)
    return lease.milli_gpus * left_ms
