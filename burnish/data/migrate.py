"""Bring a database to the newest schema with Alembic, quickly when it is there already."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, func, select

HEAD = "0004"
WRITERS = 7255  # the advisory lock of whoever writes to a store on PostgreSQL


def migrate(engine: Engine) -> None:
    """Upgrade to the newest revision; a no-op (one query) when the database has it."""
    with engine.connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == HEAD:
            return
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # two may find it new at once
            connection.execute(select(func.pg_advisory_xact_lock(WRITERS)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
