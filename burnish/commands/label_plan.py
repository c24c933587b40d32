"""`burnish label plan`: how many labels are enough, and their cost.

The estimate starts from a run with a few hundred labels, or from a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.data.store import LabelStore, Place
from burnish.errors import DataError, RunError
from burnish.labels.agreement import pairwise_agreement
from burnish.labels.consensus import opinions, votes_of
from burnish.labels.plan import Curve, examinations, fit_curve, mixes, worth_of_judge
from burnish.models.artefacts import saved_reading
from burnish.models.heads import Reading
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import RunContext
from burnish.pipeline.run import set_determinism
from burnish.randomness import derive_seed
from burnish.records import Label, Preference
from burnish.reward.probe import PENALTIES, choose, fit, pool, probe, probed_depths
from burnish.runs.directory import RunDirectory

SPLITS = 24
HELD_OUT = 0.25  # share of the prompts
FEWEST = 80  # pairs
SIZES = 8  # numbers of labels on a curve
SMALLEST = 24


def plan(
    path: Path,
    *,
    store: Place | None,
    labels: int,
    most: int,
    accuracy: float | None,
    price_judge: float | None,
    price_person: float | None,
    seed: int,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Estimate accuracy by number of labels, the cost of label sources, and evaluation sizes.

    The learning curve is that of linear reward models on the run's features, fitted to at most
    `most` pairs and extrapolated. The cost is that of `labels` labels, for several divisions between
    judge and people. Raises DataError with fewer than 80 pairs.
    """
    run = RunDirectory.open(path)
    if not (path / "manifest.json").exists():
        raise RunError(f"{path} has not started; run `burnish run --until label`")
    set_determinism(run.config)
    place = RunContext.alone(run)
    try:
        if store is None:
            pairs, given = place.data.preferences(), list(place.data.store.labels(at=place.data.snapshot))
        else:
            with LabelStore(store) as other:
                pairs, given = other.preferences(), list(other.labels())
        pairs = [p for p in pairs if place.data.misfit(p) is None]
    finally:
        place.data.close()
    if len(pairs) < FEWEST:
        raise DataError(
            f"{path} has {len(pairs)} labelled pairs that can be used; a plan needs at least {FEWEST}"
        )
    rng = np.random.default_rng(derive_seed(seed, "plan"))
    kept = [pairs[i] for i in sorted(rng.permutation(len(pairs))[:most])]
    on_progress(f"plan: reading {len(kept)} pairs")
    differences, groups, reading = _differences(place, path, kept, seed)
    sizes, accuracies, shared = learned(differences, groups, seed)
    curve = fit_curve(sizes, accuracies, shared)
    sources = _sources(given, price_judge, price_person)
    return {
        "run": run.config.name,
        "pairs": len(kept),
        "prompts": len(set(groups)),
        "reading": asdict(reading),
        "seen": [
            {"labels": n, "accuracy": float(a), "sd": float(s)}
            for n, a, s in zip(sizes, accuracies.mean(axis=0), accuracies.std(axis=0, ddof=1), strict=True)
        ],
        "curve": dict(zip("abc", curve.mean, strict=True)),
        "expected": [{"labels": n, **asdict(curve.at(n))} for n in _ahead(sizes[-1], labels)],
        "target": None if accuracy is None else {"accuracy": accuracy, **curve.labels_for(accuracy)},
        "labels": labels,
        "sources": sources,
        "mixes": _mixes(labels, sources, curve),
        "examinations": examinations(),
    }


def _differences(
    place: RunContext, path: Path, pairs: Sequence[Preference], seed: int
) -> tuple[npt.NDArray[np.float64], list[str], Reading]:
    """Return (N, D) features of chosen minus rejected answers, the pairs' prompts and the reading.

    Features are standardised. They are read where the run's reward models read, or where probes do
    best.
    """
    base = place.models.base
    encoded = EncodedPairs(base, place.models.codec, pairs)
    reading = saved_reading(path / "reward" / "member-0")
    if reading is None:
        depths = probed_depths(base, place.config.reward.layers or base.layers)
        reading = choose(probe(base, encoded, depths, ["mean", "last"], seed)).reading
    everything = range(len(pairs))
    read = pool(base, encoded, everything, [reading.depth])[reading.depth, reading.pooling]
    chosen, rejected = encoded.sides(read)
    scale = read.std(0).clamp(min=1e-6)
    return np.asarray(((chosen - rejected) / scale).double().numpy()), encoded.groups, reading


