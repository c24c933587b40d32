"""SQLAlchemy tables of a label store, which `migrations/` creates."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Declarative base of all tables."""


class PromptRow(Table):
    """A prompt, with `messages` as a JSON list that is empty for plain text."""

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
    """A comparison, with its two responses in the order in which they were first stored."""

    __tablename__ = "comparisons"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    first_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    second_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    round: Mapped[int]


class LabelRow(Table):
    """One annotator's label in one round, which is never changed or deleted."""

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
    """A gold question, kept apart from comparisons, whose known answer measures annotators."""

    __tablename__ = "gold"
    __table_args__ = (CheckConstraint("preference >= 0 AND preference <= 1"),)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    first_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    second_id: Mapped[str] = mapped_column(ForeignKey("responses.id"))
    preference: Mapped[float]


class CheckRow(Table):
    """An annotator's answer to a gold question."""

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
    """A text of guidelines that labels were given under."""

    __tablename__ = "guidelines"
    id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]


class AccountRow(Table):
    """An account of the web pages, with the name as `id` and a hash as `password`."""

    __tablename__ = "accounts"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    password: Mapped[str]
    state: Mapped[str]
    created: Mapped[str]


class InvitationRow(Table):
    """A link that creates an account, with a hash of its token as `id`."""

    __tablename__ = "invitations"
    id: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    by: Mapped[str]
    uses: Mapped[int]
    expires: Mapped[float]


class SessionRow(Table):
    """A login session, with a hash of the browser's token as `id`."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    expires: Mapped[float]


class AuditRow(Table):
    """An entry of the audit log: an action that was carried out or refused."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[str]
    who: Mapped[str]
    address: Mapped[str]
    action: Mapped[str]
    detail: Mapped[str]


class TaskRow(Table):
    """A question assigned to an annotator, with `shown` as a JSON list of response ids in order.

    `until` ends the lease (open task) or the time to undo (answered); `labels` come from the answer.
    """

    __tablename__ = "tasks"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    annotator: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    shown: Mapped[str]
    given: Mapped[float]
    until: Mapped[float]
    choice: Mapped[str | None]
    reason: Mapped[str | None]
    labels: Mapped[str | None]


class AskedRow(Table):
    """A comparison or gold question that a task asks about."""

    __tablename__ = "asked"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    task: Mapped[str] = mapped_column(ForeignKey("tasks.id"), index=True)
    question: Mapped[str] = mapped_column(index=True)


class SaveRow(Table):
    """A save that was carried out, with the key that its sender gave it as `id`."""

    __tablename__ = "saves"
    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(ForeignKey("tasks.id"))


class EditionRow(Table):
    """A published edition of the guidelines, of which the last one applies."""

    __tablename__ = "editions"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    guidelines: Mapped[str] = mapped_column(ForeignKey("guidelines.id"))
    by: Mapped[str]
    at: Mapped[str]


class SettingRow(Table):
    """An internal setting of the web pages."""

    __tablename__ = "settings"
    id: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
