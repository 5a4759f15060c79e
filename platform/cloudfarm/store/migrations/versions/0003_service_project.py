"""The project of a service, and of what was charged: shares of projects count their past."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WORDS = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # as in 0001


def upgrade() -> None:
    # The default is for what is there already. Of the ledger it stays: what was charged is never changed.
    op.add_column("services", sa.Column("project", WORDS, nullable=False, server_default=""))
    op.add_column("ledger", sa.Column("project", WORDS, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("ledger", "project")
    op.drop_column("services", "project")
