"""Comparison of two runs or of two sweeps: the settings that differ, and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.config.loading import flat
from burnish.errors import RunError
from burnish.report.summary import build_summary, main_figures, seconds_of
from burnish.report.sweep import SWEEP, shown
from burnish.report.text_report import interval
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json

UNTOLD = ("name",)  # settings that do not affect a run
Row = tuple[str, Any, Any]


@dataclass(frozen=True)
class Comparison:
    """Rows (key, first run, second run) of the `settings` that differ and of all `figures`."""

    settings: list[Row]
    figures: list[Row]


def compare(first: Path, second: Path) -> Comparison:
    """Compare the settings and metrics of two runs, or of two sweeps; a missing metric is None."""
    sweeps = [(p / SWEEP).exists() for p in (first, second)]
    if all(sweeps):
        return compare_sweeps(read_json(first / SWEEP), read_json(second / SWEEP))
    if any(sweeps):
        run = second if sweeps[0] else first
        raise RunError(f"{run} is a run and the other a sweep; compare two runs, or two sweeps")
    settings = [flat(RunDirectory.open(p).config.model_dump(mode="json")) for p in (first, second)]
    a, b = (figures(build_summary(p)) for p in (first, second))
    return Comparison(
        [
            (k, settings[0][k], settings[1][k])
            for k in settings[0]
            if k not in UNTOLD and settings[0][k] != settings[1][k]
        ],
        [(k, a.get(k), b.get(k)) for k in dict.fromkeys([*a, *b])],
    )


def compare_sweeps(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare two sweeps: settings that differ, and means over seeds, for each combination that varies.

    Two sweeps of one combination each are compared whatever they vary.
    """
    cells = first["cells"], second["cells"]
    if len(cells[0]) == len(cells[1]) == 1:
        pairs = [("", *(next(iter(c.values())) for c in cells))]
    else:
        pairs = [
            (name, cells[0].get(name), cells[1].get(name)) for name in dict.fromkeys([*cells[0], *cells[1]])
        ]
    settings: list[Row] = []
    found: list[Row] = []
    for name, *both in pairs:
        prefix = f"{name}: " if name else ""
        a, b = ({} if cell is None else cell["settings"] for cell in both)
        if a and b:
            settings += [
                (prefix + k, a[k], b.get(k)) for k in a if k not in (*UNTOLD, "seed") and a[k] != b.get(k)
            ]
        means = [{} if cell is None else cell["means"] for cell in both]
        ours, theirs = (None if cell is None else _counted(cell["champions"]) for cell in both)
        found.append((f"{prefix}champions", ours, theirs))
        for key in dict.fromkeys([*means[0], *means[1]]):
            ours, theirs = (f"{shown(m[key])}, seeds {m[key]['n']}" if key in m else None for m in means)
            found.append((prefix + key, ours, theirs))
    return Comparison(settings, found)


def _counted(champions: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in champions.items()) or "-"


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main figures of a run as text, with intervals where they exist."""
    found: dict[str, Any] = {"champion": summary["champion"]}
    for name, figure in main_figures(summary).items():
        places = 1 if name.endswith("tokens") else 2
        found[name] = round(figure, places) if isinstance(figure, float | int) else _interval(figure)
    if summary["ppo"]["state"] is not None:
        found["PPO"] = summary["ppo"]["state"]
    return found | {"seconds": round(seconds_of(summary))}


def _interval(row: Mapping[str, Any]) -> str:
    return f"{interval(row)}, n = {row['n']}"
