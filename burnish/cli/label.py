"""`burnish label ...`: labels from judges, people and vendors, for a run or a label store."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.mturk import app as mturk_app
from burnish.cli.options import JsonOption, StoreArg, print_progress, print_report, store_place
from burnish.cli.serve import label_serve

if TYPE_CHECKING:
    from burnish.config.judge import JudgeConfig
    from burnish.report.text_report import TextReport

app = typer.Typer(no_args_is_help=True, help="Labels from AI judges, from people and from vendors.")
app.add_typer(mturk_app, name="mturk")
app.command("serve")(label_serve)


class VendorName(StrEnum):
    """Vendors that take a batch."""

    MTURK = "mturk"
    SCALE = "scale"
    SURGE = "surge"
    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"


class ConsensusName(StrEnum):
    """Ways to combine the labels of one comparison."""

    MEAN = "mean"
    DAWID_SKENE = "dawid_skene"


EndpointOption = Annotated[
    str | None, typer.Option(help="Base URL of an OpenAI-compatible API; without: a local model.")
]
KeyOption = Annotated[str, typer.Option(help="Environment variable with the key.")]
GgufOption = Annotated[str | None, typer.Option(help="A GGUF file of a local model.")]
RubricOption = Annotated[str | None, typer.Option(help="Template of the question.")]
BudgetOption = Annotated[float | None, typer.Option(help="Dollars at most.")]
PriceInOption = Annotated[float, typer.Option(help="Dollars for a million tokens of questions.")]
PriceOutOption = Annotated[float, typer.Option(help="Dollars for a million tokens of answers.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Questions at once.")]
OnlyOption = Annotated[Path | None, typer.Option(help="Only comparisons in a `burnish label select` file.")]
PageOption = Annotated[Path | None, typer.Option(help="Page to write as well, .html.")]


@app.command()
def judge(
    store: StoreArg,
    model: Annotated[str, typer.Option(help="The model: its name at the endpoint, or a local folder.")],
    endpoint: EndpointOption = None,
    api_key_env: KeyOption = "OPENAI_API_KEY",
    gguf_file: GgufOption = None,
    rubric: RubricOption = None,
    guidelines: Annotated[str | None, typer.Option(help="Guidelines for labelers.")] = None,
    budget: BudgetOption = None,
    price_in: PriceInOption = 0.0,
    price_out: PriceOutOption = 0.0,
    concurrency: ConcurrencyOption = 8,
    only: OnlyOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Comparisons at most.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask an AI judge about every unlabelled comparison, in both orders.

    Answers are kept beside the store (NAME.judge.jsonl). Started again, the command continues and asks
    nothing twice.
    """
    from burnish.data.store import LabelStore, beside
    from burnish.labels.select import unlabelled
    from burnish.monitor.live import View
    from burnish.pipeline.judge import label_comparisons

    settings = _judge_settings(locals())
    file = store_place(store)
    with LabelStore(file) as labels:
        open_ = unlabelled(labels, only)[:limit]
        report = label_comparisons(
            labels, open_, settings, guidelines, beside(file, ".judge.jsonl"), View("", 1.0)
        )
    print_report(report, as_json)


@app.command()
def audit(
    what: Annotated[
        str,
        typer.Argument(help="A label store, a run or a URL to ask the judge about; or a file of rankings."),
    ],
    model: Annotated[
        str | None, typer.Option(help="The judge: a model's name at the endpoint, or a local folder.")
    ] = None,
    endpoint: EndpointOption = None,
    api_key_env: KeyOption = "OPENAI_API_KEY",
    gguf_file: GgufOption = None,
    rubric: RubricOption = None,
    rewording: Annotated[str | None, typer.Option(help="Another template, for the probe wording.")] = None,
    guidelines: Annotated[str | None, typer.Option(help="Guidelines for labelers.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Comparisons.")] = 200,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="position, stability, wording, padding or people; repeatable. Default: all."),
    ] = None,
    own: Annotated[
        str | None,
        typer.Option(help="Source of answers that the judge's own model wrote, for self-preference."),
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help="With a file: only rankings whose id matches this pattern.")
    ] = None,
    budget: BudgetOption = None,
    price_in: PriceInOption = 0.0,
    price_out: PriceOutOption = 0.0,
    concurrency: ConcurrencyOption = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.")] = 0,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a judge goes by besides the quality of answers.

    On a store: position, padding, contradictions and wording; against people's labels also length and
    self-preference. On a file of rankings: position and second readings. Answers are kept in
    NAME.audit.jsonl; no label is added.
    """
    from burnish.commands.label_audit import PROBES, audit_judge, audit_readings
    from burnish.data.store import beside
    from burnish.report import labels as label_reports

    if Path(what).is_file() and Path(what).suffix != ".sqlite":
        report = audit_readings(Path(what), ids, seed)
    else:
        settings = _judge_settings(locals())
        place = store_place(what)
        report = audit_judge(
            place,
            settings,
            beside(place, ".audit.jsonl"),
            n=n,
            probes=probe or PROBES,
            own=own,
            guidelines=guidelines,
            rewording=rewording,
            seed=seed,
            on_progress=print_progress,
        )
    _account(label_reports.audit(report), report, page, as_json)


@app.command()
def agree(
    store: StoreArg,
    consensus: Annotated[
        ConsensusName, typer.Option(help="How labels are combined.")
    ] = ConsensusName.DAWID_SKENE,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well annotators agree, and name unreliable ones.

    Reports Krippendorff's alpha, gold questions, agreement with the others, position and length bias,
    drift, and spammers. Judges count as annotators.
    """
    from burnish.commands.label_agree import agreement
    from burnish.report import labels as label_reports

    report = agreement(store_place(store), consensus.value)
    _account(label_reports.agree(report), report, page, as_json)


