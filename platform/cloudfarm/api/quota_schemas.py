"""Bodies of requests and answers about quotas."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from cloudfarm.api.problem import from_validation
from cloudfarm.api.schemas import HOUR_MS, Answer, Body, Quantity, Text
from cloudfarm.domain.quantities import MILLI
from cloudfarm.domain.quota import UNLIMITED, Amounts, Quota
from cloudfarm.usecases.quotas import QuotaReport, QuotaStanding, build_quota

T = TypeVar("T")


class AmountsBody(Body):
    """Amounts of resources; what is left out is no limit, and of a guarantee comes with its GPUs."""

    gpus: Quantity | None = None
    cpus: Quantity | None = None
    memory: Quantity | None = None

    @classmethod
    def of(cls, amounts: Amounts, left_out: int) -> Self:
        """Return amounts as they may be written."""
        return cls(
            gpus=_unless(left_out, amounts.milli_gpus, f"{Decimal(amounts.milli_gpus) / MILLI:f}"),
            cpus=_unless(left_out, amounts.cpus, amounts.cpus),
            memory=_unless(left_out, amounts.memory_bytes, amounts.memory_bytes),
        )


class QuotaBody(Body):
    """One quota of the tree."""

    id: Text
    parent: Text | None = None
    guarantee: AmountsBody = AmountsBody()
    limit: AmountsBody = AmountsBody()
    weight: Quantity = 1
    committed_gpu_hours: Quantity | None = None

    def quota(self) -> Quota:
        """Return the quota; raises InvalidInputError."""
        return build_quota(
            self.id,
            parent=self.parent,
            guarantee=self.guarantee.model_dump(),
            limit=self.limit.model_dump(),
            weight=self.weight,
            committed_gpu_hours=self.committed_gpu_hours,
        )

    @classmethod
    def of(cls, quota: Quota) -> Self:
        """Return a quota as it may be written."""
        committed = quota.committed_milli_gpu_ms
        return cls(
            id=quota.id,
            parent=quota.parent,
            guarantee=AmountsBody.of(quota.guarantee, 0),
            limit=AmountsBody.of(quota.limit, UNLIMITED),
            weight=quota.weight,
            committed_gpu_hours=_unless(UNLIMITED, committed, f"{Decimal(committed) / MILLI / HOUR_MS:f}"),
        )


class AmountsOut(Answer):
    """Amounts of resources; None for no limit."""

    milli_gpus: int | None
    cpus: int | None
    memory_bytes: int | None

    @classmethod
    def of(cls, amounts: Amounts) -> Self:
        """Return amounts' answer."""
        return cls(
            milli_gpus=_unless(UNLIMITED, amounts.milli_gpus, amounts.milli_gpus),
            cpus=_unless(UNLIMITED, amounts.cpus, amounts.cpus),
            memory_bytes=_unless(UNLIMITED, amounts.memory_bytes, amounts.memory_bytes),
        )


class StandingOut(Answer):
    """A quota in force and what counts against it; ``held`` is None where others hold a part of it."""

    id: str
    parent: str | None
    guarantee: AmountsOut
    limit: AmountsOut
    weight: int
    committed_milli_gpu_ms: int | None
    held: AmountsOut | None

    @classmethod
    def of(cls, standing: QuotaStanding) -> Self:
        """Return a standing's answer."""
        quota = standing.quota
        return cls(
            id=quota.id,
            parent=quota.parent,
            guarantee=AmountsOut.of(quota.guarantee),
            limit=AmountsOut.of(quota.limit),
            weight=quota.weight,
            committed_milli_gpu_ms=_unless(
                UNLIMITED, quota.committed_milli_gpu_ms, quota.committed_milli_gpu_ms
            ),
            held=None if standing.held is None else AmountsOut.of(standing.held),
        )


class QuotasOut(Answer):
    """The quotas as they were set, in the form in which they are, and as they are in force."""

    quotas: list[QuotaBody]
    in_force: list[StandingOut]

    @classmethod
    def of(cls, report: QuotaReport) -> Self:
        """Return a report's answer."""
        return cls(
            quotas=[QuotaBody.of(quota) for quota in report.stored],
            in_force=[StandingOut.of(standing) for standing in report.in_force],
        )


def _unless(left_out: int, amount: int, said: T) -> T | None:
    return None if amount == left_out else said


def read_quotas(rows: Sequence[object]) -> Sequence[Quota]:
    """Return the quotas of plain data, as a request to replace them would be read.

    Raises:
        InvalidInputError: for what is no quota; its place is named, counted from 0.
    """
    try:
        bodies = TypeAdapter(list[QuotaBody]).validate_python(list(rows))
    except ValidationError as error:
        raise from_validation(error.errors()) from None
    return [body.quota() for body in bodies]
