"""Labelling projects: a label store with its rules and the editions of its guidelines."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from burnish.data.guidelines import Guidelines, load_guidelines
from burnish.data.lines import read_lines
from burnish.data.store import LabelStore, Place, beside
from burnish.data.tables import EditionRow, GuidelinesRow
from burnish.errors import DataError
from burnish.labels.queue import Queue
from burnish.labels.served import leave_note, take_note_back
from burnish.labels.tasks import Rules

STALE = 2.0  # seconds for which the newest guidelines are cached
SETTLE = 10.0  # seconds between checks for answers that become labels


@dataclass(frozen=True)
class Edition:
    """Published edition of the guidelines: its number from 1, when and by whom."""

    number: int
    guidelines: Guidelines
    by: str = ""
    at: str = ""


@dataclass
class Project:
    """Questions of one store; if `examines`, they decide the evaluation and are not trained on."""

    name: str
    store: LabelStore
    queue: Queue
    first: Guidelines
    examines: bool = False
    _newest: tuple[Edition | None, float] = (None, 0.0)

    @classmethod
    def open(
        cls,
        name: str,
        place: Place,
        rules: Rules,
        guidelines: str | None = None,
        only: Sequence[str] | None = None,
        examines: bool = False,
    ) -> Project:
        """Open a label store as a project."""
        store = LabelStore(place)
        first = load_guidelines(guidelines)
        store.add_guidelines(first)
        return cls(name, store, Queue(store, rules, only), first, examines)

    def edition(self) -> Edition:
        """Return the current guidelines; edits by other processes appear after `STALE` seconds."""
        known, at = self._newest
        if known is None or time.monotonic() - at > STALE:
            known = self._read_edition()
            self._newest = known, time.monotonic()
        return known

    def _read_edition(self) -> Edition:
        newest = select(EditionRow, GuidelinesRow.text).join(
            GuidelinesRow, GuidelinesRow.id == EditionRow.guidelines
        )
        with self.store.reading() as session:
            found = session.execute(newest.order_by(EditionRow.number.desc()).limit(1)).first()
            if found is None:
                return Edition(1, self.first)
            row, text = found
            before = select(func.count()).select_from(EditionRow).where(EditionRow.number < row.number)
            return Edition(2 + (session.scalar(before) or 0), Guidelines(text), row.by, row.at)

    def editions(self) -> list[Edition]:
        """Return all editions, the first of them the guidelines before any edit."""
        query = (
            select(EditionRow, GuidelinesRow.text)
            .join(GuidelinesRow, GuidelinesRow.id == EditionRow.guidelines)
            .order_by(EditionRow.number)
        )
        with self.store.reading() as session:
            rows = session.execute(query).all()
        later = [Edition(n, Guidelines(text), row.by, row.at) for n, (row, text) in enumerate(rows, 2)]
        return [Edition(1, self.first), *later]

    def edit(self, text: str, by: str) -> Edition:
        """Publish new guidelines; raise DataError if they are empty."""
        if not text.strip():
            raise DataError("guidelines are empty; write instructions for the annotators")
        new = Guidelines(text.replace("\r\n", "\n"))
        if new.id == self.edition().guidelines.id:
            return self.edition()
        self.store.add_guidelines(new)
        with self.store.writing() as session:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            session.add(EditionRow(guidelines=new.id, by=by, at=at))
        self._newest = (None, 0.0)
        return self.edition()

    def has_guidelines(self, given: str) -> bool:
        """Check whether the store has the guidelines with this id."""
        with self.store.reading() as session:
            found = select(func.count()).select_from(GuidelinesRow).where(GuidelinesRow.id == given)
            return bool(session.scalar(found))

    def close(self) -> None:
        """Settle all answers and close the store."""
        self.queue.settle(all=True)
        self.store.close()


class Projects:
    """Open projects by name.

    `find` opens another project on request; `offered` names those that runs wait for now.
    """

    def __init__(
        self,
        find: Callable[[str], Project | None] = lambda name: None,
        offered: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._open: dict[str, Project] = {}
        self._find, self._offered = find, offered
        self._url: str | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._settler = threading.Thread(target=self._settle, daemon=True)

    def add(self, project: Project) -> None:
        """Add an open project and announce it if the page is already up."""
        self._open[project.name] = project
        if self._url is not None:
            leave_note(project.store.where, self._url, project.name)

    def announce(self, url: str) -> None:
        """Write the address of the page beside every store, for runs that wait for labels."""
        self._url = url
        for project in self.all():
            leave_note(project.store.where, url, project.name)

    def get(self, name: str) -> Project | None:
        """Return a project, opened by `find` if necessary, or None if there is none."""
        with self._lock:
            if name not in self._open:
                found = self._find(name)
                if found is not None:
                    self.add(found)
            return self._open.get(name)

    def all(self) -> list[Project]:
        """Return the open projects."""
        return list(self._open.values())

    def offered(self) -> list[Project]:
        """Return the open projects and those that runs wait for now."""
        for name in self._offered():
            self.get(name)
        return self.all()

    def start(self) -> None:
        """Start the thread that settles answers."""
        self._settler.start()

    def _settle(self) -> None:
        while not self._over.wait(SETTLE):
            for project in self.all():
                try:
                    project.queue.settle()
                except SQLAlchemyError:  # the database is unavailable; the next round tries again
                    logging.exception("answers of %s wait to become labels", project.name)

    def close(self) -> None:
        """Stop the thread, remove the announced addresses and close all projects."""
        self._over.set()
        if self._settler.is_alive():
            self._settler.join()
        for project in self.all():
            if self._url is not None:
                take_note_back(project.store.where, self._url, project.name)
            project.close()


def selection(file: Path | None) -> list[str] | None:
    """Return the comparison ids in a file of `burnish label select`, in order; None without one."""
    if file is None:
        return None
    return [str(json.loads(line)["comparison"]) for _, line in read_lines(file) if line.strip()]


def project_name(place: Place) -> str:
    """Return the name of a store's project."""
    return beside(place, ".sqlite").stem
