"""Tables of the labelling page: accounts, tasks, answers and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the tables of the labelling page; runs read only labels and checks, as before."""
    op.create_table(
        "accounts",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("password", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("created", sa.String, nullable=False),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("account", sa.String, sa.ForeignKey("accounts.id"), nullable=False, index=True),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("detail", sa.String, nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("annotator", sa.String, nullable=False, index=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False, index=True),
        sa.Column("shown", sa.String, nullable=False),
        sa.Column("given", sa.Float, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.Column("choice", sa.String),
        sa.Column("reason", sa.String),
        sa.Column("labels", sa.String),
    )
    op.create_table(
        "asked",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("task", sa.String, sa.ForeignKey("tasks.id"), nullable=False, index=True),
        sa.Column("question", sa.String, nullable=False, index=True),
    )
    op.create_table(
        "saves",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("task", sa.String, sa.ForeignKey("tasks.id"), nullable=False),
    )
    op.create_table(
        "editions",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("guidelines", sa.String, sa.ForeignKey("guidelines.id"), nullable=False),
        sa.Column("by", sa.String, nullable=False),
        sa.Column("at", sa.String, nullable=False),
    )
    op.create_table(
        "settings",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
