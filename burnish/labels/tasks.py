"""Tasks of the labelling page: their questions, states in a store, and resulting labels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from burnish.data.store import LabelStore
from burnish.data.tables import AskedRow, GoldRow, TaskRow
from burnish.errors import DataError
from burnish.records import Comparison, Label, Prompt, Response, content_id


@dataclass(frozen=True)
class Question:
    """Answers to one prompt in the order shown, and the comparisons that their order answers."""

    prompt: Prompt
    shown: Sequence[Response]
    comparisons: Sequence[Comparison]


@dataclass(frozen=True)
class Sides:
    """Ids of a comparison, of its prompt and of its two answers."""

    id: str
    prompt: str
    first: str
    second: str


def grouped(comparisons: Sequence[Sides], most: int) -> list[list[Sides]]:
    """Group comparisons that are asked together.

    With `most` up to two, every comparison is asked alone. Otherwise a group has up to `most`
    answers to a prompt, all of which are to be compared with each other. The time is near linear:
    for each comparison, only the partners of the answer with fewer of them are examined.
    """
    if most <= 2:
        return [[c] for c in comparisons]
    left = {c.id: c for c in comparisons}
    # By (prompt, answer): the answers still to be compared with it, and the comparison for each.
    others: dict[tuple[str, str], dict[str, Sides]] = {}
    place: dict[tuple[str, str], int] = {}
    for c in left.values():
        if c.first == c.second:  # nothing to rank
            continue
        for one, other in ((c.first, c.second), (c.second, c.first)):
            others.setdefault((c.prompt, one), {})[other] = c
            place.setdefault((c.prompt, one), len(place))
    found = []
    for c in comparisons:
        if c.id not in left:
            continue
        if c.first == c.second:
            del left[c.id]
            found.append([c])
            continue
        answers, asked = [c.first, c.second], [c]
        fewest = min((others[c.prompt, a] for a in answers), key=len)
        for answer in sorted(fewest, key=lambda a: place[c.prompt, a]):
            if len(answers) == most:
                break
            with_all = [others[c.prompt, answer].get(a) for a in answers]
            if answer not in answers and None not in with_all:
                answers.append(answer)
                asked += [o for o in with_all if o is not None]
        for o in asked:
            del left[o.id]
            others[o.prompt, o.first].pop(o.second, None)
            others[o.prompt, o.second].pop(o.first, None)
        found.append(asked)
    return found


def questions_of(comparisons: Sequence[Comparison], most: int, annotator: str) -> list[Question]:
    """Group comparisons into questions as they are shown to this annotator."""
    by_id = {c.id: c for c in comparisons}
    sides = [Sides(c.id, c.prompt.id, c.first.text, c.second.text) for c in by_id.values()]
    return [question([by_id[s.id] for s in asked], annotator) for asked in grouped(sides, most)]


def question(asked: Sequence[Comparison], annotator: str, others: Sequence[Response] = ()) -> Question:
    """Return comparisons as one question, with `others` shown beside their answers.

    The order is a hash of the comparisons and the annotator, so it stays the same.
    """
    sides = (r for c in asked for r in (c.first, c.second))
    answers = list({r.text: r for r in (*sides, *others)}.values())
    names = sorted(c.id for c in asked)
    if len(answers) == 2:
        turned = int(content_id("terminal", annotator, *names), 16) % 2
        shown = answers[::-1] if turned else answers
    else:
        shown = sorted(answers, key=lambda a: content_id("terminal", annotator, *names, a.text))
    return Question(asked[0].prompt, shown, asked)


def labels_of(
    asked: Question,
    tiers: Sequence[int],
    annotator: str,
    *,
    seconds: float | None,
    guidelines: str | None,
    strength: float | None = None,
    at: str | None = None,
) -> list[Label]:
    """Return a label for each comparison from the answers' tiers (0 the best), sharing the time."""
    place = {r.text: i for i, r in enumerate(asked.shown)}
    found = []
    for c in asked.comparisons:
        first, second = place[c.first.text], place[c.second.text]
        value = 0.5 + 0.5 * ((tiers[first] < tiers[second]) - (tiers[first] > tiers[second]))
        found.append(
            Label(
                c.id,
                annotator,
                value,
                "human",
                strength=strength,
                seconds=None if seconds is None else seconds / len(asked.comparisons),
                guidelines=guidelines,
                swapped=second < first,
                at=at,
            )
        )
    return found


