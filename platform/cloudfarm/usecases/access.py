"""Who asks, what they may do, and how another tenant's things stay invisible."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cloudfarm.domain.tenant import CredentialKind, Role
from cloudfarm.errors import ForbiddenError, NotFoundError, StaleError
from cloudfarm.ports import Store, UnitOfWork

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
_ATTEMPTS = 5

T = TypeVar("T")


class _Owned(Protocol):
    @property
    def tenant(self) -> str: ...


O = TypeVar("O", bound=_Owned)  # noqa: E741 - the usual name of a bound type variable would say less


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody whose secret was checked. ``tenant`` is None for an operator."""

    tenant: str | None
    user: str
    role: Role
    kind: CredentialKind
    credential_id: str
    services: tuple[str, ...] = ()
    """For a key: the services it may call; empty means all of its tenant's."""

    @property
    def is_operator(self) -> bool:
        """Whether this is somebody who runs the farm."""
        return self.role is Role.OPERATOR

    @property
    def actor(self) -> str:
        """The name under which events tell what this principal did."""
        return f"{'operator' if self.is_operator else 'user'}:{self.user}"

    @property
    def home(self) -> str:
        """The tenant that this principal acts for.

        Raises:
            ForbiddenError: for an operator, who belongs to none.
        """
        if self.tenant is None:
            raise ForbiddenError("an operator's token belongs to no tenant; use a token of the tenant")
        return self.tenant

    def need(self, role: Role) -> None:
        """Refuse whoever has less than the role, and every API key.

        Raises:
            ForbiddenError: with the role that is needed.
        """
        if self.kind is CredentialKind.KEY:
            raise ForbiddenError("an API key may call services and nothing else; use a token")
        if not self.role.allows(role):
            # Ray's client adds to any 403 that the token must be wrong; so say first that it is not.
            raise ForbiddenError(f"the token is good, but its role is {self.role} and this needs {role}")

    def scope(self, tenant: str | None) -> str | None:
        """Return the tenant whose things are meant: the principal's own; for operators the one named.

        Returns:
            None for an operator who names none: everybody's.

        Raises:
            NotFoundError: if a tenant's principal asks for another tenant.
        """
        if self.is_operator and (tenant is None or is_identifier(tenant)):
            return tenant
        if tenant not in (None, self.tenant):
            raise missing("tenant", tenant or "")
        return self.home

    def sees(self, tenant: str | None) -> bool:
        """Whether a thing of that tenant exists for this principal."""
        return self.is_operator or (tenant is not None and tenant == self.tenant)


def quoted(text: str) -> str:
    """Return something that a stranger wrote in a form that is safe to show and to log."""
    return ascii(text if len(text) <= 80 else f"{text[:77]}...")  # noqa: PLR2004 - a line's length


def missing(what: str, name: str) -> NotFoundError:
    """Return the one answer for what is not there and for what is somebody else's."""
    return NotFoundError(f"there is no {what} {quoted(name)}")


def is_identifier(text: str) -> bool:
    """Whether the text could be the name of anything stored; nothing else may even reach the database."""
    return _IDENTIFIER.fullmatch(text) is not None


async def owned(get: Callable[[str], Awaitable[O]], name: str, principal: Principal, what: str) -> O:
    """Return the record of that name if the principal may see it.

    Raises:
        NotFoundError: if there is none, and in the same words if it is another tenant's.
    """
    if is_identifier(name):
        try:
            record = await get(name)
        except NotFoundError:
            raise missing(what, name) from None
        if principal.sees(record.tenant):
            return record
    raise missing(what, name)


async def in_unit(store: Store, work: Callable[[UnitOfWork], Awaitable[T]]) -> T:
    """Run ``work`` in one transaction and keep what it did.

    The steward updates the same records all the time, so a stale version is read again and retried rather
    than reported to somebody who could only do the same.

    Raises:
        StaleError: if the record kept changing.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with store.begin() as uow:
                result = await work(uow)
                await uow.commit()
                return result
        except StaleError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")
