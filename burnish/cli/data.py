"""`burnish data ...`: look at data before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import JsonOption
from burnish.environment import prepare_environment

app = typer.Typer(no_args_is_help=True, help="Look at data before a run.")


@app.callback()
def group() -> None:
    """Look at data before a run."""


@app.command()
def look(
    source: Annotated[
        str | None,
        typer.Argument(help="File or `datasets` name of preferences; default: label.preferences."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML configuration. Its limits and chat template are then applied."),
    ] = None,
    sets: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. data.decided_by=safer."),
    ] = [],  # noqa: B006
    split: Annotated[str | None, typer.Option(help="Split of the data set, for a `datasets` name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the format of preference data, counts of pairs and dropped rows, and the first ten pairs.

    With --config, pairs are shown as the model reads them.
    """
    from burnish.config.loading import load_config

    prepare_environment()
    from burnish.commands.data_look import as_text, look as looked

    loaded = load_config(config, sets)
    found = looked(source, loaded, split, with_model=config is not None)
    print(json.dumps(found, ensure_ascii=False) if as_json else as_text(found))
