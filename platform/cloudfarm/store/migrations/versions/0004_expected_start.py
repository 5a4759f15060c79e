"""When a waiting lease will probably start."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("expected_start", sa.Text()))


def downgrade() -> None:
    op.drop_column("leases", "expected_start")
