"""The one error root of the farm.

Every error that may reach a person carries a stable ``code`` and an HTTP ``status`` on its class; the API turns it
into an RFC 9457 body and the CLI into one line and an exit code. ``docs/errors.md`` lists every code, held by a test.
This module imports the standard library only, so that every layer, ``domain`` included, may use it.
"""

from typing import Any, ClassVar


class CloudfarmError(Exception):
    """An error that can be reported to the person who caused it.

    Args:
        detail: one plain sentence saying what happened and, where possible, what to do.
        **data: JSON-able facts for programs (they become members of the problem body).
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The farm made a mistake"

    def __init__(self, detail: str = "", **data: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross actors by pickle, and keyword arguments are lost by default."""
        return (_rebuild, (type(self), self.detail, self.data))


def _rebuild(kind: type[CloudfarmError], detail: str, data: dict[str, Any]) -> CloudfarmError:
    return kind(detail, **data)


class InvalidInputError(CloudfarmError):
    """The request has a value that can never be right."""

    code = "invalid_input"
    status = 422
    title = "The request is not valid"


class InvalidShapeError(InvalidInputError):
    """A GPU shape that cannot be read or can never exist."""

    code = "invalid_shape"
    title = "The shape is not valid"


class ImpossibleShapeError(InvalidInputError):
    """A well-formed shape that no host of this farm could hold even when empty."""

    code = "impossible_shape"
    title = "No host of this farm can ever hold this shape"


class ForbiddenKeyError(InvalidInputError):
    """A job asks for something that would leave its lease (a resource, an option, an environment key)."""

    code = "forbidden_key"
    title = "The job uses an option that is not allowed here"


class UnauthenticatedError(CloudfarmError):
    """No token, an unknown one, an expired or a revoked one."""

    code = "unauthenticated"
    status = 401
    title = "A valid token is needed"


class ForbiddenError(CloudfarmError):
    """The token is good, but its role may not do this."""

    code = "forbidden"
    status = 403
    title = "This token may not do that"


class NotFoundError(CloudfarmError):
    """There is no such thing, or it is another tenant's (the two are answered alike)."""

    code = "not_found"
    status = 404
    title = "Not found"


class ConflictError(CloudfarmError):
    """The thing is in a state in which this cannot be done."""

    code = "conflict"
    status = 409
    title = "That cannot be done in the present state"


class AlreadyExistsError(ConflictError):
    """The name is taken."""

    code = "already_exists"
    title = "The name is taken"


class TransitionError(ConflictError):
    """A status change that the transition table does not have."""

    code = "illegal_transition"
    title = "No such status change"


class StaleError(ConflictError):
    """The record was changed by somebody else since it was read; read again and retry."""

    code = "stale"
    title = "The record has changed meanwhile"


class FencedError(ConflictError):
    """A newer steward has taken over; this one must stop acting."""

    code = "fenced"
    title = "A newer steward has taken over"


class LimitExceededError(CloudfarmError):
    """The request goes beyond the tenant's limit and could never start under it."""

    code = "limit_exceeded"
    status = 422
    title = "The tenant's limit does not allow this"


class TooLargeError(CloudfarmError):
    """A body or package over the size limit."""

    code = "too_large"
    status = 413
    title = "The body is too large"


class TooManyError(CloudfarmError):
    """Too many things of this kind are waiting."""

    code = "too_many"
    status = 429
    title = "Too many requests of this kind"


class UnavailableError(CloudfarmError):
    """A part of the farm does not answer just now; nothing was changed and a retry may succeed."""

    code = "unavailable"
    status = 503
    title = "A part of the farm does not answer just now"


class NoReplicaError(UnavailableError):
    """Nothing of a service runs that could take the request: nobody has got it, so it may safely be sent again."""

    code = "no_replica"
    title = "Nothing of the service runs that could take the request"


class ReplicaLostError(UnavailableError):
    """A service's replica is lost that may have had the request: nobody knows what of it was done."""

    code = "replica_lost"
    title = "The service's replica was lost while it had the request"


class StorageFullError(UnavailableError):
    """No room on the farm's disk; nothing was written."""

    code = "storage_full"
    status = 507
    title = "The farm's storage is full"


class StorageRefusedError(UnavailableError):
    """The farm's storage refuses a file or folder: its permissions, or links that lead in a circle."""

    code = "storage_refused"
    title = "The farm's storage refuses this file"


class HostError(CloudfarmError):
    """A host refused or failed an order."""

    code = "host_failed"
    status = 502
    title = "A host could not carry out the order"


class AppFailedError(CloudfarmError):
    """A tenant's own application failed while it answered."""

    code = "app_failed"
    status = 502
    title = "The application behind this service failed"


def all_errors() -> list[type[CloudfarmError]]:
    """Return every error class of the project that has been imported, the root first."""
    found: list[type[CloudfarmError]] = [CloudfarmError]
    for kind in found:
        found.extend(sub for sub in kind.__subclasses__() if sub not in found)
    return found
