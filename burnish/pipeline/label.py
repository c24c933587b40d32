"""The label stage: labels from simulated annotators, an AI judge, people or an import."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from burnish.config.label import LabelConfig
from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore, beside, is_url
from burnish.errors import DataError
from burnish.pipeline.context import SNAPSHOT, Data, Journal
from burnish.pipeline.judge import label_comparisons
from burnish.pipeline.people import wait_for_people
from burnish.pipeline.rounds import asked_before, followed
from burnish.randomness import derive_seed
from burnish.records import Comparison, Label, Preference, Response, content_id
from burnish.rehearse.annotators import SimulatedAnnotators
from burnish.runs.directory import RunDirectory, project_of
from burnish.runs.files import write_json


def label(data: Data, journal: Journal, config: LabelConfig, seed: int) -> list[str]:
    """Fill the label store with labels from the configured source."""
    if config.source == "imported":
        import_labels(data, config)
    elif config.source == "judge":
        judge_labels(data, own_questions(data, journal), journal, config)
    elif config.source == "people":
        asked, path = own_questions(data, journal), project_of(journal.path)
        wait_for_people(data.store, asked, path, config.labels_per_pair, config.max_unlabelled_share)
    else:
        simulate_labels(data, own_questions(data, journal), config, seed)
    journal.run.append("metrics/label.jsonl", {"step": 1, **data.store.consensus_report()})
    write_json(journal.path / SNAPSHOT, asdict(data.store.snapshot()))
    return ["labels.sqlite", SNAPSHOT]


def own_questions(data: Data, journal: Journal) -> list[Comparison]:
    """Return the store's comparisons, except those of the run that this one follows."""
    earlier = followed(journal.run)
    known = {c.id for c in asked_before(RunDirectory.open(earlier))} if earlier is not None else set()
    return [c for c in data.store.comparisons() if c.id not in known]


def judge_labels(data: Data, comparisons: list[Comparison], journal: Journal, config: LabelConfig) -> None:
    """Label comparisons by an AI judge, in both orders; log its behaviour in metrics/judge.jsonl."""
    report = label_comparisons(
        data.store,
        comparisons,
        config.judge,
        config.guidelines,
        judge_ledger(project_of(journal.path), config.store),
        journal.view,
    )
    journal.run.append("metrics/judge.jsonl", {"step": 1, **report})
    missing = report["unasked_for_want_of_budget"] + report["to_be_asked_again"]
    nothing = not (report["labels"] or report["known_before"])
    if nothing or missing > config.max_unlabelled_share * len(comparisons):
        raise DataError(
            f"{report['labels']} of {len(comparisons)} comparisons have a label of the judge's "
            f"(abstentions: {report['abstentions']}; unasked because the budget is spent: "
            f"{report['unasked_for_want_of_budget']}). What was answered is kept: raise label.judge.budget, or wait "
            "for the endpoint, and give the same command again, or let label.max_unlabelled_share leave out the rest"
        )
    journal.view.note(f"label: {report['labels']} labels of {report['judge']}, {report['cost']:.2f} dollars")


def judge_ledger(run: Path, store: str | None) -> Path:
    """Return the path of a judge's ledger: beside a store file that runs share, else in the run."""
    return run / "judge" / "label.jsonl" if store is None or is_url(store) else beside(store, ".judge.jsonl")


def import_labels(data: Data, config: LabelConfig) -> None:
    """Add every imported pair to the store as a comparison with one label."""
    drawn_pairs, voices = [], []
    guidelines = None
    if config.guidelines is not None:
        guidelines = data.store.add_guidelines(load_guidelines(config.guidelines))
    times = Counter[str]()
    for pair in data.imported.pairs:
        drawn, preference = drawn_sides(pair)
        drawn_pairs.append((drawn, preference))
        # Rows about the same question may disagree, so each counts as another annotator.
        times[drawn.id] += 1
        voice = "import" if times[drawn.id] == 1 else f"import-{times[drawn.id]}"
        voices.append(voice)
    data.store.add_comparisons(c for c, _ in drawn_pairs)
    labels = [
        (c, Label(c.id, voice, p, "imported", pair.strength, guidelines=guidelines))
        for (c, p), voice, pair in zip(drawn_pairs, voices, data.imported.pairs, strict=True)
    ]
    add_labels(data.store, data.store.as_stored(labels))


def drawn_sides(pair: Preference) -> tuple[Comparison, float]:
    """Return the pair as a comparison in drawn order, and the preference for its first side.

    Files put the winner first. A hash of both texts draws the order, so it does not show the winner.
    """
    chosen = Response(pair.chosen, ended=pair.chosen_ended)
    rejected = Response(pair.rejected, ended=pair.rejected_ended)
    texts = sorted((pair.chosen, pair.rejected))
    first = texts[int(content_id("side", pair.prompt.id, *texts), 16) % 2]
    if first == pair.chosen:
        return Comparison(pair.prompt, chosen, rejected), pair.confidence
    return Comparison(pair.prompt, rejected, chosen), 1.0 - pair.confidence


def simulate_labels(data: Data, comparisons: list[Comparison], config: LabelConfig, seed: int) -> None:
    """Label each comparison by `labels_per_pair` simulated annotators."""
    assert data.gold is not None
    guidelines = data.store.add_guidelines(load_guidelines(config.guidelines))
    # Every run that shares a store has its own annotators, named by seed and settings.
    name = (
        ""
        if config.store is None
        else f"@{content_id('crowd', str(seed), config.simulated.model_dump_json())[:8]}"
    )
    crowd = SimulatedAnnotators(
        data.gold, config.simulated, derive_seed(seed, "annotators"), guidelines, name
    )
    labels = []
    for comparison in comparisons:
        first = int(comparison.id, 16)
        for turn in range(config.labels_per_pair):
            annotator = (first + turn) % config.simulated.annotators
            labels.append(crowd.label(comparison, annotator))
    if not labels:
        raise DataError("there is nothing to label: collect.n_pairs is 0 or every pair came out identical")
    add_labels(data.store, labels)


def add_labels(store: LabelStore, labels: list[Label]) -> None:
    """Append labels; raise DataError if an annotator has answered one of the questions differently.

    Labels are never changed, and silently keeping the old ones would make the configuration untrue.
    """
    differing = store.differing(labels)
    if differing:
        raise DataError(
            f"the label store has other answers of the same annotators to {differing} of {len(labels)} questions; "
            "labels are never changed: give another label.store, or the settings that these were made with"
        )
    store.add_labels(labels)
