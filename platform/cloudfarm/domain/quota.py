"""Who is promised how much: the tree of quotas, and the arithmetic of amounts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import InvalidInputError

UNLIMITED = 2**62
"""An amount that nothing reaches."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """GPUs, CPUs and memory, together: what is asked for, held, promised or there."""

    milli_gpus: int = 0
    cpus: int = 0
    memory_bytes: int = 0

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(
            self.milli_gpus + other.milli_gpus,
            self.cpus + other.cpus,
            self.memory_bytes + other.memory_bytes,
        )

    def __sub__(self, other: "Amounts") -> "Amounts":
        return Amounts(
            self.milli_gpus - other.milli_gpus,
            self.cpus - other.cpus,
            self.memory_bytes - other.memory_bytes,
        )

    def within(self, other: "Amounts") -> bool:
        """Whether this is at most the other in every resource."""
        return (
            self.milli_gpus <= other.milli_gpus
            and self.cpus <= other.cpus
            and self.memory_bytes <= other.memory_bytes
        )

    def share_of(self, whole: "Amounts") -> float:
        """Return the dominant share: the largest part of any resource of the whole (Ghodsi et al., NSDI 2011)."""
        return max(
            self.milli_gpus / max(1, whole.milli_gpus),
            self.cpus / max(1, whole.cpus),
            self.memory_bytes / max(1, whole.memory_bytes),
        )


NOTHING = Amounts()
EVERYTHING = Amounts(UNLIMITED, UNLIMITED, UNLIMITED)


def fit_together(limit: Amounts, one: Amounts, other: Amounts, more: Amounts = NOTHING) -> bool:
    """Whether some amounts together are within a limit: asked so often in a decision that no sum is made for it."""
    return (
        one.milli_gpus + other.milli_gpus + more.milli_gpus <= limit.milli_gpus
        and one.cpus + other.cpus + more.cpus <= limit.cpus
        and one.memory_bytes + other.memory_bytes + more.memory_bytes <= limit.memory_bytes
    )


@dataclass(frozen=True, slots=True)
class Quota:
    """What one programme, tenant or project is promised and allowed.

    A programme has a name of its own; a tenant's quota has the tenant's id; a project's is ``tenant/project``. Every
    lease counts against a project, named or not.
    """

    id: str
    parent: str | None = None
    guarantee: Amounts = NOTHING
    """What it gets back whenever it asks; what it does not use, others may borrow."""
    limit: Amounts = EVERYTHING
    """What it may hold at most, borrowed or not."""
    weight: int = 1
    """Its part of what its siblings leave over."""
    committed_milli_gpu_ms: int = UNLIMITED
    """Milli-GPUs x remaining time that it may have running beyond its guarantee: short work may fill an empty farm."""

    @property
    def is_project(self) -> bool:
        """Whether this is a tenant's project; nothing stands below one."""
        return "/" in self.id


@dataclass(frozen=True, slots=True)
class QuotaTree:
    """The quotas of a farm; whoever has none stands at the top with ``default``."""

    quotas: Mapping[str, Quota] = field(default_factory=dict)
    default: Quota = field(default_factory=lambda: Quota(""))

    @classmethod
    def of(
        cls, quotas: Iterable[Quota], *, default: Quota | None = None, capacity: Amounts | None = None
    ) -> "QuotaTree":
        """Return the tree of some quotas.

        Args:
            quotas: in any order.
            default: for whoever is not named.
            capacity: of the farm, which the guarantees at the top may not exceed; None if not known.

        Raises:
            InvalidInputError: for a tree that cannot be kept, with a sentence that says why.
        """
        found: dict[str, Quota] = {}
        for quota in quotas:
            if quota.id in found:
                raise InvalidInputError(f"quota {quota.id} is given twice")
            found[quota.id] = quota
        tree = cls(found, default or Quota(""))
        for quota in (*found.values(), tree.default):
            _check(quota)
        if tree.default.guarantee != NOTHING:
            raise InvalidInputError(
                "the default quota can promise nothing: it stands for any number of tenants"
            )
        for quota in found.values():
            _check_ancestors(quota, found)
        for parent in (None, *found):
            _check_children(parent, found, capacity)
        return tree

    def get(self, quota_id: str) -> Quota:
        """Return a quota; the default's amounts under this name if there is none."""
        found = self.quotas.get(quota_id)
        if found is not None:
            return found
        tenant, slash, _ = quota_id.partition("/")
        if slash:  # a project that nobody has named is bounded by its tenant alone
            return Quota(quota_id, tenant)
        default = self.default
        return Quota(
            quota_id, None, default.guarantee, default.limit, default.weight, default.committed_milli_gpu_ms
        )

    def path(self, quota_id: str) -> tuple[Quota, ...]:
        """Return the quotas from the top down to this one."""
        return tuple(self._up(quota_id))[::-1]

    def _up(self, quota_id: str) -> Iterator[Quota]:
        at: str | None = quota_id
        while at is not None:
            quota = self.get(at)
            yield quota
            at = quota.parent


