"""The sources that adapters were trained on."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; sources without a value are relative to the base."""
    op.add_column("sources", sa.Column("parent", sa.String(64), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("sources") as table:
        table.drop_column("parent")
