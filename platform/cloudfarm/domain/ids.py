"""Ids of records: a letter for the kind and 8 random base 32 characters, short enough for socket paths and labels."""

import secrets

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def new_id(kind: str) -> str:
    """Return a new id; ``kind`` is l for a lease, j for a job, s for a service, m for a model, c for a credential."""
    return kind + "".join(secrets.choice(_BASE32) for _ in range(8))