def tree_in_force(
    stored: Iterable[Quota], tenants: Iterable[Tenant], default_limit_milli_gpus: int
) -> QuotaTree:
    """Return the quotas that hold now: what was set, and for each tenant its own limit as well.

    A tenant without a quota stands at the top, is promised nothing, and may hold its own limit or the farm's default.
    One with a quota may hold the smaller of the quota's limit and its own. A limit that has come to lie below a
    guarantee takes nothing away, and a host that is gone refuses nobody's quota: this tree is not checked anew.

    Args:
        stored: quotas, a tree already.
        tenants: all of them.
        default_limit_milli_gpus: what a tenant may hold that has neither a quota nor a limit of its own.
    """
    quotas = {quota.id: quota for quota in stored}
    default = Quota("", limit=replace(EVERYTHING, milli_gpus=default_limit_milli_gpus))
    for tenant in tenants:
        own = tenant.limit_milli_gpus
        quota = quotas.get(tenant.id)
        if quota is None:
            most = default_limit_milli_gpus if own is None else own
            quotas[tenant.id] = Quota(tenant.id, limit=replace(EVERYTHING, milli_gpus=most))
        elif own is not None:
            most = min(own, quota.limit.milli_gpus)
            quotas[tenant.id] = replace(quota, limit=replace(quota.limit, milli_gpus=most))
    return QuotaTree(quotas, default)


def completed(quota: Quota, capacity: Amounts) -> Quota:
    """Return a quota whose guarantee of GPUs comes with CPUs and memory.

    Those that it does not name are in the farm's proportion, at most its limit: without any CPU no lease would ever be
    within it.
    """
    gpus, has = quota.guarantee.milli_gpus, quota.guarantee
    if not gpus or not capacity.milli_gpus:
        return quota
    cpus = has.cpus or min(capacity.cpus * gpus // capacity.milli_gpus, quota.limit.cpus)
    memory = has.memory_bytes or min(
        capacity.memory_bytes * gpus // capacity.milli_gpus, quota.limit.memory_bytes
    )
    return replace(quota, guarantee=Amounts(gpus, cpus, memory))


def quota_of(tenant: str, project: str = "") -> str:
    """Return the id of the quota that a lease counts against; ``tenant/`` is what of a tenant is in no project."""
    return f"{tenant}/{project}"


def _check(quota: Quota) -> None:
    name = f"quota {quota.id}" if quota.id else "the default quota"
    if quota.weight < 1:
        raise InvalidInputError(f"{name}: a weight is 1 or more, not {quota.weight}")
    if quota.committed_milli_gpu_ms < 0:
        raise InvalidInputError(f"{name}: a bound on committed time is 0 or more")
    if not NOTHING.within(quota.guarantee) or not NOTHING.within(quota.limit):
        raise InvalidInputError(f"{name}: guarantees and limits are 0 or more")
    if not quota.guarantee.within(quota.limit):
        raise InvalidInputError(f"{name}: its guarantee is above its limit")
    tenant, slash, _ = quota.id.partition("/")
    if quota.parent is not None and "/" in quota.parent:
        raise InvalidInputError(f"{name}: nothing stands below a project, such as {quota.parent}")
    if slash and quota.parent != tenant:
        raise InvalidInputError(f"{name}: a project stands below its tenant, {tenant}")
    if quota.parent is not None and "/" in quota.parent:
        raise InvalidInputError(f"{name}: nothing stands below a project, {quota.parent}")


def _check_ancestors(quota: Quota, found: Mapping[str, Quota]) -> None:
    seen = {quota.id}
    parent = quota.parent
    while parent is not None:
        if parent in seen:
            raise InvalidInputError(f"quota {quota.id} stands below itself")
        if parent not in found:
            raise InvalidInputError(f"quota {quota.id} stands below {parent}, which there is not")
        seen.add(parent)
        parent = found[parent].parent


def _check_children(parent: str | None, found: Mapping[str, Quota], capacity: Amounts | None) -> None:
    promised = sum((quota.guarantee for quota in found.values() if quota.parent == parent), NOTHING)
    room, whose = (
        (capacity, "the farm has") if parent is None else (found[parent].guarantee, f"{parent} is promised")
    )
    if room is not None and not promised.within(room):
        raise InvalidInputError(
            f"the guarantees below {parent or 'the top'} come to {_text(promised)}, more than {whose}: {_text(room)}"
        )


def _text(amounts: Amounts) -> str:
    gib = amounts.memory_bytes / 1024**3
    return f"{amounts.milli_gpus / 1000:g} GPUs, {amounts.cpus} CPUs, {gib:g} GiB"
