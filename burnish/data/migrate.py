"""Bring a database to the newest schema with Alembic, quickly when it is there already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, func, select

HEAD = "0004"
WRITERS = 7255  # the advisory lock for writers of a store on PostgreSQL


def migrate(engine: Engine) -> None:
    """Upgrade to the newest revision, whole or not at all; a no-op (one query) when the database has it."""
    with engine.connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == HEAD:
            return
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    # Two may find it new at once: one waits for the other, and then finds it done.
    with _transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that alone may change the schema."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(WRITERS)))
            yield connection
        return
    with engine.connect() as connection:
        # Python's driver commits before a change of the schema, unless transactions are left to the caller.
        raw: Any = connection.connection.driver_connection
        before, raw.isolation_level = raw.isolation_level, None
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                if raw.in_transaction:
                    connection.exec_driver_sql("ROLLBACK")
                raise
        finally:
            raw.isolation_level = before
