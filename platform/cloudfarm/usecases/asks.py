"""From what people write to an :class:`~cloudfarm.domain.lease.Ask`, and the checks before one is queued."""

import re

from cloudfarm.domain.lease import Ask
from cloudfarm.domain.placement import ever_fits
from cloudfarm.domain.quantities import GIB, MILLI, parse_bytes, parse_count, parse_hours, parse_shape
from cloudfarm.domain.status import LeaseStatus
from cloudfarm.domain.tenant import Tenant
from cloudfarm.errors import (
    ImpossibleShapeError,
    InvalidInputError,
    LimitExceededError,
    TooManyError,
    UnavailableError,
)
from cloudfarm.ports import UnitOfWork
from cloudfarm.settings import Settings

MIN_MEMORY_BYTES = 512 * 1024**2
"""A lease node's own Ray processes take most of this."""
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
    )


def limit_of(tenant: Tenant, settings: Settings) -> int:
    """Return the milli-GPUs that a tenant may hold at once."""
    if tenant.limit_milli_gpus is not None:
        return tenant.limit_milli_gpus
    return parse_shape(settings.default_limit_gpus).total_milli_gpus


async def check_ask(uow: UnitOfWork, settings: Settings, tenant_id: str, ask: Ask) -> None:
    """Refuse an ask that could never start, or that is one too many in the queue.

    Raises:
        LimitExceededError: if it is beyond the tenant's limit.
        ImpossibleShapeError: if no placement on the empty farm exists.
        TooManyError: if the tenant has too many leases waiting.
        UnavailableError: if the farm is being stopped, or has not yet seen its hosts.
    """
    if await uow.is_stopping():
        raise UnavailableError("the farm is being stopped; ask again when it is up")
    limit = limit_of(await uow.tenants.hold(tenant_id), settings)  # two asks at once are counted in turn
    total = ask.shape.total_milli_gpus
    if total > limit:
        raise LimitExceededError(
            f"{ask.shape} is {total / MILLI:g} GPUs; tenant {tenant_id} may hold {limit / MILLI:g} at once",
            limit_milli_gpus=limit,
            asked_milli_gpus=total,
        )
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
