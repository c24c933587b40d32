"""The label store: prompts, responses, comparisons and append-only labels, on SQLAlchemy (SQLite by default)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from burnish.data.guidelines import Guidelines
from burnish.data.migrate import migrate
from burnish.errors import DataError
from burnish.records import Comparison, Label, Message, Preference, Prompt, Response, Source, content_id

CHUNK = 500
Item = TypeVar("Item")


class Table(DeclarativeBase):
    """Declarative base."""


class PromptRow(Table):
    """A prompt; `messages` is JSON, empty for plain text."""

    __tablename__ = "prompts"
    id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
    messages: Mapped[str]


class ResponseRow(Table):
    """A response to a prompt."""

    __tablename__ = "responses"
    id: Mapped[str] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    text: Mapped[str]
    source: Mapped[str]
    ended: Mapped[bool | None]


class ComparisonRow(Table):
    """A question, with the order its two responses were first stored in."""

    __tablename__ = "comparisons"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    first_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    second_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    round: Mapped[int]


class LabelRow(Table):
    """One annotator's answer in one round; never changed, never deleted."""

    __tablename__ = "labels"
    __table_args__ = (CheckConstraint("preference >= 0 AND preference <= 1"),)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id"), index=True)
    annotator: Mapped[str]
    source: Mapped[str]
    preference: Mapped[float]
    strength: Mapped[float | None]
    seconds: Mapped[float | None]
    cost: Mapped[float]
    round: Mapped[int]
    created: Mapped[str]
    guidelines: Mapped[str | None]


class GuidelinesRow(Table):
    """A wording that labels were given under."""

    __tablename__ = "guidelines"
    id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]


@dataclass(frozen=True)
class Snapshot:
    """How far a store had come: numbers of its last label and comparison. What comes later is not seen through it."""

    labels: int
    comparisons: int


