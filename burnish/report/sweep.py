"""Table of a sweep: figures of its runs by seed, and their means with intervals over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from burnish.report.summary import main_figures, seconds_of
from burnish.report.text_report import Point, State, Table, TextReport, interval
from burnish.stats import mean_interval

SWEEP = "sweep.json"
Figures = Mapping[str, Any]
Run = tuple[str, int, str, Figures | None, str | None, bool]
"""Settings that vary, seed, run directory, the run's summary (None if it has none), why it failed, if it waits."""
NOTE = (
    "Means over seeds, with 95 % intervals by Student's t over seeds; one seed has no interval. Win rates are against "
    "SFT on the test prompts. Differences are paired by seed."
)


def results(name: str, runs: Sequence[Run], settings: Mapping[str, Figures]) -> dict[str, Any]:
    """Return the content of sweep.json; `settings` has the whole configuration of each combination."""
    cells: dict[str, dict[str, Any]] = {}
    for sets, seed, path, summary, failed, waits in runs:
        cell = cells.setdefault(sets, {"settings": settings[sets], "runs": []})
        figures = None if summary is None else figures_of(summary)
        champion = None if summary is None else summary["champion"]
        row = {"seed": seed, "run": path, "champion": champion, "failed": failed, "waits": waits}
        cell["runs"].append(row | {"figures": figures})
    for cell in cells.values():
        done = [run for run in cell["runs"] if run["figures"] is not None]
        cell["champions"] = dict(Counter(run["champion"] for run in done).most_common())
        names = dict.fromkeys(key for run in done for key in run["figures"])
        cell["means"] = {key: mean_over_seeds([run["figures"].get(key) for run in done]) for key in names}
    first = next(iter(cells.values()))
    for cell in cells.values():
        if cell is not first:
            cell["differences"] = differences(first["runs"], cell["runs"])
    return {"sweep": name, "cells": cells}


def differences(first: Sequence[Figures], second: Sequence[Figures]) -> dict[str, Any]:
    """Return the mean difference, second less first, of each figure over the seeds that both have."""
    figures = [{run["seed"]: run["figures"] for run in runs if run["figures"]} for runs in (first, second)]
    both = [(figures[0][seed], ours) for seed, ours in figures[1].items() if seed in figures[0]]
    found = {}
    for key in dict.fromkeys(key for a, b in both for key in b if key in a):
        found[key] = mean_over_seeds([b[key] - a[key] for a, b in both if key in a and key in b])
    return found


def figures_of(summary: Figures) -> dict[str, float]:
    """Return the figures of a run that have a mean over seeds; those that are missing are left out."""
    found = {
        name: figure if isinstance(figure, float | int) else figure["value"]
        for name, figure in main_figures(summary).items()
    }
    return found | {"minutes of stages": seconds_of(summary) / 60}


def mean_over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean, 95 % interval by Student's t (None for one value) and number of the known values."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return {"value": known[0], "ci_low": None, "ci_high": None, "n": 1}
    return asdict(mean_interval(known))


def shown(found: Figures, form: str = ".3f") -> str:
    """Format a mean with its interval, if there is one."""
    return f"{found['value']:{form}}" if found["ci_low"] is None else interval(found, form)


def as_report(table: Figures) -> TextReport:
    """Build the report that the command prints."""
    points, tables = [], []
    base = next(iter(table["cells"])) or "all seeds"
    for sets, cell in table["cells"].items():
        name = sets or "all seeds"
        done = [run for run in cell["runs"] if run["figures"] is not None]
        champions = ", ".join(f"{policy} {n}" for policy, n in cell["champions"].items()) or "none yet"
        state: State = "ok" if len(done) == len(cell["runs"]) else "open"
        points.append(Point(state, name, f"{len(done)} of {len(cell['runs'])} runs; champions: {champions}"))
        points += [
            Point("miss", f"seed {run['seed']}", run["failed"]) for run in cell["runs"] if run["failed"]
        ]
        apart = cell.get("differences")
        points += [
            Point("open", f"seed {run['seed']}", f"waits for people: {run['run']}")
            for run in cell["runs"]
            if run["waits"]
        ]
        rows = [
            [
                key,
                shown(found),
                str(found["n"]),
                *([] if apart is None else [shown(apart[key], "+.3f") if key in apart else "-"]),
            ]
            for key, found in cell["means"].items()
        ]
        columns = ("figure", "mean [95 %]", "seeds", *([] if apart is None else [f"less {base}"]))
        if rows:
            tables.append(Table(name, columns, rows))
    if tables:
        tables[-1] = Table(tables[-1].title, tables[-1].columns, tables[-1].rows, NOTE)
    return TextReport(f"Sweep {table['sweep']}", points, tables)
