"""From what people write to an :class:`~cloudfarm.domain.lease.Ask`, and the checks before one is queued."""

import re
from collections.abc import Callable, Mapping

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.moments import parse_not_before
from cloudfarm.domain.quantities import GIB, MILLI, parse_bytes, parse_count, parse_hours, parse_shape
from cloudfarm.domain.quota import Quota, quota_of, tree_in_force
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import check_slug
from cloudfarm.errors import (
    ImpossibleShapeError,
    InvalidInputError,
    LimitExceededError,
    TooManyError,
    UnavailableError,
)
from cloudfarm.ports import UnitOfWork
from cloudfarm.scheduler.space import ever_fits
from cloudfarm.scheduler.standing import amounts_of
from cloudfarm.settings import Settings

MIN_MEMORY_BYTES = 512 * 1024**2
"""A lease node's own Ray processes take most of this."""
MAX_PRIORITY = 100
_RESOURCES: Mapping[str, Callable[[int], str]] = {
    "milli_gpus": lambda amount: f"{amount / MILLI:g} GPUs",
    "cpus": lambda amount: f"{amount} CPUs",
    "memory_bytes": lambda amount: f"{amount / GIB:g} GiB",
}
"""How a person says an amount of each resource."""
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


def build_ask(
    settings: Settings,
    *,
    gpus: str | float,
    cpus: str | float | None = None,
    memory: str | float | None = None,
    hours: str | float | None = None,
    gpu_model: str | None = None,
    distinct_gpus: bool = True,
    priority: str | float | None = None,
    not_before_ms: int | None = None,
) -> Ask:
    """Read an ask; what is left out comes from the settings.

    Raises:
        InvalidInputError: naming the value that cannot be right.
    """
    shape = parse_shape(gpus)
    memory_bytes = parse_bytes(settings.default_memory if memory is None else memory)
    if memory_bytes < MIN_MEMORY_BYTES:
        raise InvalidInputError("memory: a slice needs at least 512MiB, most of it for its own Ray node")
    if memory_bytes > MIN_MEMORY_BYTES * 2**21:
        raise InvalidInputError("memory: a slice cannot have more than 1024TiB")
    if gpu_model is not None and _MODEL.fullmatch(gpu_model) is None:
        raise InvalidInputError("gpu_model: write the model's name as `cloudfarm status` shows it")
    return Ask(
        shape=shape,
        cpus=parse_count(
            settings.default_cpus if cpus is None else cpus, name="cpus", at_least=1, at_most=4096
        ),
        memory_bytes=memory_bytes,
        duration_ms=parse_hours(settings.default_hours if hours is None else hours),
        gpu_model=gpu_model,
        distinct_gpus=distinct_gpus,
        priority=parse_count(
            0 if priority is None else priority,
            name="priority",
            at_least=-MAX_PRIORITY,
            at_most=MAX_PRIORITY,
        ),
        not_before_ms=not_before_ms,
    )


def build_not_before(text: str | None, now_ms: int) -> int | None:
    """Return when a reservation begins; None for what may start at once.

    Raises:
        InvalidInputError: if it is no time to come.
    """
    return None if text is None else parse_not_before(text, now_ms=now_ms)


def build_project(project: str | None) -> str:
    """Return the project that a lease counts against; empty for none.

    Raises:
        InvalidInputError: if it is not a slug.
    """
    return "" if project is None else check_slug(project, what="project")


def default_limit_of(settings: Settings) -> int:
    """Return the milli-GPUs that a tenant may hold at once that has neither a quota nor a limit of its own."""
    return parse_shape(settings.default_limit_gpus).total_milli_gpus


async def check_ask(uow: UnitOfWork, settings: Settings, tenant_id: str, ask: Ask, project: str = "") -> None:
    """Refuse an ask that could never start, or that is one too many in the queue.

    Raises:
        LimitExceededError: if it is beyond a limit of the project, the tenant or a programme above it.
        ImpossibleShapeError: if no placement on the empty farm exists.
        TooManyError: if the tenant has too many leases waiting.
        UnavailableError: if the farm is being stopped, or has not yet seen its hosts.
    """
    if await uow.is_stopping():
        raise UnavailableError("the farm is being stopped; ask again when it is up")
    tenant = await uow.tenants.hold(tenant_id)  # two asks at once are counted in turn
    tree = tree_in_force(await uow.quotas.list(), [tenant], default_limit_of(settings))
    for quota in tree.path(quota_of(tenant_id, project)):
        _check_limit(ask, quota, tenant_id)
    hosts = await uow.hosts()
    if not hosts:
        raise UnavailableError("the farm has not seen any of its hosts yet; try again in a moment")
    if not ever_fits(hosts, ask):
        offers = ", ".join(
            f"{host.id}: {len(host.gpus)} GPUs"
            + (f" ({', '.join(sorted({gpu.model for gpu in host.gpus}))})" if host.gpus else "")
            + f", {host.cpus} CPUs, {host.memory_bytes / GIB:.0f} GiB"
            for host in sorted(hosts, key=lambda host: host.id)[:8]
        )
        model = f" {ask.gpu_model}" if ask.gpu_model else ""
        raise ImpossibleShapeError(
            f"{ask.shape}{model} GPU with {ask.cpus} CPUs and {ask.memory_bytes / GIB:.3g} GiB a slice "
            f"can never be placed here, not even on the empty farm ({offers})",
        )
    waiting = sum(
        lease.status is LeaseStatus.WAITING
        for lease in await uow.leases.list(tenant=tenant_id, open_only=True)
    )
    if waiting >= settings.max_waiting:
        raise TooManyError(
            f"{waiting} leases of tenant {tenant_id} are waiting already, and that is the most",
            max_waiting=settings.max_waiting,
        )


def _check_limit(ask: Ask, quota: Quota, tenant_id: str) -> None:
    asked = amounts_of(ask)
    for resource, text in _RESOURCES.items():
        amount, limit = getattr(asked, resource), getattr(quota.limit, resource)
        if amount > limit:
            raise LimitExceededError(
                f"{ask.shape} is {text(amount)}; {_whose(quota, tenant_id)} may hold {text(limit)} at once",
                quota=quota.id,
                **{f"limit_{resource}": limit, f"asked_{resource}": amount},
            )


def _whose(quota: Quota, tenant_id: str) -> str:
    if quota.id == tenant_id:
        return f"tenant {quota.id}"
    tenant, slash, project = quota.id.partition("/")
    if not slash:
        return f"programme {quota.id}"
    return f"project {quota.id}" if project else f"what of tenant {tenant} is in no project"
