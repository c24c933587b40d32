"""AI judges in a run: as labelers of its comparisons, and as the examiner of its policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.config.judge import JudgeConfig
from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore, Snapshot
from burnish.errors import ConfigError, DataError
from burnish.labels.judge import Judge, Judged, annotator, behaviour, judge_comparisons, open_judge
from burnish.labels.ledger import Ledger
from burnish.labels.rubric import Rubric, load_rubric
from burnish.monitor.live import View
from burnish.records import Comparison, Prompt, Response

EVERY = 50  # comparisons between notes


def label_comparisons(
    store: LabelStore,
    comparisons: Sequence[Comparison],
    config: JudgeConfig,
    guidelines: str | None,
    ledger: Path,
    view: View,
    what: str = "label",
) -> dict[str, Any]:
    """Add an AI judge's labels for comparisons to their store; return a report on its behaviour.

    The ledger saves answers as they arrive, so a stopped run continues and pays for nothing twice.
    """
    judge = open_judge(config)
    rubric = load_rubric(config.rubric, load_guidelines(guidelines))
    name = annotator(judge, rubric)
    known = {label.comparison_id for label in store.labels() if label.annotator == name}
    comparisons = [c for c in comparisons if c.id not in known]
    judged = _ask(comparisons, judge, rubric, config, ledger, view, what)
    store.add_guidelines(rubric.guidelines)
    store.add_labels(judged.labels)
    report = behaviour(judged, comparisons)
    if comparisons and not judged.labels and not known:
        why = ", ".join(f"{reason}: {n}" for reason, n in report["abstentions"].items())
        raise DataError(
            f"the judge {judge.name} gave no label for {len(comparisons)} comparisons ({why or 'none was asked'}; not "
            f"asked because the budget is spent: {judged.unasked}); look at judge.model, its rubric and judge.budget"
        )
    return {"judge": name, "known_before": len(known), **report}


def _ask(
    comparisons: Sequence[Comparison],
    judge: Judge,
    rubric: Rubric,
    config: JudgeConfig,
    ledger: Path,
    view: View,
    what: str,
) -> Judged:
    def on_progress(done: int) -> None:
        if done % EVERY == 0:
            view.note(f"{what}: {done} of {len(comparisons)} comparisons judged")

    with Ledger(ledger, config.budget) as book:
        return judge_comparisons(comparisons, judge, rubric, book, config, on_progress)


def examine_by_judge(
    store: LabelStore,
    prompts: Sequence[Prompt],
    texts: Mapping[str, Sequence[str]],
    baseline: Sequence[str],
    config: JudgeConfig,
    guidelines: str | None,
    ledger: Path,
    view: View,
    at: Snapshot | None = None,
) -> tuple[str, dict[str, list[float | None]], dict[str, Any]]:
    """Let an AI judge compare every policy's responses with the baseline's, blind.

    Returns who judged, preferences by policy and prompt (None: the judge abstained), and a report on
    its behaviour. Identical texts tie without a question. The judge sees neither which policy wrote a
    text nor how many there are. Raises ConfigError for a judge that labelled the run's pairs, and
    DataError if the budget does not cover the whole examination.
    """
    judge = open_judge(config)
    rubric = load_rubric(config.rubric, load_guidelines(guidelines))
    name = annotator(judge, rubric)
    if any(label.annotator == name for label in store.labels(at=at)):
        raise ConfigError(
            f"evaluate.judge is {name}, which labelled pairs that this run learned from: it would confirm its own "
            "labels. Give another model, or another rubric"
        )
    asked = {
        (prompt.id, ours, theirs): Comparison(prompt, Response(ours), Response(theirs))
        for answers in texts.values()
        for prompt, ours, theirs in zip(prompts, answers, baseline, strict=True)
        if ours != theirs
    }
    comparisons = list(asked.values())
    judged = _ask(comparisons, judge, rubric, config, ledger, view, "evaluate")
    if judged.unasked:
        raise DataError(
            f"evaluate.judge.budget={config.budget} holds {len(judged.both)} of {len(comparisons)} comparisons, and an "
            "examination is not cut short: raise it, or lower evaluate.n_test; all answers are saved"
        )
    by_id = {label.comparison_id: label.preference for label in judged.labels}
    outcomes: dict[str, list[float | None]] = {}
    for policy, answers in texts.items():
        outcomes[policy] = [
            0.5 if ours == theirs else by_id.get(asked[prompt.id, ours, theirs].id)
            for prompt, ours, theirs in zip(prompts, answers, baseline, strict=True)
        ]
    return f"{judge.name}, an AI judge that labelled nothing here", outcomes, behaviour(judged, comparisons)
