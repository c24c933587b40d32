"""`burnish sweep`: one configuration on many seeds and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import JsonOption, print_progress
from burnish.environment import prepare_environment
from burnish.errors import Waiting

EXIT_SOME_FAILED = 1


def sweep(
    config: Annotated[
        Path | None, typer.Argument(help="YAML configuration; without one, the embedded rehearsal.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0-4 or 0,2,5.")] = "0-2",
    sets: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=V1,V2", help="Override one key; with several values, run every combination."
        ),
    ] = [],  # noqa: B006
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Directory of the runs; default runs/NAME-sweep.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once. They share the cores.")] = 1,
    redo: Annotated[
        bool, typer.Option("--redo", help="Do runs again that were made with other settings.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a configuration on several seeds, and print means with intervals over seeds.

    The same command continues a sweep that was stopped: finished runs are kept. A run that fails does
    not stop the others. The table is in sweep.json, which `burnish compare` reads. Exit code 1: a run
    failed; 12: runs wait for people.
    """
    from burnish.config.loading import load_config

    prepare_environment()
    from burnish.commands.sweep import cells_of, seeds_of, sweep as carry_out
    from burnish.report.sweep import as_report
    from burnish.report.text_report import as_text

    numbers = seeds_of(seeds)
    first = cells_of(Path(), numbers, sets)[0]
    folder = directory or Path("runs") / f"{load_config(config, first.sets).name}-sweep"
    table = carry_out(config, folder, numbers, sets, jobs=jobs, redo=redo, on_progress=print_progress)
    print(json.dumps(table) if as_json else as_text(as_report(table)))
    runs = [run for cell in table["cells"].values() for run in cell["runs"]]
    if any(run["failed"] for run in runs):
        raise typer.Exit(EXIT_SOME_FAILED)
    if any(run["waits"] for run in runs):
        raise typer.Exit(Waiting.exit_code)
