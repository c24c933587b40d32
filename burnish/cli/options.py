"""Arguments and output that several groups of commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.errors import DataError

if TYPE_CHECKING:
    from burnish.data.store import Place

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunArg = Annotated[Path, typer.Argument(help="Run directory, e.g. runs/quickstart.")]
StoreArg = Annotated[
    str, typer.Argument(help="A label store: a .sqlite file, a run that has one, or a PostgreSQL URL.")
]


def store_place(given: str) -> Place:
    """Return the label store that an argument names: a file, the store of a run, or a URL.

    Raises DataError for a path without a store.
    """
    from burnish.data.store import is_url

    if is_url(given):
        return given
    path = Path(given)
    place: Place = path
    if path.is_dir():
        from burnish.runs.directory import RunDirectory, project_of

        shared = RunDirectory.open(path).config.label.store
        place = project_of(path) / "labels.sqlite" if shared is None else shared
    if not is_url(place) and not Path(place).is_file():
        raise DataError(
            f"{place} does not exist; give a label store, or a run that has collected comparisons"
        )
    return place if is_url(place) else Path(place)


def print_progress(what: str) -> None:
    """Print progress on standard error."""
    print(what, file=sys.stderr)


def print_report(report: dict[str, Any], as_json: bool) -> None:
    """Print a report as JSON, or one line for each figure."""
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        if isinstance(value, dict) and "value" in value:
            value = f"{value['value']:.3f} [{value['ci_low']:.3f}, {value['ci_high']:.3f}], n = {value['n']}"
        elif isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{name.replace('_', ' '):<28}{value}")
