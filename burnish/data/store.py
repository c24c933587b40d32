"""The label store, on SQLAlchemy (SQLite by default), with append-only labels."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from sqlalchemy import create_engine, event, func, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session, aliased

from burnish.data.guidelines import Guidelines
from burnish.data.migrate import WRITERS, migrate
from burnish.data.tables import (
    CheckRow,
    ComparisonRow,
    GoldRow,
    GuidelinesRow,
    LabelRow,
    PromptRow,
    ResponseRow,
    Table,
)
from burnish.errors import DataError
from burnish.records import Comparison, Label, Message, Preference, Prompt, Response, content_id

CHUNK = 500
POOL = {"pool_size": 16, "max_overflow": 8}  # connections to a server
LAZY = ("synchronous_commit", "off", True)
STREAMED = {"yield_per": 1000}  # rows in memory at once
# Column names of a label's fields, in the order of the fields.
LABEL_COLUMNS = (
    *("comparison_id", "annotator", "preference", "source", "strength", "seconds", "cost", "guidelines"),
    *("swapped", "created"),
)
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
Item = TypeVar("Item")
Place = Path | str
"""Location of a store: an SQLite file or a URL."""


URL = re.compile(r"[A-Za-z][A-Za-z0-9]+(\+\w+)?:/")


def is_url(where: Place) -> bool:
    """Check whether a location is, or was meant to be, a URL, which may hold a password."""
    return not isinstance(where, Path) and URL.match(where) is not None


def shown(where: Place) -> str:
    """Return a location for display, without its password and query string."""
    if not is_url(where):
        return str(where)
    try:
        return make_url(str(where)).set(query={}).render_as_string()
    except (ArgumentError, ValueError):
        return "the URL"


def own_schema(url: str, schema: str) -> str:
    """Return the URL of a PostgreSQL schema, creating it if needed; raise DataError if that fails."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            there = text("SELECT 1 FROM pg_namespace WHERE nspname = :name")
            if (
                connection.scalar(there, {"name": schema}) is None
            ):  # CREATE SCHEMA needs a right that few users have
                connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    except (OperationalError, ProgrammingError) as error:
        message = str(error.orig).strip().splitlines()[0]
        raise DataError(
            f"{shown(url)} has no schema {schema!r} and it cannot be created ({message}); an administrator must run: "
            f"CREATE SCHEMA {schema} AUTHORIZATION USER"
        ) from None
    finally:
        engine.dispose()
    options = f"{make_url(url).query.get('options', '')} -csearch_path={schema}".strip()
    found = make_url(url)
    options = f"{found.query.get('options', '')} -csearch_path={schema}".strip()
    return found.update_query_dict({"options": options}).render_as_string(hide_password=False)


def beside(where: Place, suffix: str) -> Path:
    """Return NAME`suffix` beside the store's file NAME, or in the current folder for a database."""
    if not is_url(where):
        return Path(where).with_suffix(suffix)
    return Path(f"{make_url(str(where)).database or 'labels'}{suffix}")


@dataclass(frozen=True)
class Snapshot:
    """The numbers of a store's last label and comparison; later rows are not visible."""

    labels: int
    comparisons: int


