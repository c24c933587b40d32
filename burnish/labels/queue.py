"""Queue of labelling questions: leases, overlap, gold questions, practice and undo.

The database decides, with one writer at a time; memory only says where to look first. An answer is
durable when `save` returns. It becomes a label when it can no longer be taken back (`settle`).
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from threading import RLock

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from burnish.data.store import LabelStore, response_id
from burnish.data.tables import (
    AskedRow,
    CheckRow,
    ComparisonRow,
    GoldRow,
    LabelRow,
    ResponseRow,
    SaveRow,
    TaskRow,
)
from burnish.labels.tasks import (
    ANSWERED,
    ASIDE,
    GOLD,
    LATE,
    LONGEST_REASON,
    OPEN,
    RELEASED,
    SETTLED,
    STATES,
    Answer,
    Kind,
    Question,
    Refused,
    Rules,
    Saved,
    Sides,
    Standing,
    Task,
    as_row,
    gold_is_right,
    grouped,
    known_answer,
    labels_in,
    labels_of,
    question,
    settle,
    tiers_said,
)
from burnish.records import Comparison, Response, content_id

LATE_ANSWER = (
    "your time for this question was over and another annotator has it; your answer is kept aside, not as a label. "
    "Continue with the next question"
)
AT_ONCE = 16  # candidates checked in one query
REBUILD = 5.0  # seconds between rebuilds from the database


class Queue:
    """Questions of one project, for any number of annotators at once."""

    def __init__(
        self,
        store: LabelStore,
        rules: Rules,
        only: Sequence[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.rules, self.clock = store, rules, clock
        self._lock = RLock()
        self._units: list[list[str]] = []
        self._unit_of: dict[str, int] = {}
        self._only = None if only is None else {i: at for at, i in enumerate(only)}
        self._gold: list[list[str]] = []  # comparisons of each gold question
        self._sizes: Counter[int] = Counter()  # ordinary questions by number of answers shown
        self._last = 0  # number of the newest known comparison
        self._live: dict[int, None] = {}  # units that may need answers, in order
        self._busy: dict[int, float] = {}  # end of the lease of busy units
        self._seen: dict[str, set[int]] = {}
        self._rebuilt = 0.0
        self._doubtful = False
        self.look_again()

    @contextmanager
    def _changing(self, *, durable: bool = True) -> Iterator[Session]:
        """Open a transaction, after rebuilding the state in memory if an earlier one failed.

        A failed transaction may leave changes in memory that were never committed.
        """
        with self._lock:
            if self._doubtful:
                self._doubtful = False
                self._seen.clear()
                self._busy.clear()
                self.look_again()
            try:
                with self.store.writing(durable=durable) as session:
                    yield session
            except Refused:
                raise
            except BaseException:
                self._doubtful = True
                raise

    # Reading the store

    def _read_new(self) -> tuple[int, int, list[list[str]], list[list[Sides]], Counter[int]]:
        """Read comparisons added since the last look, and all gold questions.

        Return the newest number known before and now, all gold questions, comparisons grouped into
        questions, and how many answers all ordinary questions show. No lock is held, because this
        takes seconds for many comparisons.
        """
        before = self._last
        columns = (ComparisonRow.number, ComparisonRow.id, ComparisonRow.prompt_id)
        query = select(*columns, ComparisonRow.first_id, ComparisonRow.second_id)
        with self.store.reading() as session:
            rows = session.execute(query.where(ComparisonRow.number > before).order_by(columns[0])).all()
            known_gold = select(GoldRow.id, GoldRow.prompt_id, GoldRow.first_id, GoldRow.second_id)
            gold = [Sides(*row) for row in session.execute(known_gold.order_by(GoldRow.number))]
        known = [Sides(*row[1:]) for row in rows]
        if self._only is not None:
            place = self._only
            known = sorted((s for s in known if s.id in place), key=lambda s: place[s.id])
        found = grouped(known, self.rules.most)
        sizes = self._sizes + Counter(len({a for s in asked for a in (s.first, s.second)}) for asked in found)
        gold_units = [[s.id for s in asked] for asked in grouped(gold, usual(sizes, self.rules.most))]
        return before, rows[-1][0] if rows else before, gold_units, found, sizes

    def _notice(
        self, before: int, last: int, gold: list[list[str]], found: list[list[Sides]], sizes: Counter[int]
    ) -> None:
        """Add the result of `_read_new`, unless another look has already done so."""
        if before != self._last:
            return
        self._last, self._gold, self._sizes = last, gold, sizes
        for asked in found:
            unit = len(self._units)
            self._units.append([s.id for s in asked])
            self._unit_of.update((s.id, unit) for s in asked)
            self._live[unit] = None

    def _rebuild(self) -> None:
        """Rebuild the units that may need answers from the database."""
        self._rebuilt = self.clock()
        people: dict[str, int] = {}
        with self.store.reading() as session:
            given = select(LabelRow.comparison_id, func.count(LabelRow.annotator.distinct())).where(
                LabelRow.source == "human"
            )
            for i, n in session.execute(given.group_by(LabelRow.comparison_id)):
                people[i] = int(n)
            state = select(AskedRow.question, TaskRow.state).join(TaskRow, TaskRow.id == AskedRow.task)
            flagged = set()
            for i, found in session.execute(state.where(TaskRow.state.in_((ANSWERED, STATES["flag"])))):
                people[i] = people.get(i, 0) + 1
                if found == STATES["flag"]:
                    flagged.add(i)
        self._live = {
            unit: None
            for unit, ids in enumerate(self._units)
            if not flagged.intersection(ids) and any(people.get(i, 0) < self.rules.wanted(i) for i in ids)
        }

    def _seen_by(self, session: Session, annotator: str) -> set[int]:
        if annotator not in self._seen:
            mine = set(session.scalars(select(LabelRow.comparison_id).where(LabelRow.annotator == annotator)))
            asked = select(AskedRow.question).join(TaskRow, TaskRow.id == AskedRow.task)
            done = TaskRow.state.in_((ANSWERED, SETTLED, *STATES.values()))
            mine |= set(session.scalars(asked.where(TaskRow.annotator == annotator, done)))
            self._seen[annotator] = {self._unit_of[i] for i in mine if i in self._unit_of}
        return self._seen[annotator]

    def look_again(self) -> None:
        """Read at once what has been added or answered elsewhere, without waiting for a rebuild."""
        new = self._read_new()
        with self._lock:
            self._notice(*new)
            self._rebuild()

    def progress(self) -> tuple[int, int]:
        """Return the number of finished questions, and of all."""
        with self._lock:
            return len(self._units) - len(self._live), len(self._units)

    # Leasing tasks

    def next(self, annotator: str) -> Task | None:
        """Return the open task or lease a new one; None if none is left or the budget is spent."""
        with self._changing(durable=False) as session:  # a lease lost in a crash is given again
            task = self._next(session, annotator)
        if task is not None or self.clock() - self._rebuilt < REBUILD:
            return task
        self.look_again()
        with self._changing(durable=False) as session:
            return self._next(session, annotator)

    def _next(self, session: Session, annotator: str) -> Task | None:
        now = self.clock()
        mine = (TaskRow.annotator == annotator, TaskRow.state == OPEN, TaskRow.until > now)
        held = session.scalar(select(TaskRow).where(*mine).order_by(TaskRow.number.desc()).limit(1))
        if held is not None:
            held.until = now + self.rules.lease
            return self._task(session, held)
        if self._spent(session):
            return None
        given = self._next_gold(session, annotator) or self._next_unit(session, annotator, now)
        return None if given is None else self._lease(session, annotator, *given, now=now)

    def _spent(self, session: Session) -> bool:
        if self.rules.budget is None:
            return False
        paid = sum(
            session.scalar(select(func.coalesce(func.sum(t.cost), 0.0)).where(*which)) or 0.0
            for t, which in ((LabelRow, (LabelRow.source == "human",)), (CheckRow, ()))
        )
        held = and_(TaskRow.state == OPEN, TaskRow.until > self.clock())  # an abandoned lease costs nothing
        query = select(func.count()).select_from(TaskRow).where(or_(held, TaskRow.state == ANSWERED))
        due = session.scalar(query) or 0
        return float(paid) + (due + 1) * self.rules.pay > self.rules.budget + 1e-9

    def _next_gold(self, session: Session, annotator: str) -> tuple[str, list[str]] | None:
        if not self._gold:
            return None
        asked = select(AskedRow.question).join(TaskRow, TaskRow.id == AskedRow.task)
        theirs = asked.where(TaskRow.annotator == annotator, TaskRow.kind == GOLD)
        aside = set(session.scalars(theirs.where(TaskRow.state.in_(STATES.values()))))
        mine = set(session.scalars(theirs.where(TaskRow.state.in_((ANSWERED, SETTLED)))))
        mine |= set(session.scalars(select(CheckRow.gold_id).where(CheckRow.annotator == annotator)))
        answered = sum(not mine.isdisjoint(unit) for unit in self._gold)
        # A skipped or flagged gold question is asked again only if practice has no other left.
        left = [unit for unit in self._gold if (mine | aside).isdisjoint(unit)]
        if not left and answered < self.rules.practice:
            left = [unit for unit in self._gold if mine.isdisjoint(unit)]
        tasks = session.scalar(
            select(func.count()).select_from(TaskRow).where(TaskRow.annotator == annotator)
        )
        chance = random.Random(f"gold-{annotator}-{tasks}")
        if not left or (answered >= self.rules.practice and chance.random() >= self.rules.gold_share):
            return None
        return GOLD, chance.choice(left)

    def _next_unit(self, session: Session, annotator: str, now: float) -> tuple[str, list[str]] | None:
        seen = self._seen_by(session, annotator)
        looked: set[int] = set()

        def waiting() -> Iterator[int]:
            return (
                u for u in self._live if u not in seen and u not in looked and self._busy.get(u, 0.0) <= now
            )

        while units := list(islice(waiting(), AT_ONCE)):
            looked.update(units)
            ids = [i for unit in units for i in self._units[unit]]
            rooms = self._rooms(session, ids, annotator, now)
            for unit in units:
                found = [rooms[i] for i in self._units[unit]]
                free = [i for i in self._units[unit] if rooms[i] == "free"]
                if free and not {"flagged"} & set(found):
                    whole = len(free) == len(found)
                    asked = free if whole else free[:1]
                    if self._wants_one(unit):
                        self._busy[unit] = now + self.rules.lease
                    return ("rank" if len(asked) > 1 else "compare"), asked
                if set(found) <= {"full", "flagged"}:
                    self._live.pop(unit, None)
        return None

    def _rooms(self, session: Session, ids: Sequence[str], annotator: str, now: float) -> dict[str, str]:
        """Map each comparison id to its state for an annotator.

        A state is free, mine (answered or skipped), full, busy or flagged.
        """
        done: dict[str, set[str]] = {i: set() for i in ids}
        busy: dict[str, set[str]] = {i: set() for i in ids}
        closed: dict[str, str] = {}
        labels = select(LabelRow.comparison_id, LabelRow.annotator).where(
            LabelRow.comparison_id.in_(ids), LabelRow.source == "human"
        )
        for i, who in session.execute(labels):
            done[i].add(who)
        columns = (AskedRow.question, TaskRow.annotator, TaskRow.state, TaskRow.until)
        tasks = select(*columns).join(TaskRow, TaskRow.id == AskedRow.task)
        for i, who, state, until in session.execute(tasks.where(AskedRow.question.in_(ids))):
            if state == STATES["flag"]:
                closed[i] = "flagged"
            elif state in (ANSWERED, SETTLED):
                done[i].add(who)
            elif state == STATES["skip"] and who == annotator:
                closed.setdefault(i, "mine")
            elif state == OPEN and until > now:
                busy[i].add(who)
        found = {}
        for i in ids:
            wanted = self.rules.wanted(i)
            if i in closed:
                found[i] = closed[i]
            elif len(done[i]) >= wanted:
                found[i] = "full"
            elif annotator in done[i]:
                found[i] = "mine"
            else:
                found[i] = "free" if len(done[i] | busy[i]) < wanted else "busy"
        return found

    def _lease(self, session: Session, annotator: str, kind: str, ids: Sequence[str], *, now: float) -> Task:
        comparisons = self.store.find(ids, gold=kind == GOLD, session=session)
        others = self._padding(session, comparisons) if kind == GOLD else ()
        asked = question(comparisons, annotator, others)
        row = TaskRow(
            id=secrets.token_hex(12),
            annotator=annotator,
            kind=kind,
            state=OPEN,
            shown=json.dumps([response_id(asked.prompt, r) for r in asked.shown]),
            given=now,
            until=now + self.rules.lease,
        )
        session.add(row)
        session.flush()
        session.add_all(AskedRow(task=row.id, question=c.id) for c in comparisons)
        session.flush()
        return self._as_task(session, row, asked)

    def _padding(self, session: Session, gold: Sequence[Comparison]) -> list[Response]:
        """Return extra answers for a gold question, so that it has as many as an ordinary question."""
        prompt, wanted = gold[0].prompt, usual(self._sizes, self.rules.most)
        known = {r.text for c in gold for r in (c.first, c.second)}
        if len(known) >= wanted:
            return []
        rows = session.scalars(select(ResponseRow).where(ResponseRow.prompt_id == prompt.id))
        found = {row.id: row for row in rows if row.text not in known}
        drawn = sorted(found, key=lambda i: content_id("padding", *sorted(c.id for c in gold), i))
        chosen = [found[i] for i in drawn[: wanted - len(known)]]
        return [Response(row.text, row.source, row.ended) for row in chosen]

    def _task(self, session: Session, row: TaskRow) -> Task:
        ids = session.scalars(select(AskedRow.question).where(AskedRow.task == row.id)).all()
        comparisons = self.store.find(ids, gold=row.kind == GOLD, session=session)
        texts = {response_id(c.prompt, r): r for c in comparisons for r in (c.first, c.second)}
        ids = json.loads(row.shown)
        if padded := [i for i in ids if i not in texts]:
            for added in session.scalars(select(ResponseRow).where(ResponseRow.id.in_(padded))):
                texts[added.id] = Response(added.text, added.source, added.ended)
        shown = [texts[i] for i in ids]
        return self._as_task(session, row, Question(comparisons[0].prompt, shown, comparisons))

    def _as_task(self, session: Session, row: TaskRow, asked: Question) -> Task:
        kind: Kind = "rank" if len(asked.shown) > 2 else "compare"
        return Task(row.id, kind, asked, row.kind == GOLD and self._is_practice(session, row))

    def _is_practice(self, session: Session, row: TaskRow) -> bool:
        earlier = select(func.count()).select_from(TaskRow)
        given = TaskRow.state.in_((ANSWERED, SETTLED))  # a skip is not an answer
        mine = (TaskRow.annotator == row.annotator, TaskRow.kind == GOLD, given)
        before = session.scalar(earlier.where(*mine, TaskRow.number < row.number))
        return (before or 0) < self.rules.practice

    # Answers

    def save(self, annotator: str, task: str, key: str, answer: Answer) -> Saved:
        """Store an answer.

        The sender chooses `key`: a second save with the same key changes nothing, whatever else it
        contains. Raises Refused if the task is not the annotator's, was answered already or came
        too late, or if the answer is invalid.
        """
        with self._changing() as session:
            saved = self._save(session, annotator, task, key, answer)
        return in_time(saved)

    def save_and_next(self, annotator: str, task: str, key: str, answer: Answer) -> tuple[Saved, Task | None]:
        """Run `save` and `next` in the same transaction.

        No task follows a practice question, because its result may exclude the annotator.
        """
        with self._changing() as session:
            saved = self._save(session, annotator, task, key, answer)
            done = saved.late or saved.right is not None
            task_after = None if done else self._next(session, annotator)
        return in_time(saved), task_after

    def _save(self, session: Session, annotator: str, task: str, key: str, answer: Answer) -> Saved:
        name = content_id("save", annotator, key)
        row = session.scalar(select(TaskRow).where(TaskRow.id == task))
        if row is None:
            raise Refused("unknown", "there is no such question; reload the page")
        if row.annotator != annotator:
            raise Refused("not yours", "this question belongs to another annotator; reload the page")
        before = session.get(SaveRow, name)
        if before is not None:
            if before.task != task:
                raise Refused("bad", "this key belongs to another save; give every save a key of its own")
            return (
                Saved(True, late=True) if row.state == LATE else self._feedback(session, row, repeated=True)
            )
        if row.state != OPEN:
            raise Refused("answered", "this question was already answered or released")
        asked, now = self._task(session, row), self.clock()
        late = row.until <= now and self._passed_on(session, asked, row, now)
        self._take(session, row, asked, answer, now)
        session.add(SaveRow(id=name, task=task))
        if late and answer.choice not in ASIDE:
            row.state = LATE
            session.flush()
            return Saved(False, late=True)
        if asked.practice:
            row.until = now
        session.flush()
        self._settle(session, now, annotator)
        saved = self._feedback(session, row, repeated=False)
        self._after(session, row, asked)
        return saved

    def _passed_on(self, session: Session, asked: Task, row: TaskRow, now: float) -> bool:
        """Check whether an expired task has gone to enough others, or exceeds the budget.

        A newer lease of the same annotator (another tab) is released first: it is not another
        annotator's.
        """
        if row.kind == GOLD:
            return False
        ids = [c.id for c in asked.question.comparisons]
        mine = (TaskRow.annotator == row.annotator, TaskRow.state == OPEN, AskedRow.question.in_(ids))
        newer = select(TaskRow).join(AskedRow, AskedRow.task == TaskRow.id).where(*mine, TaskRow.id != row.id)
        for other in session.scalars(newer):  # the same annotator's, in another tab
            other.state = RELEASED
        session.flush()
        rooms = self._rooms(session, ids, row.annotator, now)
        return bool({"full", "busy"} & set(rooms.values())) or self._spent(session)

    def _take(self, session: Session, row: TaskRow, asked: Task, answer: Answer, now: float) -> None:
        if len(answer.reason) > LONGEST_REASON:
            raise Refused("bad", f"the reason has more than {LONGEST_REASON} characters; shorten it")
        row.reason, row.until = answer.reason.strip() or None, now + self.rules.undo
        if answer.choice in ASIDE:
            row.choice, row.state = answer.choice, STATES[answer.choice]
            return
        tiers, strength, row.choice = tiers_said(asked, answer)
        row.state = ANSWERED
        spent = max(0.0, now - row.given)
        seconds = spent if answer.seconds is None else min(max(0.0, answer.seconds), spent)
        labels = labels_of(
            asked.question,
            tiers,
            annotator=row.annotator,
            seconds=round(seconds, 1),
            guidelines=answer.guidelines,
            strength=strength,
            at=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        )
        cost = self.rules.pay / len(labels)
        row.labels = json.dumps([as_row(replace(label, cost=cost)) for label in labels])

    def _feedback(self, session: Session, row: TaskRow, *, repeated: bool) -> Saved:
        """Return what the annotator sees after an answer; a gold answer only in practice."""
        if row.kind != GOLD or row.labels is None or not self._is_practice(session, row):
            return Saved(repeated)
        right = gold_is_right(session, row)
        if len(json.loads(row.shown)) > 2:
            return Saved(repeated, right=right)
        said = labels_in(row)[0]
        shown_first = (known_answer(session, said.comparison_id) > 0.5) != bool(said.swapped)
        return Saved(repeated, "a" if shown_first else "b", right)

    def _after(self, session: Session, row: TaskRow, asked: Task) -> None:
        """Update the state in memory after an answer."""
        comparisons = asked.question.comparisons
        for unit in {self._unit_of.get(c.id) for c in comparisons}:
            if row.kind == GOLD or unit is None:
                continue
            self._busy.pop(unit, None)
            whole = len(comparisons) == len(self._units[unit])
            if whole:  # otherwise part of it is still open, also for this annotator
                self._seen_by(session, row.annotator).add(unit)
            if row.state == STATES["flag"] or (
                row.state != STATES["skip"] and self._full(session, unit, whole)
            ):
                self._live.pop(unit, None)

    def _full(self, session: Session, unit: int, whole: bool) -> bool:
        """Check whether a question is full after an answer to all or part of it."""
        if whole and self._wants_one(unit):
            return True
        rooms = self._rooms(session, self._units[unit], "", self.clock())
        return set(rooms.values()) == {"full"}

    def _wants_one(self, unit: int) -> bool:
        return all(self.rules.wanted(i) == 1 for i in self._units[unit])

    def undo(self, annotator: str) -> Task | None:
        """Take the last answer back and return its task; None if it is too late for that."""
        with self._changing() as session:
            now = self.clock()
            states = (ANSWERED, *STATES.values())
            mine = (TaskRow.annotator == annotator, TaskRow.state.in_(states), TaskRow.until > now)
            row = session.scalar(select(TaskRow).where(*mine).order_by(TaskRow.until.desc()).limit(1))
            if row is None:
                return None
            held = (TaskRow.annotator == annotator, TaskRow.state == OPEN)
            for other in session.scalars(select(TaskRow).where(*held)):
                other.state = RELEASED
                self._give_back(session, other, 0.0)
            row.state, row.labels, row.choice, row.reason = OPEN, None, None, None
            row.until = now + self.rules.lease
            session.flush()
            self._give_back(session, row, row.until)
            return self._task(session, row)

    def _give_back(self, session: Session, row: TaskRow, until: float) -> None:
        for i in session.scalars(select(AskedRow.question).where(AskedRow.task == row.id)):
            unit = self._unit_of.get(i)
            if unit is not None and row.kind != GOLD:
                self._live[unit] = None
                if self._wants_one(unit):
                    self._busy[unit] = until
                self._seen_by(session, row.annotator).discard(unit)

    def release(self, annotator: str) -> None:
        """Release an annotator's open tasks and turn their answers into labels.

        This includes answers that could still be taken back.
        """
        with self._changing() as session:
            held = (TaskRow.annotator == annotator, TaskRow.state == OPEN)
            for row in session.scalars(select(TaskRow).where(*held)):
                row.state = RELEASED
                self._give_back(session, row, 0.0)
            self._settle(session, self.clock() + self.rules.undo, annotator)

    def put_back(self, task: str) -> bool:
        """Put a flagged question back for other annotators; return False if it is not flagged."""
        with self._changing() as session:
            row = session.scalar(select(TaskRow).where(TaskRow.id == task, TaskRow.state == STATES["flag"]))
            if row is None:
                return False
            row.state = STATES["skip"]
            for i in session.scalars(select(AskedRow.question).where(AskedRow.task == task)):
                if i in self._unit_of:
                    self._live[self._unit_of[i]] = None
            return True

    def settle(self, *, all: bool = False) -> int:
        """Turn answers that can no longer be taken back, or all, into labels; return their number."""
        with self._changing() as session:
            now = self.clock()
            return self._settle(session, now + self.rules.undo if all else now)

    def _settle(self, session: Session, now: float, annotator: str | None = None) -> int:
        return settle(self.store, session, now, annotator)

    def standing(self, annotator: str) -> Standing:
        """Return an annotator's progress."""
        with self.store.reading() as session:
            mine = (TaskRow.annotator == annotator, TaskRow.state.in_((ANSWERED, SETTLED)))
            query = select(TaskRow).where(*mine, TaskRow.kind == GOLD).order_by(TaskRow.number)
            rows = session.scalars(query.limit(self.rules.practice)).all() if self._gold else []
            right = sum(gold_is_right(session, row) for row in rows)
            answers = session.scalar(select(func.count()).select_from(TaskRow).where(*mine))
        practice = min(self.rules.practice, len(self._gold))
        return Standing(answers or 0, practice, len(rows), right)


def usual(sizes: Counter[int], most: int) -> int:
    """Return the most common of `sizes`, or `most` if there are none."""
    return max(sizes, key=lambda n: (sizes[n], n)) if sizes else most


def in_time(saved: Saved) -> Saved:
    """Return a save that stands; raise Refused for one that was stored too late."""
    if saved.late:
        raise Refused("late", LATE_ANSWER)
    return saved
