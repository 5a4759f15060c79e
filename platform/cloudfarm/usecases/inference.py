"""Calls to services."""

from collections.abc import Mapping
from typing import Any

from cloudfarm.domain.status import ServiceStatus, Target
from cloudfarm.domain.tenant import CredentialKind, Role
from cloudfarm.errors import InvalidInputError, UnavailableError
from cloudfarm.ports import Inference, Store
from cloudfarm.usecases.access import Principal, missing
from cloudfarm.usecases.json_values import check_json
from cloudfarm.usecases.services import find_service

TIMEOUT_S = 60.0


async def predict(
    store: Store,
    inference: Inference,
    principal: Principal,
    name: str,
    payload: Any,
) -> Mapping[str, Any]:
    """Return a service's answer.

    Raises:
        NotFoundError: if the tenant has no such service, or the key may not call it.
        UnavailableError: if it does not run just now.
        InvalidInputError: if the service refuses the payload.
    """
    if principal.kind is CredentialKind.KEY:
        if principal.services and name not in principal.services:
            raise missing("service", name)
    else:
        principal.need(Role.MEMBER)
    if not isinstance(payload, dict):
        raise InvalidInputError("a request to a service is a JSON object")
    check_json(payload, what="the request")
    async with store.begin(write=False) as uow:
        service = await find_service(uow, principal, name)
    if service.status is not ServiceStatus.RUNNING or service.target is Target.END:
        raise UnavailableError(
            f"service {service.name} is {service.status}: {service.message or 'try again later'}"
        )
    return await inference.call(service.app_name, payload, timeout_s=TIMEOUT_S)