@app.command("route")
def route_(
    store: StoreArg,
    agreement: Annotated[
        float, typer.Option("--agreement", min=0.501, max=0.999, help="The judge's agreement with people.")
    ] = 0.85,
    judge: Annotated[str | None, typer.Option(help="Part of the judge's name, if there are several.")] = None,
    check: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the judge's comparisons that people check."),
    ] = 0.05,
    price_judge: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars per judge label; default: cost so far.")
    ] = None,
    price_person: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars per person's label; default: cost so far.")
    ] = None,
    people_each: Annotated[int, typer.Option(min=1, help="People per comparison.")] = 1,
    out: Annotated[Path | None, typer.Option(help="File for people's comparisons, for --only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.")] = 0,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Divide comparisons between the judge and people by the judge's confidence.

    The confidence is fitted on comparisons that both have labelled (drawn at random). The requested
    agreement holds except for a risk of 5 %. Costs nothing.
    """
    from burnish.commands.label_route import route
    from burnish.report import labels as label_reports

    report = route(
        store_place(store),
        target=agreement,
        judge=judge,
        check=check,
        price_judge=price_judge,
        price_person=price_person,
        people_each=people_each,
        out=out,
        seed=seed,
    )
    _account(label_reports.route(report), report, page, as_json)


@app.command("plan")
def plan_(
    run: Annotated[Path, typer.Argument(help="A run with a few hundred labels, or a rehearsal.")],
    labels: Annotated[int, typer.Option("--labels", min=1, help="Number of labels to plan for.")] = 10000,
    accuracy: Annotated[
        float | None, typer.Option(min=0.5, max=1.0, help="Accuracy of the reward to plan labels for.")
    ] = None,
    most: Annotated[int, typer.Option(min=80, help="Pairs read at most.")] = 1000,
    price_judge: Annotated[
        float | None,
        typer.Option(min=0.0, help="Dollars per comparison by the judge; default: cost so far."),
    ] = None,
    price_person: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars per comparison by people; default: cost so far.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="A store other than the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the splits.")] = 0,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate how many labels are enough, and what they cost.

    A learning curve of a linear reward on the run's features is extrapolated, with its interval. The
    report also has costs of mixes of judge and people, and the prompts needed to show a win rate.
    """
    from burnish.environment import prepare_environment

    prepare_environment()
    from burnish.commands.label_plan import plan
    from burnish.report import labels as label_reports

    report = plan(
        run,
        store=None if store is None else store_place(store),
        labels=labels,
        most=most,
        accuracy=accuracy,
        price_judge=price_judge,
        price_person=price_person,
        seed=seed,
        on_progress=print_progress,
    )
    _account(label_reports.plan(report), report, page, as_json)


class DumpName(StrEnum):
    """Forms in which a store is written."""

    LABELS = "labels"
    PAIRS = "pairs"
    RANKINGS = "rankings"


