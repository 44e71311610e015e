"""Why a revision could not be built."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; revisions without a value have no reasons."""
    op.add_column("revisions", sa.Column("reasons", sa.JSON, nullable=True))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("revisions") as table:
        table.drop_column("reasons")