class LabelStore:
    """Comparisons and labels, whose ids depend on content alone, so that duplicates are stored once."""

    def __init__(self, where: Place) -> None:
        self.where = where
        url = str(where) if is_url(where) else f"sqlite:///{where}"
        try:
            pool = POOL if is_url(url) and not url.startswith("sqlite") else {}
            self.engine = create_engine(url, hide_parameters=True, **pool)
        except (ArgumentError, ImportError, ValueError) as error:
            why = f" ({error})" if isinstance(error, ImportError) else ""  # others may hold the password
            raise DataError(
                f"{shown(where)} cannot be opened as a label store{why}; give a .sqlite file or "
                "postgresql+psycopg://USER@HOST/DATABASE (pip install 'burnish[postgres]'; a password's own @ and / "
                "percent-encoded)"
            ) from None
        if self.engine.dialect.name not in INSERTS:
            raise DataError(
                f"the label store runs on SQLite or PostgreSQL, not on {self.engine.dialect.name}; give such a URL"
            )
        # Threads of one process wait for this lock, because SQLite would poll.
        self._one_writer = Lock()
        # Reading without a transaction saves two messages to PostgreSQL each time.
        postgres = self.engine.dialect.name == "postgresql"
        self._reader = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT") if postgres else self.engine
        )
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_settings)
        try:
            migrate(self.engine)
        except OperationalError as error:
            message = str(error.orig).strip().splitlines()[0]
            raise DataError(
                f"{shown(where)} cannot be reached ({message}); check the URL and the server"
            ) from None

    def close(self) -> None:
        """Close the database, and merge SQLite's write-ahead log into it."""
        self.engine.dispose()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Session]:
        """Open a transaction for one writer at a time; data it has read does not change until it ends.

        PostgreSQL writers wait for each other too, so that row numbers follow the order in which rows
        become visible and a snapshot never changes. Unless `durable`, PostgreSQL may lose the transaction
        if the server crashes within a second.
        """
        with self._one_writer, Session(self.engine) as session, session.begin():
            if self.engine.dialect.name == "postgresql":
                lock = [func.pg_advisory_xact_lock(WRITERS)]
                session.execute(select(*lock, *([] if durable else [func.set_config(*LAZY)])))
            else:
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            yield session

    def reading(self) -> Session:
        """Return a session for reading, to be closed by `with`."""
        return Session(self._reader)

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> int:
        """Store comparisons with their prompts and responses; return how many are new.

        This is one transaction. If a question is already stored with its sides swapped, the stored order
        stays. Call `stored` before labelling a comparison that did not come from this store.
        """
        with self.writing() as session:
            new = 0
            for chunk in _chunks(comparisons):
                self._insert_texts(session, chunk)
                new += self._insert(session, ComparisonRow, [_comparison_row(c) for c in chunk])
            return new

    def add_labels(self, labels: Iterable[Label], round: int = 0) -> int:
        """Append labels in one transaction; return how many are new.

        A repetition of (comparison, annotator, round) is left out.
        """
        with self.writing() as session:
            return self.put_labels(session, labels, round)

    def put_labels(self, session: Session, labels: Iterable[Label], round: int = 0) -> int:
        """Append labels as `add_labels` does, within a transaction."""
        now = _now()
        return sum(
            self._insert(session, LabelRow, [_label_row(label, round, now) for label in chunk])
            for chunk in _chunks(labels)
        )

    def differing(self, labels: Iterable[Label], round: int = 0) -> int:
        """Count labels that contradict the store or an earlier one; `add_labels` would drop them.

        They are other answers of the same annotator to the same question.
        """
        found = 0
        first: dict[str, float] = {}
        with Session(self.engine) as session:
            for chunk in _chunks(labels):
                given = [(_label_id(label, round), label.preference) for label in chunk]
                query = select(LabelRow.id, LabelRow.preference).where(LabelRow.id.in_({i for i, _ in given}))
                stored = {row.id: row.preference for row in session.execute(query)}
                found += sum(
                    preference != (stored[i] if i in stored else first.setdefault(i, preference))
                    for i, preference in given
                )
        return found

    def add_gold(self, questions: Iterable[tuple[Comparison, float]]) -> int:
        """Store gold questions with the preference for their first side; return how many are new."""
        with self.writing() as session:
            new = 0
            for chunk in _chunks(questions):
                self._insert_texts(session, [c for c, _ in chunk])
                rows = [{**_comparison_row(c), "preference": p} for c, p in chunk]
                for row in rows:
                    del row["round"]
                new += self._insert(session, GoldRow, rows)
            return new

    def gold(self) -> Iterator[tuple[Comparison, float]]:
        """Yield gold questions with the preference for their first side."""
        for preference, comparison in self._questions(GoldRow):
            yield comparison, preference

    def add_checks(self, answers: Iterable[Label], round: int = 0) -> int:
        """Append answers to gold questions (by their `comparison_id`); return how many are new."""
        with self.writing() as session:
            return self.put_checks(session, answers, round)

    def put_checks(self, session: Session, answers: Iterable[Label], round: int = 0) -> int:
        """Append answers as `add_checks` does, within a transaction."""
        now = _now()
        return sum(
            self._insert(session, CheckRow, [_check_row(label, round, now) for label in chunk])
            for chunk in _chunks(answers)
        )

    def checks(self) -> Iterator[Label]:
        """Yield the answers to gold questions in the order they were added."""
        query = select(CheckRow).order_by(CheckRow.number)
        with Session(self.engine) as session, session.scalars(query, execution_options=STREAMED) as rows:
            for r in rows:
                yield Label(
                    r.gold_id,
                    r.annotator,
                    r.preference,
                    "human",
                    seconds=r.seconds,
                    cost=r.cost,
                    swapped=r.swapped,
                    at=r.created,
                )

    def swapped(self, comparisons: Iterable[Comparison], *, gold: bool = False) -> list[bool]:
        """Check, for each comparison, whether it is stored with its sides swapped.

        Another run may have stored the same question before. A comparison that is not stored gives False.
        """
        table = GoldRow if gold else ComparisonRow
        found = []
        with Session(self.engine) as session:
            for chunk in _chunks(comparisons):
                query = select(table.id, table.first_id).where(table.id.in_({c.id for c in chunk}))
                first = {row.id: row.first_id for row in session.execute(query)}
                ours = [(c.id, response_id(c.prompt, c.first)) for c in chunk]
                found += [first.get(i, side) != side for i, side in ours]
        return found

    def as_stored(self, pairs: Sequence[tuple[Comparison, Label]], *, gold: bool = False) -> list[Label]:
        """Return labels of comparisons, turned to the order in which the store has their sides."""
        swapped = self.swapped((c for c, _ in pairs), gold=gold)
        return [_turned(label) if other else label for (_, label), other in zip(pairs, swapped, strict=True)]

    def known(self, ids: Iterable[str], *, gold: bool = False) -> set[str]:
        """Return the ids that the store has, of comparisons or (with `gold`) of gold questions."""
        table = GoldRow if gold else ComparisonRow
        found: set[str] = set()
        with Session(self.engine) as session:
            for chunk in _chunks(ids):
                found |= set(session.scalars(select(table.id).where(table.id.in_(chunk))))
        return found

    def add_guidelines(self, guidelines: Guidelines) -> str:
        """Store guidelines, and return their id for the labels."""
        with self.writing() as session:
            row = {"id": guidelines.id, "text": guidelines.text}
            self._insert(session, GuidelinesRow, [row])
        return guidelines.id

    def take_over(self, other: LabelStore, at: Snapshot) -> None:
        """Copy a snapshot of another store, and all its guidelines and gold questions with answers."""
        self.add_comparisons(other.comparisons(at=at))
        sides = zip(other.comparisons(at=at), self.swapped(other.comparisons(at=at)), strict=True)
        swapped = {c.id for c, is_swapped in sides if is_swapped}
        for wording in other.guidelines().values():
            self.add_guidelines(Guidelines(wording))
        self.add_labels(
            _turned(label) if label.comparison_id in swapped else label for label in other.labels(at=at)
        )
        golden = {c.id: (c, p) for c, p in other.gold()}
        self.add_gold(golden.values())
        checks = [(golden[label.comparison_id][0], label) for label in other.checks()]
        self.add_checks(self.as_stored(checks, gold=True))

    def guidelines(self) -> dict[str, str]:
        """Return the texts of all guidelines by id."""
        with Session(self.engine) as session:
            return {row.id: row.text for row in session.scalars(select(GuidelinesRow))}

    def _insert_texts(self, session: Session, comparisons: Sequence[Comparison]) -> None:
        self._insert(session, PromptRow, [_prompt_row(c.prompt) for c in comparisons])
        sides = [(c.prompt, r) for c in comparisons for r in (c.first, c.second)]
        self._insert(session, ResponseRow, [_response_row(p, r) for p, r in sides])

    def _insert(self, session: Session, table: type[Table], rows: Sequence[dict[str, Any]]) -> int:
        """Insert rows whose id is new (the first with each id); return how many were inserted."""
        if not rows:
            return 0
        once: dict[str, dict[str, Any]] = {}
        for row in rows:
            once.setdefault(row["id"], row)
        new = table.__table__
        insert = INSERTS[self.engine.dialect.name](new).on_conflict_do_nothing(index_elements=["id"])
        # RETURNING counts the new rows: not every driver reports the number for many rows.
        return len(session.connection().execute(insert.returning(new.c.id), list(once.values())).all())

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the store's current state."""
        with Session(self.engine) as session:
            newest = [session.scalar(select(func.max(t.number))) or 0 for t in (LabelRow, ComparisonRow)]
        return Snapshot(*newest)

    def comparisons(self, round: int | None = None, at: Snapshot | None = None) -> Iterator[Comparison]:
        """Yield comparisons in the order they were added, all or those of a round or snapshot."""
        conditions = [] if round is None else [ComparisonRow.round == round]
        if at is not None:
            conditions.append(ComparisonRow.number <= at.comparisons)
        for of_round, comparison in self._questions(ComparisonRow, *conditions):
            yield replace(comparison, round=of_round) if of_round else comparison

    def _questions(self, table: Any, *conditions: Any) -> Iterator[tuple[Any, Comparison]]:
        """Yield the questions of a table in order, each as a value and its comparison.

        The value is the round of a comparison, or the known preference of a gold question.
        """
        query = _question_query(table).where(*conditions)
        with Session(self.engine) as session, session.execute(query, execution_options=STREAMED) as rows:
            yield from map(_question_of, rows)

    def find(
        self, ids: Sequence[str], *, gold: bool = False, session: Session | None = None
    ) -> list[Comparison]:
        """Return the stored comparisons (or gold questions) with these ids, in the store's order.

        Within a transaction, pass its session.
        """
        if session is None:
            with self.reading() as session:
                return self.find(ids, gold=gold, session=session)
        table: Any = GoldRow if gold else ComparisonRow
        rows = session.execute(_question_query(table).where(table.id.in_(ids)))
        return [_question_of(row)[1] for row in rows]

    def stored(self, comparison: Comparison) -> Comparison:
        """Return the comparison with its sides in the stored order, or as given if it is not stored."""
        with Session(self.engine) as session:
            row = session.scalar(select(ComparisonRow).where(ComparisonRow.id == comparison.id))
        if row is None or row.first_id == response_id(comparison.prompt, comparison.first):
            return comparison
        return Comparison(comparison.prompt, comparison.second, comparison.first, comparison.round)

    def labels(
        self, comparison_ids: Sequence[str] | None = None, at: Snapshot | None = None
    ) -> Iterator[Label]:
        """Yield labels in the order they were added, all or those of comparisons or a snapshot."""
        columns = (getattr(LabelRow, name) for name in LABEL_COLUMNS)
        query = select(*columns).order_by(LabelRow.number)
        if at is not None:
            query = query.where(LabelRow.number <= at.labels)
        if comparison_ids is not None:
            query = query.where(LabelRow.comparison_id.in_(comparison_ids))
        with Session(self.engine) as session, session.execute(query, execution_options=STREAMED) as rows:
            for row in rows:
                yield Label(*row)

    def _consensus(self, at: Snapshot | None = None) -> dict[str, float]:
        """Return the mean preference for the first response of every labelled comparison."""
        query = select(LabelRow.comparison_id, func.avg(LabelRow.preference)).group_by(LabelRow.comparison_id)
        if at is not None:
            query = query.where(LabelRow.number <= at.labels)
        with Session(self.engine) as session:
            return {i: float(mean) for i, mean in session.execute(query)}

    def _strengths(self, at: Snapshot | None = None) -> dict[str, float]:
        """Return the mean strength of each graded comparison, as a share of the largest of its source."""
        graded = LabelRow.strength >= 0
        largest = select(LabelRow.source, func.max(LabelRow.strength)).where(graded).group_by(LabelRow.source)
        query = select(LabelRow.comparison_id, LabelRow.source, LabelRow.strength).where(graded)
        if at is not None:
            query = query.where(LabelRow.number <= at.labels)
            largest = largest.where(LabelRow.number <= at.labels)
        held: dict[str, list[float]] = defaultdict(list)
        with Session(self.engine) as session:
            most = {source: float(value or 0) for source, value in session.execute(largest)}
            for comparison, source, strength in session.execute(query):
                held[comparison].append(float(strength or 0) / (most[source] or 1.0))
        return {comparison: sum(shares) / len(shares) for comparison, shares in held.items()}

    def preferences(
        self, at: Snapshot | None = None, consensus: Mapping[str, float] | None = None
    ) -> list[Preference]:
        """Convert labelled comparisons that have a winner to pairs, in stored order.

        `at` restricts them to a snapshot. `consensus` maps a comparison id to the preference for the
        first side; the default is the mean of the labels. Comparisons with a consensus of exactly 0.5
        are excluded (`consensus_report` counts them).
        """
        consensus = self._consensus(at) if consensus is None else consensus
        strengths = self._strengths(at)
        pairs = []
        for c in self.comparisons(at=at):
            mean = consensus.get(c.id)
            if mean is None or mean == 0.5:
                continue
            chosen, rejected = (c.first, c.second) if mean > 0.5 else (c.second, c.first)
            pairs.append(
                Preference(
                    c.prompt,
                    chosen.text,
                    rejected.text,
                    max(mean, 1 - mean),
                    c.id,
                    chosen_ended=chosen.ended is not False,
                    rejected_ended=rejected.ended is not False,
                    strength=strengths.get(c.id),
                )
            )
        return pairs

    def consensus_report(self) -> dict[str, int]:
        """Count rows, labelled and unlabelled comparisons, ties, and those with contradicting labels."""
        consensus = self._consensus()
        counts = self.count()
        by_comparison = select(LabelRow.comparison_id).group_by(LabelRow.comparison_id)
        both_ways = by_comparison.having(
            func.min(LabelRow.preference) < 0.5, func.max(LabelRow.preference) > 0.5
        )
        with Session(self.engine) as session:
            contradicted = session.scalar(select(func.count()).select_from(both_ways.subquery())) or 0
        return counts | {
            "labelled": len(consensus),
            "unlabelled": counts["comparisons"] - len(consensus),
            "ties": sum(mean == 0.5 for mean in consensus.values()),
            "contradicted": contradicted,
        }

    def count(self) -> dict[str, int]:
        """Return the numbers of prompts, responses, comparisons and labels."""
        with Session(self.engine) as session:
            return {
                t.__tablename__: _count(session, t) for t in (PromptRow, ResponseRow, ComparisonRow, LabelRow)
            }


