"""Reads what Ray's own client sends to submit a job (``JobSubmitRequest``); refuses what cannot be right."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudfarm.domain.json_values import check_json
from cloudfarm.errors import ForbiddenKeyError, InvalidInputError
from cloudfarm.usecases.access import quoted
from cloudfarm.usecases.runtime_env import check_runtime_env

MAX_ENTRYPOINT = 32 * 1024
MAX_METADATA = 64
MAX_METADATA_VALUE = 4096

SHAPE_KEYS = (
    "gpus",
    "hours",
    "cpus",
    "memory",
    "gpu_model",
    "distinct_gpus",
    "project",
    "priority",
    "not_before",
)
"""Metadata keys that say what lease the job needs."""
LEASE_KEY = "lease"
"""Metadata key, and label key, that names a lease held already."""

_FIELDS = frozenset(
    {
        "entrypoint",
        "submission_id",
        "job_id",
        "runtime_env",
        "metadata",
        "entrypoint_num_cpus",
        "entrypoint_num_gpus",
        "entrypoint_memory",
        "entrypoint_resources",
        "entrypoint_label_selector",
    },
)
_SUBMISSION_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_LEASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A submission that was checked as far as it can be without the store."""

    entrypoint: str
    submission_id: str | None = None
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    label_selector: Mapping[str, str] = field(default_factory=dict)
    """Without the lease, which is in :attr:`lease`."""
    lease: str | None = None
    """Id or name of the lease to run in; None for one of the job's own."""


def read_job_request(body: Any) -> JobRequest:
    """Read a submission.

    Raises:
        InvalidInputError: naming the field that is wrong.
        ForbiddenKeyError: naming the option that would leave the lease.
    """
    if not isinstance(body, dict):
        raise InvalidInputError("a submission is a JSON object")
    check_json(body, what="the submission")
    # As Ray does: a newer client may send new fields, and sends those that are not used as null.
    given = {key: value for key, value in body.items() if value is not None}
    for key in given:
        if key not in _FIELDS:
            raise InvalidInputError(f"{quoted(key)} is not a field of a job submission")
    runtime_env = _mapping(given, "runtime_env")
    check_runtime_env(runtime_env)
    metadata = _metadata(_mapping(given, "metadata"))
    selector = _texts(_mapping(given, "entrypoint_label_selector"), "entrypoint_label_selector")
    return JobRequest(
        entrypoint=_entrypoint(given.get("entrypoint")),
        submission_id=_submission_id(given.get("submission_id", given.get("job_id"))),
        runtime_env=runtime_env,
        metadata=metadata,
        num_cpus=_number(given, "entrypoint_num_cpus"),
        num_gpus=_number(given, "entrypoint_num_gpus"),
        memory=_bytes(given),
        resources=_resources(_mapping(given, "entrypoint_resources")),
        label_selector={key: value for key, value in selector.items() if key != LEASE_KEY},
        lease=_lease(metadata, selector),
    )


def _entrypoint(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError("entrypoint: the command to run is missing")
    if len(value) > MAX_ENTRYPOINT:
        raise InvalidInputError(f"entrypoint: more than {MAX_ENTRYPOINT} characters; put it into a file")
    return value


def _submission_id(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or _SUBMISSION_ID.fullmatch(value) is None or not value.strip("."):
        raise InvalidInputError("submission_id: 1 to 128 letters, digits, '_', '.' and '-'")
    return value


def _mapping(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} must be an object, not {type(value).__name__}")
    return value


def _texts(values: Mapping[str, Any], name: str) -> dict[str, str]:
    for key, value in values.items():
        if not isinstance(value, str):
            raise InvalidInputError(
                f"{name}: the value of {quoted(key)} must be text, not {type(value).__name__}"
            )
        if max(len(key), len(value)) > MAX_METADATA_VALUE:
            raise InvalidInputError(f"{name}: {quoted(key)} is longer than {MAX_METADATA_VALUE} characters")
    if len(values) > MAX_METADATA:
        raise InvalidInputError(f"{name}: more than {MAX_METADATA} entries")
    return dict(values)


def _metadata(values: Mapping[str, Any]) -> dict[str, str]:
    metadata = _texts(values, "metadata")
    if LEASE_KEY in metadata:
        for key in SHAPE_KEYS:
            if key in metadata:
                raise InvalidInputError(
                    f"metadata: a job in a held lease takes the lease as it is; leave out {key!r}"
                )
    return metadata


def _lease(metadata: Mapping[str, str], selector: Mapping[str, str]) -> str | None:
    by_metadata, by_label = metadata.get(LEASE_KEY), selector.get(LEASE_KEY)
    if by_label is not None:
        # Ray's selectors know in(a,b) and !a too, which are ways to say "in somebody else's".
        if _LEASE_NAME.fullmatch(by_label) is None:
            raise ForbiddenKeyError(
                "entrypoint_label_selector: 'lease' must be one lease of yours", key=LEASE_KEY
            )
        if by_metadata not in (None, by_label):
            raise InvalidInputError("metadata and entrypoint_label_selector name different leases")
    return by_metadata if by_metadata is not None else by_label


def _number(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidInputError(f"{name} must be a number of 0 or more")
    return value


def _bytes(given: Mapping[str, Any]) -> int | None:
    value = _number(given, "entrypoint_memory")
    if value is not None and not isinstance(value, int):
        raise InvalidInputError("entrypoint_memory must be a whole number of bytes")
    return value


def _resources(values: Mapping[str, Any]) -> dict[str, float]:
    for name, amount in values.items():
        if "_group_" in name:
            raise ForbiddenKeyError(
                f"entrypoint_resources: {quoted(name)} reaches into a placement group, perhaps of others",
                key=name[:80],
            )
        if name.startswith("node:"):
            raise ForbiddenKeyError(
                f"entrypoint_resources: {quoted(name)} picks a node; a job runs on its lease's nodes",
                key=name[:80],
            )
        if not name.startswith("accelerator_type:"):
            raise InvalidInputError(
                f"entrypoint_resources: no lease node has {quoted(name)}, the job could never start; "
                "say what it needs by entrypoint_num_cpus, entrypoint_num_gpus and entrypoint_memory",
            )
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
            raise InvalidInputError(f"entrypoint_resources: {quoted(name)} must be a number of 0 or more")
    return dict(values)
