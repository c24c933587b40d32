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


class AccountRow(Table):
    """Who may enter a page; `id` is the name, `password` a hash."""

    __tablename__ = "accounts"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    password: Mapped[str]
    state: Mapped[str]
    created: Mapped[str]


class InvitationRow(Table):
    """A link that makes an account; `id` is a hash of what stands in it."""

    __tablename__ = "invitations"
    id: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    by: Mapped[str]
    uses: Mapped[int]
    expires: Mapped[float]


class SessionRow(Table):
    """Somebody who is in; `id` is a hash of what their browser holds."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    expires: Mapped[float]


class AuditRow(Table):
    """Something that somebody did, or was refused."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[str]
    who: Mapped[str]
    address: Mapped[str]
    action: Mapped[str]
    detail: Mapped[str]


class TaskRow(Table):
    """A question that was put to somebody: `shown` is a JSON list of response ids in their order, `until` when the
    lease ends (open), or the answer can no longer be taken back (answered), `labels` what the answer comes to."""

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
    """Which comparisons, or which gold question, a task asks about."""

    __tablename__ = "asked"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    task: Mapped[str] = mapped_column(ForeignKey("tasks.id"), index=True)
    question: Mapped[str] = mapped_column(index=True)


class SaveRow(Table):
    """A save that was carried out, by the key its sender gave it."""

    __tablename__ = "saves"
    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(ForeignKey("tasks.id"))


class EditionRow(Table):
    """A wording of the guidelines that was put up; the last one counts."""

    __tablename__ = "editions"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    guidelines: Mapped[str] = mapped_column(ForeignKey("guidelines.id"))
    by: Mapped[str]
    at: Mapped[str]


class SettingRow(Table):
    """What a page keeps for itself."""

    __tablename__ = "settings"
    id: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
