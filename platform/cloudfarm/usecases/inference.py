"""Calls to services."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudfarm.clock import Clock
from cloudfarm.domain.status import ServiceStatus, Target
from cloudfarm.domain.tenant import CredentialKind, Role, hash_secret
from cloudfarm.domain.workload import Service
from cloudfarm.errors import InvalidInputError, UnavailableError
from cloudfarm.ports import Inference, Store
from cloudfarm.usecases.access import missing
from cloudfarm.usecases.credentials import authenticate
from cloudfarm.usecases.json_values import check_json
from cloudfarm.usecases.services import find_service

TIMEOUT_S = 60.0
MOST_KNOWN = 10_000
"""Callers of services that are remembered; with more of them within the time, the store is asked more often."""


@dataclass(slots=True)
class Gate:
    """Lets callers through to services, and asks the store about each of them only now and then.

    Three queries a request cost more than the request. So who was let through is for the same service, for a short
    time; a revoked key, a closed tenant or a deleted service is refused that much later. Refusals are not remembered.
    """

    store: Store
    clock: Clock
    fresh_ms: int = 500
    _known: dict[tuple[str, str], tuple[int, Service]] = field(default_factory=dict)
    """By hash of the secret and service: when it was looked up, and what was found."""

    async def service(self, secret: str | None, name: str) -> Service:
        """Return the service of that name if whoever has the secret may call it now.

        Raises:
            UnauthenticatedError: if nobody has that secret.
            ForbiddenError: if a token's role does not call services.
            NotFoundError: if the tenant has no such service, or the key may not call it.
            UnavailableError: if it does not run just now.
        """
        who = hash_secret(secret or ""), name
        now_ms = self.clock.now_ms()
        looked_ms, service = self._known.get(who, (0, None))
        if service is None or not 0 <= now_ms - looked_ms < self.fresh_ms:
            service = await self._look_up(secret, name)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[who] = now_ms, service
        return service

    async def _look_up(self, secret: str | None, name: str) -> Service:
        principal = await authenticate(self.store, self.clock, secret)
        if principal.kind is CredentialKind.KEY:
            if principal.services and name not in principal.services:
                raise missing("service", name)
        else:
            principal.need(Role.MEMBER)
        async with self.store.begin(write=False) as uow:
            service = await find_service(uow, principal, name)
        if service.status is not ServiceStatus.RUNNING or service.target is Target.END:
            raise UnavailableError(
                f"service {service.name} is {service.status}: {service.message or 'try again later'}"
            )
        return service


async def predict(
    gate: Gate,
    inference: Inference,
    secret: str | None,
    name: str,
    payload: Any,
) -> Mapping[str, Any]:
    """Return a service's answer.

    Raises:
        UnauthenticatedError, ForbiddenError, NotFoundError, UnavailableError: as :meth:`Gate.service` says.
        InvalidInputError: if the service refuses the payload.
    """
    service = await gate.service(secret, name)
    if not isinstance(payload, dict):
        raise InvalidInputError("a request to a service is a JSON object")
    check_json(payload, what="the request")
    return await inference.call(service.app_name, payload, timeout_s=TIMEOUT_S)
