"""Dashboard of a project, with import and export of its data.

It shows labels by day and annotator, agreement and bias, cost against budget, and what is waiting.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import FileResponse, RedirectResponse, Response
from sqlalchemy import func, select
from starlette.background import BackgroundTask

from burnish.data.exchange import load_questions
from burnish.data.store import LabelStore
from burnish.data.tables import CheckRow, LabelRow
from burnish.errors import DataError
from burnish.labels.tasks import flagged, open_answers, remarks
from burnish.report import labels as label_reports
from burnish.report.charts import COLOURS, Figure, figure
from burnish.report.embed import Charts
from burnish.runs.files import atomic_lines
from burnish.web.accounts import Account
from burnish.web.app_state import Admin, Watcher, address, app_state_of
from burnish.web.charts import charted
from burnish.web.label import Name, project_of
from burnish.web.projects import Project

router = APIRouter()
Shape = Literal["labels", "pairs", "rankings", "remarks"]
DAYS = 60  # shown in the chart of labels
PEOPLE = 20  # with their own colour in a chart; annotators with fewer labels share one


def by_day(store: LabelStore) -> list[dict[str, Any]]:
    """Return the labels, cost and seconds of every annotator and day (UTC).

    Cost and seconds include answers to gold questions.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for table in (LabelRow, CheckRow):
        day = func.substr(table.created, 1, 10)
        sums = (func.count(), func.sum(table.cost), func.sum(table.seconds))
        with store.reading() as session:
            rows = session.execute(select(day, table.annotator, *sums).group_by(day, table.annotator)).all()
        for when, who, n, cost, seconds in rows:
            row = found.setdefault(
                (when, who), {"day": when, "annotator": who, "labels": 0, "cost": 0.0, "seconds": 0.0}
            )
            row["labels"] += n if table is LabelRow else 0
            row["cost"] += cost or 0.0
            row["seconds"] += seconds or 0.0
    return [found[key] for key in sorted(found)]


def _per_day(rows: list[dict[str, Any]], names: Mapping[str, str]) -> Figure:
    days = sorted({row["day"] for row in rows})[-DAYS:]
    given: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        given[names[row["annotator"]]][row["day"]] += row["labels"]
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": days,
            "y": [per.get(day, 0) for day in days],
            "marker": {"color": COLOURS[i % len(COLOURS)]},
        }
        for i, (name, per) in enumerate(sorted(given.items(), key=lambda item: -sum(item[1].values())))
    ]
    return figure(
        traces,
        "labels",
        "day (UTC)",
        barmode="stack",
        xaxis={"type": "category", "title": {"text": "day (UTC)"}},
    )


def _spent(rows: list[dict[str, Any]], budget: float | None) -> Figure:
    days = sorted({row["day"] for row in rows})
    total, so_far = [], 0.0
    for day in days:
        so_far += sum(row["cost"] for row in rows if row["day"] == day)
        total.append(so_far)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": days,
            "y": total,
            "name": "spent",
            "line": {"color": COLOURS[0]},
        }
    ]
    if budget is not None:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": days,
                "y": [budget] * len(days),
                "name": "budget",
                "line": {"color": COLOURS[1], "dash": "dash"},
            }
        )
    return figure(traces, "dollars", "day (UTC)", xaxis={"type": "category", "title": {"text": "day (UTC)"}})


def _figures(project: Project) -> tuple[dict[str, Any], Charts]:
    store, rules = project.store, project.queue.rules
    rows = by_day(store)
    by_person: dict[str, dict[str, Any]] = {}
    for row in rows:
        mine = by_person.setdefault(
            row["annotator"],
            {"annotator": row["annotator"], "labels": 0, "cost": 0.0, "seconds": 0.0, "days": 0},
        )
        mine["days"] += 1
        for name in ("labels", "cost", "seconds"):
            mine[name] += row[name]
    people = sorted(by_person.values(), key=lambda p: -p["labels"])
    names = {p["annotator"]: p["annotator"] if i < PEOPLE else "others" for i, p in enumerate(people)}
    charts = Charts("now")
    drawn = []
    if rows:
        drawn.append(charts.add("Labels per day", "By annotator.", _per_day(rows, names)))
    if any(row["cost"] for row in rows) or rules.budget is not None:
        drawn.append(
            charts.add("Cost", "Total cost of labels and gold questions.", _spent(rows, rules.budget))
        )
    done, all_ = project.queue.progress()
    by_task = {task: (task, who, why, i) for task, who, why, i in flagged(store)}
    waiting = list(by_task.values())  # a ranking has several comparisons
    asked = {c.id: c for c in store.find([i for *_, i in waiting])}
    values = {
        "people": people,
        "labels": sum(p["labels"] for p in people),
        "cost": sum(p["cost"] for p in people),
        "hours": sum(p["seconds"] for p in people) / 3600,
        "done": done,
        "all": all_,
        "fresh": open_answers(store),
        "flags": [
            {
                "task": task,
                "annotator": who,
                "reason": why,
                "prompt": asked[i].prompt.text if i in asked else "a gold question",
            }
            for task, who, why, i in waiting
        ],
        "drawn": drawn,
    }
    return values, charts


