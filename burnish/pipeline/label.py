"""The label stage: the comparisons are answered, by simulated annotators or by labels that were imported."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from burnish.checkpoints import write_json
from burnish.config.label import LabelConfig
from burnish.data.guidelines import load_guidelines
from burnish.errors import DataError
from burnish.pipeline.data import SNAPSHOT, Data
from burnish.pipeline.journal import Journal
from burnish.pipeline.judged import label_comparisons
from burnish.pipeline.people import wait_for_people
from burnish.randomness import derive_seed
from burnish.records import Comparison, Label, Preference, Response, content_id
from burnish.rehearse.annotators import SimulatedAnnotators


def label(data: Data, journal: Journal, config: LabelConfig, seed: int) -> list[str]:
    """Fill the label store with answers."""
    if config.source == "imported":
        import_labels(data, config)
    elif config.source == "judge":
        judge_labels(data, journal, config)
    elif config.source == "people":
        wait_for_people(data.store, journal.path, config.labels_per_pair, config.missing_share)
    else:
        simulate_labels(data, config, seed)
    journal.run.append("metrics/label.jsonl", {"step": 1, **data.store.consensus_report()})
    write_json(journal.path / SNAPSHOT, asdict(data.store.snapshot()))
    return ["labels.sqlite", SNAPSHOT]


def judge_labels(data: Data, journal: Journal, config: LabelConfig) -> None:
    """An AI judge answers every comparison, in both orders; how it behaved goes to metrics/judge.jsonl."""
    comparisons = list(data.store.comparisons())
    report = label_comparisons(
        data.store,
        comparisons,
        config.judge,
        config.guidelines,
        journal.path / "judge" / "label.jsonl",
        journal.view,
    )
    journal.run.append("metrics/judge.jsonl", {"step": 1, **report})
    if not report["labels"]:
        raise DataError(
            f"the judge gave no label for {len(comparisons)} comparisons (abstentions: {report['abstentions']}; "
            f"unasked for want of budget: {report['unasked_for_want_of_budget']}); look at label.judge"
        )
    journal.view.note(f"label: {report['labels']} labels of {report['judge']}, {report['cost']:.2f} dollars")


def import_labels(data: Data, config: LabelConfig) -> None:
    """Every imported pair as a comparison with one label."""
    comparisons, labels = [], []
    told = None
    if config.guidelines is not None:
        told = data.store.add_guidelines(load_guidelines(config.guidelines))
    times = Counter[str]()
    for pair in data.imported.pairs:
        drawn, preference = drawn_sides(pair)
        comparisons.append(drawn)
        # Two rows that say opposite things of one question are two voices, not one.
        times[drawn.id] += 1
        voice = "import" if times[drawn.id] == 1 else f"import-{times[drawn.id]}"
        labels.append(Label(drawn.id, voice, preference, "imported", guidelines=told))
    data.store.add_comparisons(comparisons)
    data.store.add_labels(labels)


def drawn_sides(pair: Preference) -> tuple[Comparison, float]:
    """The pair as a question, and how far it prefers the first side. Files put the winner first: which response
    stands first is drawn by a hash of both, so that "first wins" means nothing, whichever of them won."""
    chosen = Response(pair.chosen, ended=pair.chosen_ended)
    rejected = Response(pair.rejected, ended=pair.rejected_ended)
    texts = sorted((pair.chosen, pair.rejected))
    first = texts[int(content_id("side", pair.prompt.id, *texts), 16) % 2]
    if first == pair.chosen:
        return Comparison(pair.prompt, chosen, rejected), pair.confidence
    return Comparison(pair.prompt, rejected, chosen), 1.0 - pair.confidence


def simulate_labels(data: Data, config: LabelConfig, seed: int) -> None:
    """A rehearsal's annotators answer, `labels_per_pair` of them each comparison."""
    assert data.gold is not None
    told = data.store.add_guidelines(load_guidelines(config.guidelines))
    crowd = SimulatedAnnotators(data.gold, config.simulated, derive_seed(seed, "annotators"), told)
    labels = []
    for comparison in data.store.comparisons():
        first = int(comparison.id, 16)
        for turn in range(config.labels_per_pair):
            annotator = (first + turn) % config.simulated.annotators
            labels.append(crowd.label(comparison, annotator))
    if not labels:
        raise DataError("there is nothing to label: collect.n_pairs is 0 or every pair came out identical")
    data.store.add_labels(labels)
