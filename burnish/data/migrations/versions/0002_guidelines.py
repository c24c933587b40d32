"""Guidelines that a label was given under."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add a table of guidelines, and their id to labels (null for older labels)."""
    op.create_table(
        "guidelines",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.add_column("labels", sa.Column("guidelines", sa.String))
