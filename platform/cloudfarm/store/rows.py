"""The tables: one for each record of the domain, with a column for each of its fields, by the same name.

``tests/unit/test_store_rows.py`` holds columns and fields together. Times are milliseconds since the epoch;
what is never queried is JSON text. A new or changed column needs a migration; the contract tests demand it.
"""

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.sql.elements import ColumnElement

from cloudfarm.domain.lease import Grade, LeaseKind
from cloudfarm.domain.status import EndReason, JobStatus, LeaseStatus, RevisionStatus, ServiceStatus, Target
from cloudfarm.domain.tenant import CredentialKind, Role
from cloudfarm.store.columns import (
    EnumText,
    FrozenJson,
    Json,
    Words,
    ask_of,
    expected_start_of,
    gpus_of,
    slices_of,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)


def is_open(table: Table, kind: type[StrEnum]) -> ColumnElement[bool]:
    """Return the condition that a record's status is not terminal.

    The statuses stand in the SQL itself: neither database uses a partial index for a condition on parameters.
    """
    ended = [status for status in kind if status.is_terminal]  # type: ignore[attr-defined]
    return table.c.status.not_in([literal_column(f"'{status.value}'") for status in ended])


tenants = Table(
    "tenants",
    metadata,
    Column("id", Words, primary_key=True),
    Column("title", Words, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("limit_milli_gpus", BigInteger),
    Column("closed_ms", BigInteger),
    Column("limit_tokens_per_month", BigInteger),
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", Words, primary_key=True),
    Column("kind", EnumText(CredentialKind), nullable=False),
    Column("tenant", Words, ForeignKey("tenants.id")),
    Column("user", Words, nullable=False),
    Column("role", EnumText(Role), nullable=False),
    Column("secret_sha256", Words, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("services", Json(tuple), nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("tokens_per_month", BigInteger),
    Index(None, "tenant", "created_ms", "id"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Words, primary_key=True),
    Column("tenant", Words, ForeignKey("tenants.id"), nullable=False),
    Column("owner", Words, nullable=False),
    Column("name", Words, nullable=False),
    Column("kind", EnumText(LeaseKind), nullable=False),
    Column("ask", FrozenJson(ask_of), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("status", EnumText(LeaseStatus), nullable=False),
    Column("target", EnumText(Target), nullable=False),
    Column("slices", FrozenJson(slices_of), nullable=False),
    Column("grade", EnumText(Grade)),
    Column("granted_ms", BigInteger),
    Column("started_ms", BigInteger),
    Column("ends_ms", BigInteger),
    Column("noticed_ms", BigInteger),
    Column("ending_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("reason", EnumText(EndReason)),
    Column("message", Words, nullable=False),
    Column("project", Words, nullable=False, server_default=""),
    Column("revision_id", Words),  # not a foreign key: what ran stays told when it is gone
    Column("preempted_ms", BigInteger),
    Column("room", FrozenJson(slices_of), nullable=False, server_default="[]"),
    Column("expected_start", Json(expected_start_of)),
    Column("segment", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Index(None, "created_ms", "id"),
    Index(None, "tenant", "created_ms", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Words, primary_key=True),
    Column("tenant", Words, ForeignKey("tenants.id"), nullable=False),
    Column("owner", Words, nullable=False),
    Column("submission_id", Words, nullable=False),
    Column("lease_id", Words, ForeignKey("leases.id"), nullable=False),
    Column("owns_lease", Boolean, nullable=False),
    Column("entrypoint", Words, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("runtime_env", Json(dict), nullable=False),
    Column("metadata", Json(dict), nullable=False),
    Column("resources", Json(dict), nullable=False),
    Column("status", EnumText(JobStatus), nullable=False),
    Column("target", EnumText(Target), nullable=False),
    Column("submitted_ms", BigInteger),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("message", Words, nullable=False),
    Column("error_type", Words),
    Column("driver_exit_code", BigInteger),
    Column("log_uri", Words),
    Column("attempt", BigInteger, nullable=False, server_default="0"),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("tenant", "submission_id"),
    Index(None, "created_ms", "id"),
    Index(None, "tenant", "created_ms", "id"),
    Index(None, "lease_id"),
)

models = Table(
    "models",
    metadata,
    Column("id", Words, primary_key=True),
    Column("tenant", Words, ForeignKey("tenants.id"), nullable=False),
    Column("name", Words, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("uri", Words, nullable=False),
    Column("job_id", Words),  # not a foreign key: a job may be forgotten, its models stay
    Column("manifest", Json(dict), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("tenant", "name", "number"),
    UniqueConstraint("job_id", "name"),
)

services = Table(
    "services",
    metadata,
    Column("id", Words, primary_key=True),
    Column("tenant", Words, ForeignKey("tenants.id"), nullable=False),
    Column("owner", Words, nullable=False),
    Column("name", Words, nullable=False),
    Column("milli_gpus", BigInteger, nullable=False),
    Column("cpus", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("min_replicas", BigInteger, nullable=False),
    Column("max_replicas", BigInteger, nullable=False),
    Column("target_load", BigInteger, nullable=False),
    Column("idle_ms", BigInteger, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("current_id", Words),  # not a foreign key: a service and its first revision are made together
    Column("status", EnumText(ServiceStatus), nullable=False),
    Column("target", EnumText(Target), nullable=False),
    Column("message", Words, nullable=False),
    Column("project", Words, nullable=False),
    Column("version", BigInteger, nullable=False),
    Index(None, "tenant", "created_ms", "id"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("id", Words, primary_key=True),
    Column("service_id", Words, ForeignKey("services.id"), nullable=False),
    Column("tenant", Words, ForeignKey("tenants.id"), nullable=False),
    Column("name", Words, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("model_id", Words, ForeignKey("models.id"), nullable=False),
    Column("import_path", Words, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("replicas", BigInteger, nullable=False),
    Column("canary_percent", BigInteger, nullable=False),
    Column("status", EnumText(RevisionStatus), nullable=False),
    Column("target", EnumText(Target), nullable=False),
    Column("message", Words, nullable=False),
    Column("started_ms", BigInteger),
    Column("promoted_ms", BigInteger),
    Column("left_ms", BigInteger),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("tenant", "name", "number"),
    Index(None, "service_id", "created_ms", "number"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("tenant", Words, ForeignKey("tenants.id"), nullable=False),
    Column("lease_id", Words, ForeignKey("leases.id"), primary_key=True),
    Column("segment", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Words, nullable=False),
    Column("milli_gpus", BigInteger, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("milli_gpu_seconds", BigInteger, nullable=False),
    Column("project", Words, nullable=False, server_default=""),
    CheckConstraint(
        "end_ms >= start_ms AND milli_gpu_seconds = milli_gpus * (end_ms - start_ms) / 1000",
        name="amount",
    ),
    Index(None, "tenant", "end_ms"),
    Index(None, "end_ms"),
)

served = Table(
    "served",
    metadata,
    Column("batch", Words, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    # No foreign keys: what was used stays used, whatever has become of those who did, and a batch is never refused.
    Column("tenant", Words, nullable=False),
    Column("key_id", Words, nullable=False),
    Column("service_id", Words, nullable=False),
    Column("service_tenant", Words, nullable=False),
    Column("service", Words, nullable=False),
    Column("project", Words, nullable=False),
    Column("model", Words, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("busy_ms", BigInteger, nullable=False),
    Column("milli_gpu_ms", BigInteger, nullable=False),
    CheckConstraint("end_ms >= start_ms AND start_ms / 60000 = end_ms / 60000", name="minute"),
    CheckConstraint(
        "requests >= 0 AND prompt_tokens >= 0 AND completion_tokens >= 0 AND busy_ms >= 0 AND milli_gpu_ms >= 0",
        name="amounts",
    ),
    Index(None, "tenant", "end_ms"),
    Index(None, "service_tenant", "end_ms"),
    Index(None, "end_ms"),
)

events = Table(
    "events",
    metadata,
    # SQLite counts by itself only in a column of type INTEGER.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", Words, nullable=False),
    Column("subject", Words, nullable=False),
    Column("tenant", Words),
    Column("actor", Words, nullable=False),
    Column("message", Words, nullable=False),
    Index(None, "tenant", "id"),
    Index(None, "subject", "id"),
)

quotas = Table(
    "quotas",
    metadata,
    Column("id", Words, primary_key=True),
    Column("parent", Words),  # not a foreign key: the tree is checked, and replaced, as a whole
    Column("guarantee_milli_gpus", BigInteger, nullable=False),
    Column("guarantee_cpus", BigInteger, nullable=False),
    Column("guarantee_memory_bytes", BigInteger, nullable=False),
    Column("limit_milli_gpus", BigInteger, nullable=False),
    Column("limit_cpus", BigInteger, nullable=False),
    Column("limit_memory_bytes", BigInteger, nullable=False),
    Column("weight", BigInteger, nullable=False),
    Column("committed_milli_gpu_ms", BigInteger, nullable=False),
)

hosts = Table(
    "hosts",
    metadata,
    Column("id", Words, primary_key=True),
    Column("gpus", FrozenJson(gpus_of), nullable=False),
    Column("cpus", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("grade", EnumText(Grade), nullable=False),
    Column("reachable", Boolean, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("cordoned", Boolean, nullable=False),
)

farm = Table(
    "farm",
    metadata,
    # One row, which the first migration makes.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("heartbeat_ms", BigInteger),
    Column("stopping", Boolean, nullable=False),
)

OPEN_LEASES = is_open(leases, LeaseStatus)
OPEN_JOBS = is_open(jobs, JobStatus)
OPEN_SERVICES = is_open(services, ServiceStatus)
OPEN_REVISIONS = is_open(revisions, RevisionStatus)

# What is open is little and asked for all the time; what has ended grows for years.
for _table, _open in ((leases, OPEN_LEASES), (jobs, OPEN_JOBS), (revisions, OPEN_REVISIONS)):
    Index(
        f"ix_{_table.name}_open",
        _table.c.created_ms,
        _table.c.id,
        sqlite_where=_open,
        postgresql_where=_open,
    )
Index(
    "uq_services_live_name",
    services.c.tenant,
    services.c.name,
    unique=True,
    sqlite_where=OPEN_SERVICES,
    postgresql_where=OPEN_SERVICES,
)