class _Agreement:
    """Agreement reports of projects, recomputed when a project has new labels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, dict[str, Any] | None]] = {}

    def of(self, project: Project) -> dict[str, Any] | None:
        """Return the report of a project, or None if it has no labels."""
        from burnish.commands.label_agree import agreement_of

        with self._lock:
            newest = project.store.snapshot().labels
            if project.name not in self._known or self._known[project.name][0] != newest:
                try:
                    report = agreement_of(project.store)
                except DataError:  # there are no labels yet; the page says so
                    report = None
                self._known[project.name] = (newest, report)
            return self._known[project.name][1]


_agreement = _Agreement()


def _dashboard(request: Request, account: Account, project: Project, **values: Any) -> Response:
    found, charts = _figures(project)
    return charted(request, "dashboard.html", account, charts, project=project, **found, **values)


@router.get("/dashboard/{name}")
def dashboard(request: Request, name: Name, account: Watcher) -> Response:
    """Return the dashboard of a project."""
    return _dashboard(request, account, project_of(app_state_of(request), name))


@router.get("/dashboard/{name}/now")
def now(request: Request, name: Name, account: Watcher) -> Response:
    """Return the figures alone, which the page reloads regularly."""
    project = project_of(app_state_of(request), name)
    found, charts = _figures(project)
    return charted(request, "dashboard_now.html", account, charts, project=project, **found)


@router.get("/dashboard/{name}/agreement")
def agreement(request: Request, name: Name, account: Watcher) -> Response:
    """Return agreement and bias, which take a moment if there are many labels."""
    report = _agreement.of(project_of(app_state_of(request), name))
    charts = Charts("agree")
    page_report = None if report is None else label_reports.agree(report)
    drawn = [] if page_report is None else charts.many(page_report.charts)
    return charted(request, "agreement.html", account, charts, report=page_report, drawn=drawn)


@router.get("/dashboard/{name}/export")
def export(
    request: Request,
    name: Name,
    account: Watcher,
    shape: Annotated[Shape, Query(alias="as")] = "labels",
) -> Response:
    """Return a file of all labels, or of the remarks, as JSON lines."""
    from burnish.commands.label_dump import dump_store

    desk = app_state_of(request)
    project = project_of(desk, name)
    room = tempfile.TemporaryDirectory(prefix="burnish-")
    file = Path(room.name) / "export.jsonl"
    if shape == "remarks":
        rows = atomic_lines(file, (json.dumps(row, ensure_ascii=False) for row in remarks(project.store)))
    else:
        rows = dump_store(project.store, file, shape)
    desk.accounts.note(account.name, address(request), "exported", f"{project.name}: {rows} {shape}")
    return FileResponse(
        file,
        media_type="application/jsonl",
        filename=f"{project.name}-{shape}.jsonl",
        background=BackgroundTask(room.cleanup),
    )


@router.post("/dashboard/{name}/import")
def import_(request: Request, name: Name, account: Admin, file: UploadFile) -> Response:
    """Import questions, pairs, gold questions or labels from a JSON lines or Parquet file."""
    desk = app_state_of(request)
    project = project_of(desk, name)
    given = Path(file.filename or "").name
    ending = next((e for e in (".jsonl", ".jsonl.gz", ".parquet") if given.endswith(e)), None)
    if ending is None:
        raise HTTPException(422, "give a .jsonl, .jsonl.gz or .parquet file")
    with tempfile.TemporaryDirectory(prefix="burnish-") as room:
        kept = Path(room) / f"import{ending}"
        with kept.open("wb") as copy:
            while part := file.file.read(1 << 20):
                copy.write(part)
        try:
            report = load_questions(project.store, kept)
        except DataError as error:
            raise DataError(str(error).replace(str(kept), given[:100])) from None
    desk.accounts.note(account.name, address(request), "imported", f"{project.name}: {given}, {report}")
    project.queue.look_again()
    summary = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in report.items() if value)
    return _dashboard(request, account, project, note=f"{given}: {summary}.")


@router.post("/dashboard/{name}/put-back")
def put_back(
    request: Request, name: Name, account: Admin, task: Annotated[str, Form(max_length=64)]
) -> Response:
    """Ask other annotators a flagged question again."""
    desk = app_state_of(request)
    project = project_of(desk, name)
    if not project.queue.put_back(task):
        raise HTTPException(404, "this question is not flagged any more")
    desk.accounts.note(account.name, address(request), "put back", task)
    return RedirectResponse(f"/dashboard/{quote(project.name)}", 303)
