"""Tables of prompts, responses, comparisons and append-only labels."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables and, on SQLite and PostgreSQL, the triggers that keep labels append-only."""
    op.create_table(
        "prompts",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("messages", sa.Text, nullable=False),
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("ended", sa.Boolean),
    )
    op.create_table(
        "comparisons",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("first_id", sa.String, sa.ForeignKey("responses.id"), nullable=False),
        sa.Column("second_id", sa.String, sa.ForeignKey("responses.id"), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
    )
    op.create_table(
        "labels",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("comparison_id", sa.String, sa.ForeignKey("comparisons.id"), nullable=False, index=True),
        sa.Column("annotator", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("preference", sa.Float, nullable=False),
        sa.Column("strength", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("cost", sa.Float, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.CheckConstraint("preference >= 0 AND preference <= 1"),
    )
    for statement in _append_only(op.get_bind().dialect.name):
        op.execute(statement)


def _append_only(dialect: str) -> list[str]:
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER labels_no_{what} BEFORE {what} ON labels "
            "BEGIN SELECT RAISE(ABORT, 'labels are append-only'); END"
            for what in ("update", "delete")
        ]
    if dialect == "postgresql":
        return [
            "CREATE FUNCTION labels_append_only() RETURNS trigger AS $$ "
            "BEGIN RAISE EXCEPTION 'labels are append-only'; END $$ LANGUAGE plpgsql",
            "CREATE TRIGGER labels_no_change BEFORE UPDATE OR DELETE ON labels "
            "FOR EACH ROW EXECUTE FUNCTION labels_append_only()",
        ]
    return []
