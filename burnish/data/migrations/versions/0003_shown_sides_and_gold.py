"""The side that an annotator saw first, gold questions, and the answers to them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add display order (null for older labels) and tables of gold questions and answers to them.

    Gold questions are kept apart from comparisons, so that nothing is trained on them.
    """
    op.add_column("labels", sa.Column("swapped", sa.Boolean))
    op.create_table(
        "gold",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("first_id", sa.String, sa.ForeignKey("responses.id"), nullable=False),
        sa.Column("second_id", sa.String, sa.ForeignKey("responses.id"), nullable=False),
        sa.Column("preference", sa.Float, nullable=False),
        sa.CheckConstraint("preference >= 0 AND preference <= 1"),
    )
    op.create_table(
        "checks",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("gold_id", sa.String, sa.ForeignKey("gold.id"), nullable=False, index=True),
        sa.Column("annotator", sa.String, nullable=False),
        sa.Column("preference", sa.Float, nullable=False),
        sa.Column("swapped", sa.Boolean),
        sa.Column("seconds", sa.Float),
        sa.Column("cost", sa.Float, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.CheckConstraint("preference >= 0 AND preference <= 1"),
    )