Kind = Literal["compare", "rank"]

GOLD = "gold"  # a task's kind, hidden from annotators

CHOICES = ("a3", "a2", "a1", "tie", "bad", "b1", "b2", "b3")

"""a, b: the answer shown first, second is much better (3), better (2), slightly better (1); tie; both bad."""

ASIDE = ("skip", "flag")

OPEN, ANSWERED, SETTLED, RELEASED, LATE = "open", "answered", "settled", "released", "late"

STATES = {"skip": "skipped", "flag": "flagged"}

BACK = 5  # answers that can be taken back

LONGEST_REASON = 2000


@dataclass(frozen=True)
class Rules:
    """Rules for labelling a project.

    `each` people see a comparison, `overlap_each` for a share `overlap` of them. `gold_share` is
    the share of gold questions; `practice` of them come first, and a share `least` of these must be
    right. Up to `most` answers are ranked at once. `lease` and `undo` are the seconds of a lease
    and to take an answer back. `pay` is in dollars per answer, `budget` in dollars for all.
    """

    each: int = 1
    overlap: float = 0.0
    overlap_each: int = 2
    gold_share: float = 0.05
    practice: int = 5
    least: float = 0.6
    most: int = 2
    lease: float = 1800.0
    undo: float = 120.0
    pay: float = 0.0
    budget: float | None = None

    def wanted(self, comparison: str) -> int:
        """Return how many people are to see a comparison; a hash decides which have overlap."""
        drawn = int(content_id("overlap", comparison), 16) / 2**64
        return self.overlap_each if drawn < self.overlap else self.each


@dataclass(frozen=True)
class Task:
    """Question leased to an annotator; with `practice` the right answer is shown afterwards."""

    id: str
    kind: Kind
    question: Question
    practice: bool = False


@dataclass(frozen=True)
class Answer:
    """Annotator's answer to a task.

    `choice` is for two answers (`CHOICES`), or for any task (`ASIDE`). `order` is for more: the
    tier of each in the order shown, 0 the best. `seconds` is the time that the page measured.
    """

    choice: str | None = None
    order: Sequence[int] | None = None
    reason: str = ""
    seconds: float | None = None
    guidelines: str | None = None


@dataclass(frozen=True)
class Saved:
    """Result of a save.

    `repeated` means that the save had been carried out before, `late` that others had the question
    by then. In practice, `better` is the better answer shown, and `right` says whether the
    annotator chose it.
    """

    repeated: bool
    better: Literal["a", "b"] | None = None
    right: bool | None = None
    late: bool = False


@dataclass(frozen=True)
class Standing:
    """Progress of an annotator.

    `answers` counts the answers that stand. `practice`, `given` and `right` count practice
    questions: all, answered, and answered right.
    """

    answers: int
    practice: int
    given: int
    right: int


