"""What callers use of services: its append-only table, and the limits of keys and tenants."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WORDS = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # as in 0001
LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_month")


def upgrade() -> None:
    for name in LIMITS:
        op.add_column("credentials", sa.Column(name, sa.BigInteger()))
    op.add_column("tenants", sa.Column("limit_tokens_per_month", sa.BigInteger()))
    op.create_table(
        "served",
        sa.Column("batch", WORDS, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant", WORDS, nullable=False),
        sa.Column("key_id", WORDS, nullable=False),
        sa.Column("service_id", WORDS, nullable=False),
        sa.Column("service_tenant", WORDS, nullable=False),
        sa.Column("service", WORDS, nullable=False),
        sa.Column("project", WORDS, nullable=False),
        sa.Column("model", WORDS, nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("busy_ms", sa.BigInteger(), nullable=False),
        sa.Column("milli_gpu_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "end_ms >= start_ms AND start_ms / 60000 = end_ms / 60000", name="ck_served_minute"
        ),
        sa.CheckConstraint(
            "requests >= 0 AND prompt_tokens >= 0 AND completion_tokens >= 0 AND busy_ms >= 0 AND milli_gpu_ms >= 0",
            name="ck_served_amounts",
        ),
        sa.PrimaryKeyConstraint("batch", "number", name="pk_served"),
    )
    op.create_index("ix_served_tenant_end_ms", "served", ["tenant", "end_ms"])
    op.create_index("ix_served_service_tenant_end_ms", "served", ["service_tenant", "end_ms"])
    op.create_index("ix_served_end_ms", "served", ["end_ms"])
    if op.get_bind().dialect.name == "sqlite":
        refuse = "BEGIN SELECT RAISE(ABORT, 'the table served is append-only'); END"
        for verb in ("UPDATE", "DELETE"):
            op.execute(f"CREATE TRIGGER served_no_{verb.lower()} BEFORE {verb} ON served {refuse}")
        # INSERT OR REPLACE takes the old row away without a DELETE that a trigger would see.
        there = "EXISTS (SELECT 1 FROM served WHERE batch = NEW.batch AND number = NEW.number)"
        op.execute(f"CREATE TRIGGER served_no_replace BEFORE INSERT ON served WHEN {there} {refuse}")
    else:
        op.execute(
            "CREATE TRIGGER served_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON served "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",  # of 0001
        )


def downgrade() -> None:
    op.drop_table("served")
    op.drop_column("tenants", "limit_tokens_per_month")
    for name in LIMITS:
        op.drop_column("credentials", name)
