"""`burnish label ...`: labels from judges, for a run or for a store that several runs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.errors import DataError

app = typer.Typer(no_args_is_help=True, help="Labels from AI judges.")

StoreArg = Annotated[Path, typer.Argument(help="A label store (.sqlite), or the run directory it lies in.")]


def store_file(path: Path) -> Path:
    """The store that a path means. Raises DataError where there is none."""
    file = path / "labels.sqlite" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file} does not exist; give a label store, or a run that has collected comparisons")
    return file


@app.command()
def judge(
    store: StoreArg,
    model: Annotated[str, typer.Option(help="The model: its name at the endpoint, or a local folder.")],
    endpoint: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible API; without: a local model.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the key.")] = "OPENAI_API_KEY",
    gguf_file: Annotated[str | None, typer.Option(help="A GGUF file of a local model.")] = None,
    rubric: Annotated[str | None, typer.Option(help="Template of the question.")] = None,
    guidelines: Annotated[str | None, typer.Option(help="What labelers go by.")] = None,
    budget: Annotated[float | None, typer.Option(help="Dollars at most.")] = None,
    price_in: Annotated[float, typer.Option(help="Dollars for a million tokens of questions.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="Dollars for a million tokens of answers.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Comparisons at most.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Ask an AI judge about every comparison that has no label yet, in both orders. Answers are kept beside the store
    (NAME.judge.jsonl): started again it goes on, and asks nothing twice."""
    from burnish.config.judge import JudgeConfig
    from burnish.config.loading import validated
    from burnish.data.store import LabelStore
    from burnish.monitor.live import View
    from burnish.pipeline.judged import label_comparisons

    settings = validated(
        JudgeConfig,
        {
            "model": model,
            "endpoint": endpoint,
            "api_key_env": api_key_env,
            "gguf_file": gguf_file,
            "rubric": rubric,
            "budget": budget,
            "price_in": price_in,
            "price_out": price_out,
            "concurrency": concurrency,
        },
    )
    file = store_file(store)
    with LabelStore(file) as labels:
        answered = {label.comparison_id for label in labels.labels()}
        open_ = [c for c in labels.comparisons() if c.id not in answered][:limit]
        report = label_comparisons(
            labels, open_, settings, guidelines, file.with_suffix(".judge.jsonl"), View("", 1.0)
        )
    tell(report, as_json)


def tell(report: dict[str, Any], as_json: bool) -> None:
    """A report, as JSON or a line for every figure."""
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        if isinstance(value, dict) and "value" in value:
            value = f"{value['value']:.3f} [{value['ci_low']:.3f}, {value['ci_high']:.3f}], n = {value['n']}"
        elif isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{name.replace('_', ' '):<28}{value}")
