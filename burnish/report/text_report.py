"""Reports that are printed as text and written as a page with charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from burnish.report.embed import Chart, Charts, render
from burnish.runs.files import atomic_write

State = Literal["ok", "open", "miss"]
MARKS: Mapping[State, str] = {"ok": "✓", "open": "…", "miss": "!"}


@dataclass(frozen=True)
class Point:
    """One main result: `ok`, `open` (not known) or `miss`."""

    state: State
    head: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text under column headings; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass
class TextReport:
    """Report with a title, points, tables and charts."""

    title: str
    points: list[Point] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


def as_text(report: TextReport) -> str:
    """Return points and tables as lines, without control characters from annotators' names."""
    return "".join(c for c in _lines(report) if c == "\n" or c.isprintable())


def _lines(report: TextReport) -> str:
    lines = [f"{MARKS[p.state]} {p.head}: {p.text}" for p in report.points]
    for table in report.tables:
        cells = [list(table.columns), *(list(row) for row in table.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
        lines += ["", table.title]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        lines += [table.note] if table.note else []
    return "\n".join(lines)


def write_page(report: TextReport, path: Path | None) -> None:
    """Write the report as a page; do nothing if `path` is None."""
    if path is None:
        return
    charts = Charts()
    atomic_write(
        path, render("text_report.html", charts, report=report, marks=MARKS, drawn=charts.many(report.charts))
    )


def interval(found: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """Format a figure with its interval; a dash for None."""
    if found is None:
        return "-"
    return f"{found['value']:{form}} [{found['ci_low']:{form}}, {found['ci_high']:{form}}]"
