"""The tables of a label store; `migrations/` makes them."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


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
    swapped: Mapped[bool | None]


class GoldRow(Table):
    """A question whose answer is known. None of the comparisons: it is asked to see who answers well."""

    __tablename__ = "gold"
    __table_args__ = (CheckConstraint("preference >= 0 AND preference <= 1"),)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    first_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    second_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    preference: Mapped[float]


class CheckRow(Table):
    """What an annotator answered to a gold question."""

    __tablename__ = "checks"
    __table_args__ = (CheckConstraint("preference >= 0 AND preference <= 1"),)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    gold_id: Mapped[str] = mapped_column(ForeignKey("gold.id"), index=True)
    annotator: Mapped[str]
    preference: Mapped[float]
    swapped: Mapped[bool | None]
    seconds: Mapped[float | None]
    cost: Mapped[float]
    created: Mapped[str]


class GuidelinesRow(Table):
    """A wording that labels were given under."""

    __tablename__ = "guidelines"
    id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