def learned(
    differences: npt.NDArray[np.float64], groups: Sequence[str], seed: int
) -> tuple[list[int], npt.NDArray[np.float64], float]:
    """Return S numbers of labels, and held-out accuracies (R, S) of R splits by prompt.

    The third value is the size of the held-out part over that of the training part.
    """
    names = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    number = np.array([names[g] for g in groups])
    splits = []
    for split in range(SPLITS):
        rng = np.random.default_rng(derive_seed(seed, "split", split))
        held = np.isin(number, rng.permutation(len(names))[: max(1, round(HELD_OUT * len(names)))])
        splits.append((rng.permutation(np.flatnonzero(~held)), held))
    largest = min(len(rows) for rows, _ in splits)
    sizes = sorted({round(n) for n in np.geomspace(min(SMALLEST, largest // 4), largest, SIZES)})
    penalty = _penalty(differences, *splits[0])
    accuracies = np.zeros((SPLITS, len(sizes)))
    for split, (rows, held) in enumerate(splits):
        weights = np.zeros(differences.shape[1])
        for at, n in enumerate(sizes):
            weights = fit(differences[rows[:n]], penalty, weights)
            margin = differences[held] @ weights
            accuracies[split, at] = float(np.where(margin == 0, 0.5, margin > 0).mean())
    return sizes, accuracies, HELD_OUT / (1 - HELD_OUT)


def _penalty(
    differences: npt.NDArray[np.float64], rows: npt.NDArray[np.intp], held: npt.NDArray[np.bool_]
) -> float:
    """Return the penalty with the least loss on the first split's held-out pairs."""

    def loss(penalty: float) -> float:
        weights = fit(differences[rows], penalty, np.zeros(differences.shape[1]))
        return float(np.logaddexp(0.0, -(differences[held] @ weights)).mean())

    return min(PENALTIES, key=loss)


def _ahead(last: int, labels: int) -> list[int]:
    """Return the numbers of labels to report: the present one, and some that might be bought."""
    return sorted({last, 2 * last, 5 * last, 10 * last, labels, 10 * labels})


def _sources(
    labels: Sequence[Label], price_judge: float | None, price_person: float | None
) -> dict[str, Any]:
    """Return prices of a comparison by source, and agreement of judge and people.

    Prices are the given ones, or what labels have cost. Agreement is that of the judge with people and
    of people with each other (None if unknown).
    """
    judged = {label.comparison_id: label.preference for label in labels if label.source == "judge"}
    people = opinions(labels)
    both = [
        (judged[i] > 0.5) == (people[i] > 0.5)
        for i in judged
        if i in people and 0.5 not in (judged[i], people[i])
    ]
    theirs = [label for label in labels if label.source == "judge"]
    ours = [label for label in labels if label.source != "judge"]

    def price(given: float | None, bought: Sequence[Label]) -> float | None:
        """Return the price of a comparison, however many annotators have labelled it."""
        if given is not None or not (paid := sum(label.cost for label in bought)):
            return given
        return paid / len({label.comparison_id for label in bought})

    agrees = float(np.mean(both)) if both else None
    alone = pairwise_agreement(votes_of(ours))
    return {
        "price_judge": price(price_judge, theirs),
        "price_person": price(price_person, ours),
        "judge_agrees": agrees,
        "compared": len(both),
        "people_agree": alone,
        "worth": None if agrees is None else worth_of_judge(agrees, alone),
    }


def _mixes(labels: int, sources: dict[str, Any], curve: Curve) -> list[dict[str, Any]]:
    """Return mixes by the judge's share: people alone without a judge, none without a price."""
    person, judge, worth = sources["price_person"], sources["price_judge"], sources["worth"]
    if person is None:
        return []
    if judge is None or worth is None:
        return [row for row in mixes(labels, 0.0, 0.0, person, curve) if row["judge"] == 0]
    return mixes(labels, worth, judge, person, curve)
