"""Quotas: their table, the project that a lease counts against, and what preemption needs of leases and jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WORDS = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # as in 0001


def upgrade() -> None:
    # The default is for the leases that are there already: they are in no project.
    op.add_column("leases", sa.Column("project", WORDS, nullable=False, server_default=""))
    op.add_column("leases", sa.Column("preempted_ms", sa.BigInteger()))
    op.add_column("leases", sa.Column("room", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("jobs", sa.Column("attempt", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "quotas",
        sa.Column("id", WORDS, nullable=False),
        sa.Column("parent", WORDS),
        sa.Column("guarantee_milli_gpus", sa.BigInteger(), nullable=False),
        sa.Column("guarantee_cpus", sa.BigInteger(), nullable=False),
        sa.Column("guarantee_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("limit_milli_gpus", sa.BigInteger(), nullable=False),
        sa.Column("limit_cpus", sa.BigInteger(), nullable=False),
        sa.Column("limit_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("committed_milli_gpu_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_quotas"),
    )


def downgrade() -> None:
    op.drop_table("quotas")
    op.drop_column("jobs", "attempt")
    op.drop_column("leases", "room")
    op.drop_column("leases", "preempted_ms")
    op.drop_column("leases", "project")
