"""Tenants, roles and credentials."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from cloudfarm.errors import InvalidInputError

_SLUG = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")


class Role(StrEnum):
    """What a token may do, widest first.

    OPERATOR runs the farm and belongs to no tenant; ADMIN manages a tenant's tokens and keys; MEMBER uses leases,
    jobs and services; VIEWER only reads.
    """

    OPERATOR = "operator"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"

    def allows(self, needed: "Role") -> bool:
        """Whether this role includes the needed one."""
        order = list(Role)
        return order.index(self) <= order.index(needed)


class CredentialKind(StrEnum):
    """A token speaks for a person; a key may only call services."""

    TOKEN = "token"  # noqa: S105 - a kind, not a secret
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organisation that shares the farm."""

    id: str
    """A slug: lower-case letters, digits, hyphens."""
    title: str
    created_ms: int
    limit_milli_gpus: int | None = None
    """How much it may hold at once; None means no limit of its own."""
    closed_ms: int | None = None
    limit_tokens_per_month: int | None = None
    """How many tokens its calls to services may use in a calendar month (UTC), with whatever key."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a key may be used; None means no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_month: int | None = None
    """In a calendar month, UTC."""


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Credential:
    """A token or a key, of which only the hash is known."""

    id: str
    kind: CredentialKind
    tenant: str | None
    """None for an operator."""
    user: str
    role: Role
    secret_sha256: str
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    services: tuple[str, ...] = ()
    """For a key: names of the services it may call; empty means all of its tenant's."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_month: int | None = None

    @property
    def limits(self) -> Limits:
        """How much it may be used."""
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.tokens_per_month)

    def is_live(self, now_ms: int) -> bool:
        """Whether it may be used now."""
        return self.revoked_ms is None and (self.expires_ms is None or now_ms < self.expires_ms)


def new_secret(kind: CredentialKind) -> str:
    """Return a new secret of 256 random bits: ``cf_...`` for a token, ``cfk_...`` for a key."""
    return ("cf_" if kind is CredentialKind.TOKEN else "cfk_") + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of a secret, as stored. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_slug(text: str, *, what: str) -> str:
    """Return the text if it may name a tenant, user or service.

    Raises:
        InvalidInputError: otherwise.
    """
    if _SLUG.fullmatch(text) is None:
        raise InvalidInputError(
            f"{what} '{text[:40]}': use 2 to 32 lower-case letters, digits and hyphens, beginning with a letter",
        )
    return text