class LabelStore:
    """Comparisons and labels. Ids depend on content alone, so adding the same thing twice adds it once."""

    def __init__(self, where: Path | str) -> None:
        url = f"sqlite:///{where}" if isinstance(where, Path) or "://" not in where else where
        self.engine = create_engine(url)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_settings)
        migrate(self.engine)

    def close(self) -> None:
        """Release the database; SQLite's write-ahead log is folded in."""
        self.engine.dispose()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> int:
        """Store comparisons with their prompts and responses, in one transaction; returns how many are new.

        When the same question is there with its sides swapped, the stored order stays: ask `stored` before
        labelling a comparison that did not come from this store.
        """
        with Session(self.engine) as session, session.begin():
            before = session.scalar(select(func.count()).select_from(ComparisonRow)) or 0
            for chunk in _chunks(comparisons):
                self._insert(session, PromptRow, {c.prompt.id: _prompt_row(c.prompt) for c in chunk})
                sides = [(c.prompt, r) for c in chunk for r in (c.first, c.second)]
                self._insert(
                    session, ResponseRow, {_response_id(p, r): _response_row(p, r) for p, r in sides}
                )
                self._insert(session, ComparisonRow, {c.id: _comparison_row(c) for c in chunk})
            after = session.scalar(select(func.count()).select_from(ComparisonRow)) or 0
        return after - before

    def add_labels(self, labels: Iterable[Label], round: int = 0) -> int:
        """Append labels in one transaction; a repetition of (comparison, annotator, round) is left out. Returns
        how many are new."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with Session(self.engine) as session, session.begin():
            before = session.scalar(select(func.count()).select_from(LabelRow)) or 0
            for chunk in _chunks(labels):
                rows = [_label_row(label, round, now) for label in chunk]
                self._insert(session, LabelRow, {row["id"]: row for row in rows})
            after = session.scalar(select(func.count()).select_from(LabelRow)) or 0
        return after - before

    def differing(self, labels: Iterable[Label], round: int = 0) -> int:
        """How many of these labels the store has with another answer: of the same annotator, to the same question. They
        would be left out by `add_labels`."""
        found = 0
        with Session(self.engine) as session:
            for chunk in _chunks(labels):
                given = {_label_id(label, round): label.preference for label in chunk}
                query = select(LabelRow.id, LabelRow.preference).where(LabelRow.id.in_(given))
                found += sum(given[i] != preference for i, preference in session.execute(query))
        return found

    def oriented(self, pairs: Sequence[tuple[Comparison, float]]) -> list[float]:
        """How far the first side is preferred as the store has it, given comparisons of it and how far their own first
        side is: another run may have stored the same question the other way round."""
        first = {c.id: c.first.text for c in self.comparisons()}
        return [p if first[c.id] == c.first.text else 1.0 - p for c, p in pairs]

    def add_guidelines(self, guidelines: Guidelines) -> str:
        """Keep a wording; its id, to be given with labels."""
        with Session(self.engine) as session, session.begin():
            row = {"id": guidelines.id, "text": guidelines.text}
            self._insert(session, GuidelinesRow, {guidelines.id: row})
        return guidelines.id

    def take_over(self, other: LabelStore, at: Snapshot) -> None:
        """Everything that a snapshot of another store holds, as that one has it."""
        theirs = list(other.comparisons(at=at))
        self.add_comparisons(theirs)
        swapped = {c.id for c in theirs if self.stored(c).first != c.first}
        for text in other.guidelines().values():
            self.add_guidelines(Guidelines(text))
        self.add_labels(
            replace(label, preference=1 - label.preference) if label.comparison_id in swapped else label
            for label in other.labels(at=at)
        )

    def guidelines(self) -> dict[str, str]:
        """Every wording by its id."""
        with Session(self.engine) as session:
            return {row.id: row.text for row in session.scalars(select(GuidelinesRow))}

    def _insert(self, session: Session, table: type[Table], rows: dict[str, dict[str, Any]]) -> None:
        """Insert rows whose id is not there yet, on SQLite and PostgreSQL alike."""
        if not rows:
            return
        dialect = {"sqlite": sqlite, "postgresql": postgresql}.get(self.engine.dialect.name)
        if dialect is None:
            raise DataError(
                f"the label store runs on SQLite or PostgreSQL, not on {self.engine.dialect.name}; give such a URL"
            )
        statement = dialect.insert(table).on_conflict_do_nothing(index_elements=["id"])
        session.execute(statement, list(rows.values()))

    def snapshot(self) -> Snapshot:
        """How far the store has come."""
        with Session(self.engine) as session:
            newest = [session.scalar(select(func.max(t.number))) or 0 for t in (LabelRow, ComparisonRow)]
        return Snapshot(*newest)

    def comparisons(self, round: int | None = None, at: Snapshot | None = None) -> Iterator[Comparison]:
        """Comparisons in the order they were added, all or those of a snapshot."""
        first, second = aliased(ResponseRow), aliased(ResponseRow)
        query = (
            select(ComparisonRow, PromptRow, first, second)
            .join(PromptRow, PromptRow.id == ComparisonRow.prompt_id)
            .join(first, first.id == ComparisonRow.first_id)
            .join(second, second.id == ComparisonRow.second_id)
            .order_by(ComparisonRow.number)
        )
        if round is not None:
            query = query.where(ComparisonRow.round == round)
        if at is not None:
            query = query.where(ComparisonRow.number <= at.comparisons)
        with Session(self.engine) as session:
            for row, prompt, a, b in session.execute(query):
                yield Comparison(_prompt(prompt), _response(a), _response(b), row.round)

    def stored(self, comparison: Comparison) -> Comparison:
        """The comparison with its sides in the stored order (as given when it is not stored)."""
        with Session(self.engine) as session:
            row = session.scalar(select(ComparisonRow).where(ComparisonRow.id == comparison.id))
        if row is None or row.first_id == _response_id(comparison.prompt, comparison.first):
            return comparison
        return Comparison(comparison.prompt, comparison.second, comparison.first, comparison.round)

    def labels(
        self, comparison_ids: Sequence[str] | None = None, at: Snapshot | None = None
    ) -> Iterator[Label]:
        """Labels in the order they were given, all or those of a snapshot."""
        query = select(LabelRow).order_by(LabelRow.number)
        if at is not None:
            query = query.where(LabelRow.number <= at.labels)
        if comparison_ids is not None:
            query = query.where(LabelRow.comparison_id.in_(comparison_ids))
        with Session(self.engine) as session:
            for r in session.scalars(query):
                yield Label(
                    r.comparison_id,
                    r.annotator,
                    r.preference,
                    cast(Source, r.source),
                    r.strength,
                    r.seconds,
                    r.cost,
                    r.guidelines,
                )

    def _consensus(self, at: Snapshot | None = None) -> dict[str, float]:
        """Mean preference for the first response, per labelled comparison."""
        query = select(LabelRow.comparison_id, func.avg(LabelRow.preference)).group_by(LabelRow.comparison_id)
        if at is not None:
            query = query.where(LabelRow.number <= at.labels)
        with Session(self.engine) as session:
            return {i: float(mean) for i, mean in session.execute(query)}

    def preferences(self, at: Snapshot | None = None) -> list[Preference]:
        """Labelled comparisons with a winner, in order, all or as a snapshot has them; those at exactly one half are
        left out (and counted in `consensus_report`)."""
        consensus = self._consensus(at)
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
                )
            )
        return pairs

    def consensus_report(self) -> dict[str, int]:
        """How many comparisons and labels there are, how many are unlabelled, how many tie, and about how many the
        labels contradict each other."""
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
        """Rows of every table."""
        with Session(self.engine) as session:
            return {
                t.__tablename__: session.scalar(select(func.count()).select_from(t)) or 0
                for t in (PromptRow, ResponseRow, ComparisonRow, LabelRow)
            }


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _sqlite_settings(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=10000", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    messages = [[m.role, m.content] for m in prompt.messages]
    return {"id": prompt.id, "text": prompt.text, "messages": json.dumps(messages, ensure_ascii=False)}


def _prompt(row: PromptRow) -> Prompt:
    return Prompt(row.text, tuple(Message(*m) for m in json.loads(row.messages)))


def _response_id(prompt: Prompt, response: Response) -> str:
    return content_id("response", prompt.id, response.text)


def _response_row(prompt: Prompt, response: Response) -> dict[str, Any]:
    return {
        "id": _response_id(prompt, response),
        "prompt_id": prompt.id,
        "text": response.text,
        "source": response.source,
        "ended": response.ended,
    }


def _response(row: ResponseRow) -> Response:
    return Response(row.text, row.source, row.ended)


def _comparison_row(c: Comparison) -> dict[str, Any]:
    return {
        "id": c.id,
        "prompt_id": c.prompt.id,
        "first_id": _response_id(c.prompt, c.first),
        "second_id": _response_id(c.prompt, c.second),
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
        "created": now,
        "guidelines": label.guidelines,
    }