@cache
def _question_query(table: Any) -> Any:
    """Return a cached query for a table's questions, since making it costs more than finding a row.

    It selects columns, not objects, because there may be a hundred thousand rows.
    """
    first, second = aliased(ResponseRow), aliased(ResponseRow)
    own = table.preference if table is GoldRow else table.round
    sides = (first.text, first.source, first.ended, second.text, second.source, second.ended)
    return (
        select(own, PromptRow.text, PromptRow.messages, *sides)
        .join_from(table, PromptRow, PromptRow.id == table.prompt_id)
        .join(first, first.id == table.first_id)
        .join(second, second.id == table.second_id)
        .order_by(table.number)
    )


def _question_of(row: Any) -> tuple[Any, Comparison]:
    value, text, messages, *pair = row
    return value, Comparison(_prompt(text, messages), Response(*pair[:3]), Response(*pair[3:]))


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _count(session: Session, table: type[Table]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _turned(label: Label) -> Label:
    """Return the same label for the question with its sides swapped."""
    swapped = None if label.swapped is None else not label.swapped
    return replace(label, preference=1.0 - label.preference, swapped=swapped)


def _sqlite_settings(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "foreign_keys=ON",
        "busy_timeout=10000",
        "synchronous=FULL",
        "cache_size=-65536",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    messages = [[m.role, m.content] for m in prompt.messages]
    return {"id": prompt.id, "text": prompt.text, "messages": json.dumps(messages, ensure_ascii=False)}


def _prompt(text: str, messages: str) -> Prompt:
    return Prompt(text, tuple(Message(*m) for m in json.loads(messages)) if messages != "[]" else ())


def response_id(prompt: Prompt, response: Response) -> str:
    """Return the id of a response in a store."""
    return content_id("response", prompt.id, response.text)


def _response_row(prompt: Prompt, response: Response) -> dict[str, Any]:
    return {
        "id": response_id(prompt, response),
        "prompt_id": prompt.id,
        "text": response.text,
        "source": response.source,
        "ended": response.ended,
    }


def _comparison_row(c: Comparison) -> dict[str, Any]:
    return {
        "id": c.id,
        "prompt_id": c.prompt.id,
        "first_id": response_id(c.prompt, c.first),
        "second_id": response_id(c.prompt, c.second),
        "round": c.round,
    }


def _label_id(label: Label, round: int) -> str:
    return content_id("label", label.comparison_id, label.annotator, str(round))


def _label_row(label: Label, round: int, now: str) -> dict[str, Any]:
    return {
        "id": _label_id(label, round),
        "comparison_id": label.comparison_id,
        "annotator": label.annotator,
        "source": label.source,
        "preference": label.preference,
        "strength": label.strength,
        "seconds": label.seconds,
        "cost": label.cost,
        "round": round,
        "created": label.at or now,
        "guidelines": label.guidelines,
        "swapped": label.swapped,
    }


def _check_row(label: Label, round: int, now: str) -> dict[str, Any]:
    row = _label_row(label, round, now)
    kept = ("annotator", "preference", "swapped", "seconds", "cost", "created")
    return {
        "id": content_id("check", label.comparison_id, label.annotator, str(round)),
        "gold_id": label.comparison_id,
        **{name: row[name] for name in kept},
    }
