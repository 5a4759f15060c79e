"""The first schema.

The ledger and the events are append-only, and the database itself refuses every UPDATE and DELETE of them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Bytes decide the order, as they do in SQLite and Python: a locale's order differs between machines, and an
# index kept in it is broken by an upgrade of the C library.
WORDS = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

APPEND_ONLY = {"ledger": "lease_id = NEW.lease_id AND segment = NEW.segment", "events": "id = NEW.id"}


def only(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    create_tables()
    farm = sa.table("farm", sa.column("id"), sa.column("epoch"), sa.column("stopping"))
    op.bulk_insert(farm, [{"id": 1, "epoch": 0, "stopping": False}])
    if op.get_bind().dialect.name == "sqlite":
        seal_on_sqlite()
    else:
        seal_on_postgresql()


def seal_on_sqlite() -> None:
    for table, same in APPEND_ONLY.items():
        refuse = f"BEGIN SELECT RAISE(ABORT, 'the table {table} is append-only'); END"
        for verb in ("UPDATE", "DELETE"):
            op.execute(f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} {refuse}")
        # INSERT OR REPLACE takes the old row away without a DELETE that a trigger would see.
        there = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - our own names
        op.execute(f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {there} {refuse}")


def seal_on_postgresql() -> None:
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the table % is append-only', TG_TABLE_NAME;
        END
        $$
        """,
    )
    for table in APPEND_ONLY:
        # Once a statement, not once a row: TRUNCATE has no rows, and a DELETE that finds none is refused too.
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
        )


def downgrade() -> None:
    for table in (
        "services",
        "ledger",
        "jobs",
        "models",
        "leases",
        "credentials",
        "tenants",
        "hosts",
        "farm",
        "events",
    ):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")


def create_tables() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("subject", WORDS, nullable=False),
        sa.Column("tenant", WORDS),
        sa.Column("actor", WORDS, nullable=False),
        sa.Column("message", WORDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_subject_id", "events", ["subject", "id"])
    op.create_index("ix_events_tenant_id", "events", ["tenant", "id"])
    op.create_table(
        "farm",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_ms", sa.BigInteger()),
        sa.Column("stopping", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_farm"),
    )
    op.create_table(
        "hosts",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("gpus", sa.Text(), nullable=False),
        sa.Column("cpus", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("grade", WORDS, nullable=False),
        sa.Column("reachable", sa.Boolean(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("cordoned", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hosts"),
    )
    op.create_table(
        "tenants",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("title", WORDS, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("limit_milli_gpus", sa.BigInteger()),
        sa.Column("closed_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
    )
    op.create_table(
        "credentials",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("tenant", WORDS),
        sa.Column("user", WORDS, nullable=False),
        sa.Column("role", WORDS, nullable=False),
        sa.Column("secret_sha256", WORDS, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger()),
        sa.Column("revoked_ms", sa.BigInteger()),
        sa.Column("services", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_credentials_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_credentials"),
        sa.UniqueConstraint("secret_sha256", name="uq_credentials_secret_sha256"),
    )
    op.create_index("ix_credentials_tenant_created_ms_id", "credentials", ["tenant", "created_ms", "id"])
    op.create_table(
        "leases",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("ask", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("status", WORDS, nullable=False),
        sa.Column("target", WORDS, nullable=False),
        sa.Column("slices", sa.Text(), nullable=False),
        sa.Column("grade", WORDS),
        sa.Column("granted_ms", sa.BigInteger()),
        sa.Column("started_ms", sa.BigInteger()),
        sa.Column("ends_ms", sa.BigInteger()),
        sa.Column("noticed_ms", sa.BigInteger()),
        sa.Column("ending_ms", sa.BigInteger()),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.Column("reason", WORDS),
        sa.Column("message", WORDS, nullable=False),
        sa.Column("segment", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_leases_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
    )
    op.create_index("ix_leases_created_ms_id", "leases", ["created_ms", "id"])
    op.create_index("ix_leases_open", "leases", ["created_ms", "id"], **only("status NOT IN ('ENDED')"))
    op.create_index("ix_leases_tenant_created_ms_id", "leases", ["tenant", "created_ms", "id"])
    op.create_table(
        "models",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("uri", WORDS, nullable=False),
        sa.Column("job_id", WORDS),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_models_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("job_id", "name", name="uq_models_job_id_name"),
        sa.UniqueConstraint("tenant", "name", "number", name="uq_models_tenant_name_number"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("submission_id", WORDS, nullable=False),
        sa.Column("lease_id", WORDS, nullable=False),
        sa.Column("owns_lease", sa.Boolean(), nullable=False),
        sa.Column("entrypoint", WORDS, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("runtime_env", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("resources", sa.Text(), nullable=False),
        sa.Column("status", WORDS, nullable=False),
        sa.Column("target", WORDS, nullable=False),
        sa.Column("submitted_ms", sa.BigInteger()),
        sa.Column("started_ms", sa.BigInteger()),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.Column("message", WORDS, nullable=False),
        sa.Column("error_type", WORDS),
        sa.Column("driver_exit_code", sa.BigInteger()),
        sa.Column("log_uri", WORDS),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_jobs_lease_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_jobs_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("tenant", "submission_id", name="uq_jobs_tenant_submission_id"),
    )
    op.create_index("ix_jobs_created_ms_id", "jobs", ["created_ms", "id"])
    op.create_index("ix_jobs_lease_id", "jobs", ["lease_id"])
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["created_ms", "id"],
        **only("status NOT IN ('STOPPED', 'SUCCEEDED', 'FAILED')"),
    )
    op.create_index("ix_jobs_tenant_created_ms_id", "jobs", ["tenant", "created_ms", "id"])
    op.create_table(
        "ledger",
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("lease_id", WORDS, nullable=False),
        sa.Column("segment", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", WORDS, nullable=False),
        sa.Column("milli_gpus", sa.BigInteger(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("milli_gpu_seconds", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "end_ms >= start_ms AND milli_gpu_seconds = milli_gpus * (end_ms - start_ms) / 1000",
            name="ck_ledger_amount",
        ),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_ledger_lease_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_ledger_tenant"),
        sa.PrimaryKeyConstraint("lease_id", "segment", name="pk_ledger"),
    )
    op.create_index("ix_ledger_end_ms", "ledger", ["end_ms"])
    op.create_index("ix_ledger_tenant_end_ms", "ledger", ["tenant", "end_ms"])
    op.create_table(
        "services",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=False),
        sa.Column("model_id", WORDS, nullable=False),
        sa.Column("import_path", WORDS, nullable=False),
        sa.Column("milli_gpus", sa.BigInteger(), nullable=False),
        sa.Column("replicas", sa.BigInteger(), nullable=False),
        sa.Column("cpus", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", WORDS),
        sa.Column("status", WORDS, nullable=False),
        sa.Column("target", WORDS, nullable=False),
        sa.Column("message", WORDS, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_services_lease_id"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_services_model_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_services_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_services"),
    )
    op.create_index("ix_services_tenant_created_ms_id", "services", ["tenant", "created_ms", "id"])
    op.create_index(
        "uq_services_live_name",
        "services",
        ["tenant", "name"],
        unique=True,
        **only("status NOT IN ('DELETED')"),
    )
