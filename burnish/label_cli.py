"""`burnish label ...`: labels from judges, people and vendors, for a run or for a store of its own."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.errors import DataError

if TYPE_CHECKING:
    from burnish.config.judge import JudgeConfig

app = typer.Typer(no_args_is_help=True, help="Labels from AI judges, from people and from vendors.")


class VendorName(StrEnum):
    """Who is sent a batch."""

    MTURK = "mturk"
    SCALE = "scale"
    SURGE = "surge"
    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"


StoreArg = Annotated[Path, typer.Argument(help="A label store (.sqlite), or the run directory it lies in.")]

PageOption = Annotated[Path | None, typer.Option(help="Page to write as well, .html.")]


def store_file(path: Path) -> Path:
    """The store that a path means. Raises DataError where there is none, or it is no file."""
    file = path
    if path.is_dir():
        from burnish.runs import RunDirectory, project_of

        shared = RunDirectory.open(path).config.label.store
        if shared is not None and "://" in shared:
            raise DataError(
                f"{path} has its labels at {shared}: these commands take a .sqlite file; import and export from Python "
                "(burnish.data.store.LabelStore)"
            )
        file = project_of(path) / "labels.sqlite" if shared is None else Path(shared)
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
    only: Annotated[
        Path | None, typer.Option(help="Only those in this file of `burnish label select`.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Comparisons at most.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Ask an AI judge about every comparison that has no label yet, in both orders. Answers are kept beside the store
    (NAME.judge.jsonl): started again it goes on, and asks nothing twice."""
    from burnish.data.store import LabelStore
    from burnish.monitor.live import View
    from burnish.pipeline.judged import label_comparisons
    from burnish.pipeline.vendors import unlabelled

    settings = _judge_settings(locals())
    file = store_file(store)
    with LabelStore(file) as labels:
        open_ = unlabelled(labels, only)[:limit]
        report = label_comparisons(
            labels, open_, settings, guidelines, file.with_suffix(".judge.jsonl"), View("", 1.0)
        )
    tell(report, as_json)


