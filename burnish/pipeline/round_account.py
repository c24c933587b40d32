"""What each round of a run bought."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from burnish import spmd
from burnish.checkpoints import read_json
from burnish.data.store import Snapshot
from burnish.evaluate.champion import ROUND, TRAINED
from burnish.models.memory import give_back
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.data import SNAPSHOT, Data
from burnish.pipeline.models import Models
from burnish.pipeline.rounds import policies, round_path
from burnish.records import Preference
from burnish.reward.saved import load_ensemble, prepare
from burnish.runs import RunDirectory
from burnish.stats import clustered_proportion


def account_of_rounds(
    models: Models, data: Data, run: RunDirectory, confidence: float
) -> list[dict[str, Any]]:
    """Of every round its new labels and their cost, the policy it ended with, and the accuracy of its ensemble on
    held-out pairs of every round. Those are drawn at random, never chosen by what a model is unsure of."""
    rounds = range(run.config.rounds)
    pairs = data.parts["validation"]
    paths = [*(round_path(run.path, number + 1) for number in rounds[:-1]), run.path]
    snapshots = [Snapshot(**read_json(path / SNAPSHOT)) for path in paths]
    origin: dict[str, int] = {}
    known_at, counts, labels = spmd.from_lead(
        lambda: (
            [[c.id for c in data.store.comparisons(at=at)] for at in snapshots],
            [0, *(sum(1 for _ in data.store.labels(at=at)) for at in snapshots)],
            list(data.store.labels(at=snapshots[-1])),
        )
    )
    for number, ids in enumerate(known_at):
        for comparison in ids:
            origin.setdefault(comparison, number)
    known = policies(run)
    found = []
    for number in rounds:
        last = number == rounds[-1]
        right = judged_right(replace(models), paths[number] / "reward", pairs)
        give_back()  # one base at a time
        asked = labels[counts[number] : counts[number + 1]]

        def accuracy(of_round: int | None, right: list[float] = right) -> dict[str, Any] | None:
            rows = [i for i, p in enumerate(pairs) if of_round is None or origin[p.comparison_id] == of_round]
            groups = [pairs[i].prompt.group for i in rows]
            hits = [right[i] for i in rows]
            return asdict(clustered_proportion(hits, groups, confidence=confidence)) if rows else None

        names = TRAINED if last else (f"{ROUND}{number + 1}",)
        found.append(
            {
                "round": number + 1,
                "labels": len(asked),
                "cost": sum(label.cost for label in asked),
                "policy": next((name for name in names if name in known), None),
                "accuracy": accuracy(None),
                "accuracy_on_pairs_of_round": {str(r + 1): accuracy(r) for r in rounds},
            }
        )
    return found


def judged_right(models: Models, rewards: Path, pairs: list[Preference]) -> list[float]:
    """Whether a saved ensemble, as PPO was given it, prefers what was chosen."""
    prepare(models.base, rewards)
    ensemble = load_ensemble(models.base, rewards)
    encoded = EncodedPairs(ensemble.base, models.codec, pairs)
    scores = ensemble.corrected(ensemble.mean_normalised(ensemble.raw(encoded.sequences)), encoded.sequences)
    chosen, rejected = encoded.sides(scores)
    return [float(a > b) for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)]