@app.command()
def load(
    store: Annotated[
        str, typer.Argument(help="A label store: a .sqlite file (created if missing), a run, or a URL.")
    ],
    file: Annotated[Path, typer.Argument(help="JSON lines, .gz or not.")],
    guidelines: Annotated[str | None, typer.Option(help="Guidelines of these labels.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Add labels from a file to a store.

    A row has prompt, responses (two or more), ranking or preference, and annotator. It may have shown,
    seconds, cost, at, source, models and ended. Rows with `gold: true` are gold questions; put them
    before the answers to them.
    """
    from burnish.data.exchange import load_labels
    from burnish.data.guidelines import load_guidelines
    from burnish.data.lines import must_exist
    from burnish.data.store import LabelStore, is_url

    must_exist(file)
    new = not is_url(store) and not Path(store).exists()
    with LabelStore(Path(store) if new else store_place(store)) as labels:
        guidelines_id = None if guidelines is None else labels.add_guidelines(load_guidelines(guidelines))
        print_report(load_labels(labels, file, guidelines_id).report(), as_json)


@app.command()
def dump(
    store: StoreArg,
    file: Annotated[Path, typer.Argument(help="File to write, .jsonl or .jsonl.gz.")],
    as_: Annotated[DumpName, typer.Option("--as", help="Only labels can be reloaded.")] = DumpName.LABELS,
    consensus: Annotated[ConsensusName, typer.Option(help="For pairs and rankings.")] = ConsensusName.MEAN,
    as_json: JsonOption = False,
) -> None:
    """Write a store's labels, or their consensus as pairs or rankings."""
    from burnish.commands.label_dump import dump_store
    from burnish.data.store import LabelStore

    with LabelStore(store_place(store)) as labels:
        rows = dump_store(labels, file, as_.value, consensus.value)
    print_report({"path": str(file), "rows": rows}, as_json)


@app.command()
def export(
    store: StoreArg,
    folder: Annotated[Path, typer.Argument(help="New folder for the batch.")],
    vendor: Annotated[VendorName, typer.Option(help="Vendor that receives the batch.")],
    n: Annotated[int | None, typer.Option("--n", min=1, help="Comparisons at most.")] = None,
    only: OnlyOption = None,
    redundancy: Annotated[int, typer.Option(min=1, help="Workers who answer each item.")] = 3,
    gold: Annotated[
        Path | None, typer.Option(help="Preference pairs with a certain answer, mixed in as gold questions.")
    ] = None,
    gold_share: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of gold in the batch.")] = 0.1,
    guidelines: Annotated[str | None, typer.Option(help="Guidelines for labelers.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write unlabelled comparisons as a batch for a vendor.

    Sides are shuffled and gold questions mixed in. Keep key.jsonl: nothing can be imported without it,
    and no worker may see it.
    """
    from burnish.commands.label_vendors import export_batch

    report = export_batch(
        store_place(store),
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
    print_report(report, as_json)


@app.command("import")
def import_(
    store: StoreArg,
    folder: Annotated[Path, typer.Argument(help="The folder that `burnish label export` wrote.")],
    results: Annotated[Path, typer.Argument(help="The vendor's results.")],
    vendor: Annotated[VendorName, typer.Option(help="Vendor that the results come from.")],
    least_gold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of gold questions that a worker must get right.")
    ] = 0.7,
    pay: Annotated[float, typer.Option(min=0.0, help="Dollars per row, if the results do not say.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Import a vendor's results as labels.

    Unusable rows are kept beside the results, with the reason. Importing the same file again changes
    nothing.
    """
    from burnish.commands.label_vendors import import_batch

    print_report(import_batch(store_place(store), folder, results, vendor.value, least_gold, pay), as_json)


class HowName(StrEnum):
    """Ways to choose comparisons for labelling."""

    VARIANCE = "variance"
    BALD = "bald"
    ENTROPY = "entropy"
    D_OPTIMAL = "d_optimal"
    RANDOM = "random"
    RESERVED = "reserved"


@app.command()
def select(
    run: Annotated[Path, typer.Argument(help="Run whose reward models score the comparisons.")],
    out: Annotated[Path, typer.Argument(help="File to write: a line for every comparison.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Comparisons.")] = 200,
    how: Annotated[
        HowName, typer.Option(help="reserved: the share kept for measuring, which no other way chooses.")
    ] = HowName.BALD,
    random_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share drawn at random.")] = 0.3,
    reserve: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of all comparisons kept for measuring.")
    ] = 0.1,
    store: Annotated[str | None, typer.Option(help="A store other than the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draws.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Choose unlabelled comparisons on which the reward models disagree, and a random share.

    Give the file to `label export`, `label terminal` or `label judge` as --only.
    """
    from burnish.commands.reward_score import select_comparisons

    report = select_comparisons(
        run,
        store_place(store or str(run)),
        out,
        n=n,
        how=how.value,
        random_share=random_share,
        reserve=reserve,
        seed=seed,
    )
    print_report(report, as_json)


@app.command()
def terminal(
    store: StoreArg,
    name: Annotated[str, typer.Option(help="Your name; questions that others answered are asked again.")],
    only: OnlyOption = None,
    guidelines: Annotated[str | None, typer.Option(help="Guidelines for labelers.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Comparisons at most.")] = None,
    most: Annotated[
        int,
        typer.Option(min=2, max=6, help="Answers ranked at a time, if all answers to a prompt are compared."),
    ] = 2,
) -> None:
    """Compare answers yourself, blind and with the sides shuffled.

    Every answer is saved at once except the last, which you can take back. Started again, the command
    continues with the questions you have not answered.
    """
    from burnish.pipeline.people import ask_in_terminal

    ask_in_terminal(store_place(store), name, only, guidelines, limit, most)


def _judge_settings(given: dict[str, Any]) -> JudgeConfig:
    """Return the judge configuration that a command's options give."""
    from burnish.config.judge import JudgeConfig
    from burnish.config.loading import validated

    options = ("model", "endpoint", "api_key_env", "gguf_file", "rubric", "budget", "price_in", "price_out")
    return validated(JudgeConfig, {name: given[name] for name in (*options, "concurrency")})


def _account(page_report: TextReport, report: dict[str, Any], page: Path | None, as_json: bool) -> None:
    """Print a report as text or JSON, and write it to `page` if one is given."""
    from burnish.report.text_report import as_text, write_page

    write_page(page_report, page)
    print(json.dumps(report) if as_json else as_text(page_report))
