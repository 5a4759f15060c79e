"""What runs of a service, apart from its name and settings; a lease for each replica.

What a service ran becomes its revision 1, to be started anew: its one lease has ended with the farm that is upgraded.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WORDS = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # as in 0001
BOTH = (
    "id, tenant, owner, name, milli_gpus, cpus, memory_bytes, created_ms, target, message, project, version"
)


def upgrade() -> None:
    op.add_column("leases", sa.Column("revision_id", WORDS))
    set_aside("services")
    create_services()
    op.create_table(
        "revisions",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("service_id", WORDS, nullable=False),
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("model_id", WORDS, nullable=False),
        sa.Column("import_path", WORDS, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("replicas", sa.BigInteger(), nullable=False),
        sa.Column("canary_percent", sa.BigInteger(), nullable=False),
        sa.Column("status", WORDS, nullable=False),
        sa.Column("target", WORDS, nullable=False),
        sa.Column("message", WORDS, nullable=False),
        sa.Column("started_ms", sa.BigInteger()),
        sa.Column("promoted_ms", sa.BigInteger()),
        sa.Column("left_ms", sa.BigInteger()),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_revisions_model_id"),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name="fk_revisions_service_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_revisions_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_revisions"),
        sa.UniqueConstraint("tenant", "name", "number", name="uq_revisions_tenant_name_number"),
    )
    op.create_index(
        "ix_revisions_service_id_created_ms_number", "revisions", ["service_id", "created_ms", "number"]
    )
    op.create_index("ix_revisions_open", "revisions", ["created_ms", "id"], **only("status NOT IN ('ENDED')"))
    op.execute(
        f"INSERT INTO services ({BOTH}, status, min_replicas, max_replicas, target_load, idle_ms, shared, current_id) "  # noqa: S608 - our own names
        f"SELECT {BOTH}, CASE status WHEN 'DELETED' THEN status ELSE 'LIVE' END, "
        "replicas, replicas, 8, 600000, FALSE, 'r' || id FROM services_before"
    )
    op.execute(
        "INSERT INTO revisions (id, service_id, tenant, name, number, model_id, import_path, created_ms, replicas, "
        "canary_percent, status, target, message, promoted_ms, left_ms, version) "
        "SELECT 'r' || id, id, tenant, name, "
        "row_number() OVER (PARTITION BY tenant, name ORDER BY created_ms, id), model_id, import_path, created_ms, "
        "replicas, 0, CASE status WHEN 'DELETED' THEN 'ENDED' ELSE 'PENDING' END, target, message, created_ms, "
        "CASE target WHEN 'END' THEN created_ms END, 0 FROM services_before"
    )
    op.drop_table("services_before")


def downgrade() -> None:
    set_aside("revisions")
    set_aside("services")
    op.create_table(
        "services",
        *columns(),
        sa.Column("model_id", WORDS, nullable=False),
        sa.Column("import_path", WORDS, nullable=False),
        sa.Column("replicas", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", WORDS),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_services_lease_id"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_services_model_id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_services_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_services"),
    )
    create_indexes()
    op.execute(
        f"INSERT INTO services ({BOTH}, status, model_id, import_path, replicas) "  # noqa: S608 - our own names
        f"SELECT {', '.join(f's.{name.strip()}' for name in BOTH.split(','))}, "
        "CASE s.status WHEN 'DELETED' THEN s.status ELSE 'PENDING' END, r.model_id, r.import_path, "
        "CASE WHEN s.min_replicas > 0 THEN s.min_replicas ELSE 1 END "
        "FROM services_before AS s JOIN revisions_before AS r ON r.id = s.current_id"
    )
    op.drop_table("revisions_before")
    op.drop_table("services_before")
    op.drop_column("leases", "revision_id")


def set_aside(table: str) -> None:
    """Keep a table's rows under another name, without keys and indexes, whose names can be taken only once."""
    op.execute(f"CREATE TABLE {table}_before AS SELECT * FROM {table}")  # noqa: S608 - our own names
    op.drop_table(table)


def create_services() -> None:
    op.create_table(
        "services",
        *columns(),
        sa.Column("min_replicas", sa.BigInteger(), nullable=False),
        sa.Column("max_replicas", sa.BigInteger(), nullable=False),
        sa.Column("target_load", sa.BigInteger(), nullable=False),
        sa.Column("idle_ms", sa.BigInteger(), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.Column("current_id", WORDS),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_services_tenant"),
        sa.PrimaryKeyConstraint("id", name="pk_services"),
    )
    create_indexes()


def columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", WORDS, nullable=False),
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("owner", WORDS, nullable=False),
        sa.Column("name", WORDS, nullable=False),
        sa.Column("milli_gpus", sa.BigInteger(), nullable=False),
        sa.Column("cpus", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("status", WORDS, nullable=False),
        sa.Column("target", WORDS, nullable=False),
        sa.Column("message", WORDS, nullable=False),
        sa.Column("project", WORDS, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    ]


def create_indexes() -> None:
    op.create_index("ix_services_tenant_created_ms_id", "services", ["tenant", "created_ms", "id"])
    op.create_index(
        "uq_services_live_name",
        "services",
        ["tenant", "name"],
        unique=True,
        **only("status NOT IN ('DELETED')"),
    )


def only(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