@app.command()
def audit(
    what: Annotated[
        Path,
        typer.Argument(help="A label store (.sqlite) or run: the judge is asked. Or a file of rankings."),
    ],
    model: Annotated[
        str | None, typer.Option(help="The judge: its name at the endpoint, or a folder.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible API; without: a local model.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the key.")] = "OPENAI_API_KEY",
    gguf_file: Annotated[str | None, typer.Option(help="A GGUF file of a local model.")] = None,
    rubric: Annotated[str | None, typer.Option(help="Template of the question.")] = None,
    rewording: Annotated[str | None, typer.Option(help="Another template, for the probe wording.")] = None,
    guidelines: Annotated[str | None, typer.Option(help="What labelers go by.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Comparisons.")] = 200,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="position, stability, wording, padding or people; may be given again. All without."
        ),
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(help="Source of answers that the judge's own model wrote, for self-preference."),
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help="Of a file only rankings whose id this pattern matches.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Dollars at most.")] = None,
    price_in: Annotated[float, typer.Option(help="Dollars for a million tokens of questions.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="Dollars for a million tokens of answers.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    page: PageOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """What a judge goes by besides the worth of answers. On a store: position, padding, contradictions, wording, and
    length and its own hand against people's labels. On rankings: place, second readings. Answers are kept in
    NAME.audit.jsonl; no label is added."""
    from burnish.pipeline.auditing import PROBES, audit_judge, audit_readings
    from burnish.report import labels as told_of
    from burnish.report.told import as_text, write_page

    if what.is_file() and what.suffix != ".sqlite":
        report = audit_readings(what, ids, seed)
    else:
        settings = _judge_settings(locals())
        file = store_file(what)
        report = audit_judge(
            file,
            settings,
            file.with_suffix(".audit.jsonl"),
            n=n,
            probes=probe or PROBES,
            own=own,
            guidelines=guidelines,
            rewording=rewording,
            seed=seed,
            told=_told,
        )
    account = told_of.audit(report)
    write_page(account, page)
    print(json.dumps(report) if as_json else as_text(account))


@app.command()
def export(
    store: StoreArg,
    folder: Annotated[Path, typer.Argument(help="New folder for the batch.")],
    vendor: Annotated[VendorName, typer.Option(help="Whose shape it is to have.")],
    n: Annotated[int | None, typer.Option("--n", min=1, help="Comparisons at most.")] = None,
    only: Annotated[
        Path | None, typer.Option(help="Only those in this file of `burnish label select`.")
    ] = None,
    redundancy: Annotated[int, typer.Option(min=1, help="Workers who answer each item.")] = 3,
    gold: Annotated[
        Path | None, typer.Option(help="Preference pairs whose answer is beyond doubt, to be mixed in.")
    ] = None,
    gold_share: Annotated[float, typer.Option(min=0.0, max=0.5, help="Their share of the batch.")] = 0.1,
    guidelines: Annotated[str | None, typer.Option(help="What labelers go by.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write comparisons that have no label yet as a batch for a vendor: sides shuffled, gold questions mixed in. The
    file key.jsonl is ours: without it nothing can be imported, and no worker may see it."""
    from burnish.pipeline.vendors import export_batch

    report = export_batch(
        store_file(store),
        folder,
        vendor.value,
        n=n,
        only=only,
        redundancy=redundancy,
        gold=gold,
        gold_share=gold_share,
        guidelines=guidelines,
        seed=seed,
    )
    tell(report, as_json)


@app.command("import")
def import_(
    store: StoreArg,
    folder: Annotated[Path, typer.Argument(help="The folder that `burnish label export` wrote.")],
    results: Annotated[Path, typer.Argument(help="The vendor's results.")],
    vendor: Annotated[VendorName, typer.Option(help="Whose shape they have.")],
    least_gold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of gold questions that a worker must get right.")
    ] = 0.7,
    pay: Annotated[float, typer.Option(min=0.0, help="Dollars a row, where results do not say.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Take a vendor's results back as labels. What cannot be used is kept beside the results, with its reason; the same
    file again changes nothing."""
    from burnish.pipeline.vendors import import_batch

    tell(import_batch(store_file(store), folder, results, vendor.value, least_gold, pay), as_json)


class HowName(StrEnum):
    """What makes a comparison worth a label."""

    VARIANCE = "variance"
    BALD = "bald"
    ENTROPY = "entropy"
    RANDOM = "random"
    RESERVED = "reserved"


@app.command()
def select(
    run: Annotated[Path, typer.Argument(help="Run whose reward models are asked.")],
    out: Annotated[Path, typer.Argument(help="File to write: a line for every comparison.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Comparisons.")] = 200,
    how: Annotated[
        HowName, typer.Option(help="reserved: the part that measures and is never chosen otherwise.")
    ] = HowName.BALD,
    random_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of them drawn at random.")] = 0.3,
    reserve: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of all comparisons that is kept for measuring.")
    ] = 0.1,
    store: Annotated[Path | None, typer.Option(help="A store other than the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Choose comparisons without a label that are worth one: where the reward models disagree, beside a random part.
    Give the file to `label export`, `label terminal` or `label judge` as --only."""
    from burnish.pipeline.scoring import select_comparisons

    report = select_comparisons(
        run,
        store_file(store or run),
        out,
        n=n,
        how=how.value,
        random_share=random_share,
        reserve=reserve,
        seed=seed,
    )
    tell(report, as_json)


@app.command()
def terminal(
    store: StoreArg,
    name: Annotated[str, typer.Option(help="Who is answering; answers of others are asked again.")],
    only: Annotated[
        Path | None, typer.Option(help="Only those in this file of `burnish label select`.")
    ] = None,
    guidelines: Annotated[str | None, typer.Option(help="What labelers go by.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Comparisons at most.")] = None,
) -> None:
    """Compare answers yourself: blind, sides shuffled. Every answer is kept at once but the last, which can be taken
    back; started again it goes on with what you have not answered."""
    from burnish.pipeline.people import ask_in_terminal

    ask_in_terminal(store_file(store), name, only, guidelines, limit)


def _judge_settings(given: dict[str, Any]) -> JudgeConfig:
    """The judge that a command's options name."""
    from burnish.config.judge import JudgeConfig
    from burnish.config.loading import validated

    options = ("model", "endpoint", "api_key_env", "gguf_file", "rubric", "budget", "price_in", "price_out")
    return validated(JudgeConfig, {name: given[name] for name in (*options, "concurrency")})


def _told(what: str) -> None:
    print(what, file=sys.stderr)


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
