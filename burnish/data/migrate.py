"""Schema migration with Alembic, which is fast if the database is up to date."""

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
    """Upgrade the database to the newest revision in one transaction (one query if up to date)."""
    with engine.connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == HEAD:
            return
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    # Two processes may start the upgrade at once: the second waits and then has nothing to do.
    with _transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction with the exclusive right to change the schema."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(WRITERS)))
            yield connection
        return
    with engine.connect() as connection:
        # Python's driver commits before a schema change, unless isolation_level is None.
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
