"""Quotas: operators read and replace the whole tree; a tenant reads its own path in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cloudfarm.clock import Clock
from cloudfarm.domain.quantities import GIB, MILLI, parse_bytes, parse_count, parse_gpu_hours, parse_gpus
from cloudfarm.domain.quota import (
    EVERYTHING,
    NOTHING,
    UNLIMITED,
    Amounts,
    Quota,
    QuotaTree,
    completed,
    tree_in_force,
)
from cloudfarm.domain.status import Event
from cloudfarm.domain.tenant import Role, check_slug
from cloudfarm.errors import InvalidInputError, UnavailableError
from cloudfarm.ports import Store, UnitOfWork
from cloudfarm.scheduler.standing import Standing
from cloudfarm.settings import Settings
from cloudfarm.usecases.access import Principal, in_unit
from cloudfarm.usecases.asks import default_limit_of

MAX_QUOTAS = 2000
MAX_WEIGHT = 1_000_000
MAX_CPUS = 10_000_000
MAX_BYTES = 2**60
Written = str | float | None
"""An amount as people write it; None if they did not."""


@dataclass(frozen=True, slots=True)
class QuotaStanding:
    """A quota in force and what counts against it now."""

    quota: Quota
    held: Amounts | None
    """None if others hold a part of it, whose business that is."""


@dataclass(frozen=True, slots=True)
class QuotaReport:
    """What a principal may see of the quotas."""

    stored: tuple[Quota, ...]
    """As they were set."""
    in_force: tuple[QuotaStanding, ...]
    """With every tenant and its own limit, and every project that holds something; each below its parent."""


def build_quota(
    quota_id: str,
    *,
    parent: str | None = None,
    guarantee: Mapping[str, Written] = MappingProxyType({}),
    limit: Mapping[str, Written] = MappingProxyType({}),
    weight: str | float = 1,
    committed_gpu_hours: Written = None,
) -> Quota:
    """Read one quota.

    Args:
        quota_id: a programme's name, a tenant's, or ``TENANT/PROJECT``.
        parent: what it stands below.
        guarantee: ``gpus``, ``cpus`` and ``memory`` (``8``, ``64``, ``256GiB``); CPUs and memory that are left out come
            with the GPUs (see :func:`~cloudfarm.domain.quota.completed`).
        limit: likewise; no limit to what is left out.
        weight: its part of what its siblings leave over.
        committed_gpu_hours: GPUs x remaining hours that it may have running beyond its guarantee; no bound if None.

    Raises:
        InvalidInputError: for a name that cannot be one, or an amount that cannot be read or that no farm has.
    """
    tenant, slash, project = quota_id.partition("/")
    check_slug(tenant, what="quota")
    if slash and project:
        check_slug(project, what="project")
    try:
        return Quota(
            id=quota_id,
            parent=parent,
            guarantee=_amounts(NOTHING, **guarantee),
            limit=_amounts(EVERYTHING, **limit),
            weight=parse_count(weight, name="weight", at_least=1, at_most=MAX_WEIGHT),
            committed_milli_gpu_ms=(
                UNLIMITED if committed_gpu_hours is None else parse_gpu_hours(committed_gpu_hours)
            ),
        )
    except InvalidInputError as error:
        raise InvalidInputError(f"quota {quota_id}: {error.detail}") from None


def _amounts(
    default: Amounts, *, gpus: Written = None, cpus: Written = None, memory: Written = None
) -> Amounts:
    memory_bytes = default.memory_bytes if memory is None else parse_bytes(memory)
    if memory is not None and memory_bytes > MAX_BYTES:
        raise InvalidInputError(f"memory is at most {MAX_BYTES // GIB} GiB")
    return Amounts(
        default.milli_gpus if gpus is None else parse_gpus(gpus),
        default.cpus if cpus is None else parse_count(cpus, name="cpus", at_most=MAX_CPUS),
        memory_bytes,
    )


async def show_quotas(store: Store, clock: Clock, settings: Settings, principal: Principal) -> QuotaReport:
    """Return the quotas and what each holds: all to an operator, to a tenant its own and those above."""
    principal.need(Role.VIEWER)
    async with store.begin(write=False) as uow:
        return await _report(uow, clock, settings, principal)


async def replace_quotas(
    store: Store, clock: Clock, settings: Settings, principal: Principal, quotas: Sequence[Quota]
) -> QuotaReport:
    """Put another tree in the place of the one there is; an empty one leaves the tenants' own limits.

    It takes nothing away from leases that run.

    Raises:
        InvalidInputError: for what is no tree, or guarantees more than the known hosts have.
        UnavailableError: if the farm has not yet seen its hosts.
    """
    principal.need(Role.OPERATOR)
    if len(quotas) > MAX_QUOTAS:
        raise InvalidInputError(f"{len(quotas)} quotas are too many; {MAX_QUOTAS} are the most")

    async def work(uow: UnitOfWork) -> QuotaReport:
        hosts = await uow.hosts()
        if not hosts:
            raise UnavailableError("the farm has not seen any of its hosts yet; try again in a moment")
        has = (Amounts(MILLI * len(host.gpus), host.cpus, host.memory_bytes) for host in hosts)
        capacity = sum(has, NOTHING)
        whole = [completed(quota, capacity) for quota in quotas]
        QuotaTree.of(whole, capacity=capacity)
        _check_tenants(whole, {tenant.id for tenant in await uow.tenants.list()})
        await uow.quotas.replace_all(whole)
        message = f"{len(whole)} quotas"
        await uow.events.append(
            Event(clock.now_ms(), "quotas.changed", "quotas", None, principal.actor, message)
        )
        return await _report(uow, clock, settings, principal)

    return await in_unit(store, work)


def _check_tenants(quotas: Iterable[Quota], tenants: set[str]) -> None:
    for quota in quotas:
        if quota.parent in tenants and not quota.is_project:
            raise InvalidInputError(
                f"quota {quota.id}: {quota.parent} is a tenant; only its projects stand below it"
            )


async def _report(uow: UnitOfWork, clock: Clock, settings: Settings, principal: Principal) -> QuotaReport:
    stored = await uow.quotas.list()
    tree = tree_in_force(stored, await uow.tenants.list(), default_limit_of(settings))
    holding = [lease for lease in await uow.leases.list(open_only=True) if lease.status.holds_capacity]
    standing = Standing(tree, NOTHING, clock.now_ms())
    standing.hold(holding)
    held = {quota_id: account.held for quota_id, account in standing.accounts.items()}
    projects = {quota_id: tree.get(quota_id) for quota_id in held if not quota_id.endswith("/")}
    quotas = {**projects, **tree.quotas}
    own = {quota_id for quota_id in quotas if principal.sees(quota_id.partition("/")[0])}
    visible = own if principal.is_operator else own | {each.id for each in tree.path(principal.home)}
    return QuotaReport(
        stored=tuple(quota for quota in stored if quota.id in visible),
        in_force=tuple(
            QuotaStanding(quota, held.get(quota.id, NOTHING) if quota.id in own else None)
            for quota in _in_order(quotas.values())
            if quota.id in visible
        ),
    )


def _in_order(quotas: Iterable[Quota]) -> Iterator[Quota]:
    """Yield each quota before those below it, siblings by id."""
    left = sorted(quotas, key=lambda quota: quota.id, reverse=True)
    below: dict[str | None, list[Quota]] = {}
    for quota in left:
        below.setdefault(quota.parent, []).append(quota)
    stack = below.get(None, [])
    while stack:
        quota = stack.pop()
        yield quota
        stack.extend(below.get(quota.id, []))