class Refused(DataError):
    """Error of a refused save; `why` is unknown, not yours, answered, late or bad."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


def settle(store: LabelStore, session: Session, now: float, annotator: str | None = None) -> int:
    """Turn answers that can no longer be taken back into labels and return their number.

    With `annotator`, include all of their answers before the last `BACK`.
    """
    query = select(TaskRow).where(TaskRow.state == ANSWERED).order_by(TaskRow.until, TaskRow.number)
    if annotator is None:
        rows = list(session.scalars(query.where(TaskRow.until <= now)))
    else:
        mine = list(session.scalars(query.where(TaskRow.annotator == annotator)))
        kept = mine[-BACK:]
        rows = [row for row in mine if row.until <= now or row not in kept]
    if not rows:
        return 0
    store.put_labels(session, [label for row in rows if row.kind != GOLD for label in labels_in(row)])
    store.put_checks(session, [label for row in rows if row.kind == GOLD for label in labels_in(row)])
    session.execute(update(TaskRow).where(TaskRow.id.in_([row.id for row in rows])).values(state=SETTLED))
    return len(rows)


def settle_overdue(store: LabelStore) -> int:
    """Run `settle` for a store that no page serves any more; return the number of answers."""
    with store.writing() as session:
        return settle(store, session, time.time())


def open_answers(store: LabelStore) -> int:
    """Return the number of answers that can still be taken back and are not labels yet."""
    with store.reading() as session:
        return session.scalar(select(func.count()).select_from(TaskRow).where(TaskRow.state == ANSWERED)) or 0


def flagged(store: LabelStore) -> Iterator[tuple[str, str, str, str]]:
    """Yield (task, annotator, reason, comparison) of flagged tasks."""
    columns = (TaskRow.id, TaskRow.annotator, TaskRow.reason, AskedRow.question)
    query = select(*columns).join(AskedRow, AskedRow.task == TaskRow.id)
    with store.reading() as session:
        for task, who, why, asked in session.execute(query.where(TaskRow.state == STATES["flag"])):
            yield task, who, why or "", asked


def remarks(store: LabelStore) -> Iterator[dict[str, Any]]:
    """Yield annotators' remarks beside labels: reasons, both answers bad, skips and flags."""
    said = or_(TaskRow.reason.is_not(None), TaskRow.choice.in_(("bad", *ASIDE)))
    rows = select(TaskRow).where(said, TaskRow.kind != GOLD).order_by(TaskRow.number)
    with store.reading() as session:
        for row in session.scalars(rows):
            asked = session.scalars(select(AskedRow.question).where(AskedRow.task == row.id)).all()
            yield {
                "annotator": row.annotator,
                "choice": row.choice,
                "reason": row.reason,
                "shown": json.loads(row.shown),
                "comparisons": list(asked),
            }


def tiers_said(task: Task, answer: Answer) -> tuple[Sequence[int], float | None, str]:
    """Return the tiers, strength and choice of an answer; raise Refused if it is invalid."""
    n = len(task.question.shown)
    if task.kind == "rank":
        order = answer.order
        if order is None or len(order) != n or set(order) != set(range(len(set(order)))):
            raise Refused("bad", f"order must give each of {n} answers its tier, 0 the best, without gaps")
        return list(order), None, " ".join(map(str, order))
    if answer.choice not in CHOICES:
        raise Refused("bad", f"choice must be one of {', '.join((*CHOICES, *ASIDE))}")
    if answer.choice in ("tie", "bad"):
        return [0, 0], None, answer.choice
    side, strength = answer.choice[0], answer.choice[1:]
    return ([0, 1] if side == "a" else [1, 0]), float(strength), answer.choice


def as_row(label: Label) -> dict[str, Any]:
    """Return a label as a dict for JSON."""
    names = ("comparison_id", "annotator", "preference", "source", "strength", "seconds", "cost")
    return {name: getattr(label, name) for name in (*names, "guidelines", "swapped", "at")}


def labels_in(row: TaskRow) -> list[Label]:
    """Decode the labels that a task row stores as JSON."""
    return [Label(**kept) for kept in json.loads(row.labels or "[]")]


def known_answer(session: Session, gold: str) -> float:
    """Return the known preference of a gold question."""
    return float(session.scalars(select(GoldRow.preference).where(GoldRow.id == gold)).one())


def gold_is_right(session: Session, row: TaskRow) -> bool:
    """Check whether the answer to a gold question agrees with all its known preferences."""
    said = labels_in(row)
    return all(agrees(label.preference, known_answer(session, label.comparison_id)) for label in said)


def agrees(said: float, known: float) -> bool:
    """Check whether two preferences name the same side, or are both ties."""
    return (said > 0.5) - (said < 0.5) == (known > 0.5) - (known < 0.5)
