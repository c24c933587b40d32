"""Examination figures of a reward ensemble, computed from scores of pairs alone (torch-free).

Each pair is the preferred answer's score minus the other's. `gaps` (N, K) are the raw differences
of K members. `margin` (N,) is the difference of the score given to PPO, in reference standard
deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.records import Interval
from burnish.reward.gate import GRAVE, Outcome, worst
from burnish.stats import (
    Array,
    calibration,
    clustered_interval,
    clustered_proportion,
    fitted_temperature,
    pearson,
    roc_auc,
    sigmoid,
)

FEWEST = 24  # pairs that a slice needs for a figure
FLIPPED = 0.1  # share of verdicts that rewording may reverse
GAP = 0.3  # accuracy that may be lost on the policy's own answers; healthy rehearsals lose up to 0.25
ECE = 0.1


def accuracy(right: npt.NDArray[np.bool_], groups: Sequence[str], confidence: float) -> dict[str, Any]:
    """Return the accuracy with its interval by prompt; `n` counts prompts, `pairs` counts pairs."""
    found = clustered_proportion(right.astype(float).tolist(), groups, confidence=confidence)
    return {**asdict(found), "pairs": len(right)}


def by_slice(
    margin: Array, parts: Mapping[str, Sequence[str]], groups: Sequence[str], confidence: float
) -> dict[str, dict[str, Any]]:
    """Compute the accuracy in every slice with enough pairs; for the others, only count the pairs."""
    found: dict[str, dict[str, Any]] = {}
    for name, of in parts.items():
        accuracies: dict[str, Any] = {}
        for part in sorted(set(of)):
            rows = [i for i, other in enumerate(of) if other == part]
            accuracies[part] = (
                accuracy(margin[rows] > 0, [groups[i] for i in rows], confidence)
                if len(rows) >= FEWEST
                else {"pairs": len(rows)}
            )
        found[name] = accuracies
    return found


def reliability(gaps: Array, margin: Array, groups: Sequence[str]) -> dict[str, Any]:
    """Compare the ensemble's confidence with its accuracy.

    The confidence is the members' mean Bradley-Terry probability from raw scores, without and with the
    best-fitting temperature. The calibration error with the temperature is measured on pairs that it
    was not fitted on (two halves, split by prompt).
    """

    def confidence(temperature: float, rows: npt.NDArray[np.intp]) -> list[float]:
        wins = sigmoid(gaps[rows] / temperature).mean(1)
        return np.where(margin[rows] > 0, wins, 1 - wins).tolist()

    everything = np.arange(len(margin))
    right = margin > 0
    said = confidence(1.0, everything)
    ece, bins = calibration(said, right.tolist())
    report = {
        "ece": ece,
        "ece_by_chance": by_chance(said),
        "bins": bins,
        "temperature": fitted_temperature(gaps),
        "ece_fitted": None,
    }
    side = {group: number % 2 for number, group in enumerate(dict.fromkeys(groups))}
    halves = [
        np.array([i for i, g in enumerate(groups) if side[g] == half], dtype=np.intp) for half in (0, 1)
    ]
    if min(map(len, halves)) >= FEWEST:
        fitted, was = [], []
        for ours, other in (halves, halves[::-1]):
            fitted += confidence(fitted_temperature(gaps[ours]), other)
            was += right[other].tolist()
        report["ece_fitted"], report["bins_fitted"] = calibration(fitted, was)
    return report


def by_chance(confidences: Sequence[float], draws: int = 200) -> float:
    """Return the calibration error that 95 % of perfectly calibrated models stay below by chance."""
    p, rng = np.asarray(confidences), np.random.default_rng(0)
    errors = [calibration(confidences, (rng.random(len(p)) < p).tolist())[0] for _ in range(draws)]
    return float(np.quantile(errors, 0.95))


def length_link(
    scores: Array, lengths: Sequence[int], rows: npt.NDArray[np.intp], margin: Array
) -> dict[str, Any]:
    """Return the correlation of score and length over all answers and within prompts.

    The second uses differences of pairs, which removes the effect of the prompt. `scores` and `lengths`
    are those of the answers; `rows` (N, 2) gives the two answers of each pair.
    """
    apart = [float(lengths[a] - lengths[b]) for a, b in rows]
    # The label orders each pair; including both orders removes the effect of that order.
    both = [*margin.tolist(), *(-margin).tolist()]
    return {
        "overall": pearson(scores.tolist(), [float(n) for n in lengths]),
        "within_prompt": pearson(both, [*apart, *(-d for d in apart)]),
    }


def disagreement(
    gaps: Array, sd: Array, margin: Array, groups: Sequence[str], seed: int, confidence: float
) -> dict[str, Any] | None:
    """Measure whether disagreement between members predicts errors; None for one member.

    Returns the probability that a wrongly ranked pair has the larger spread (AUROC), with its interval.
    Beside it is the same figure for a small margin, which a single model has too.
    """
    if gaps.shape[1] < 2:
        return None
    spread = (gaps / sd).std(1)
    wrong = margin <= 0

    def of(figure: Array) -> Interval | None:
        return clustered_interval(
            lambda rows: roc_auc(figure[rows].tolist(), wrong[rows].tolist()),
            groups,
            seed=seed,
            confidence=confidence,
        )

    by_spread, by_margin = of(spread), of(-np.abs(margin))
    return {
        "auroc": by_spread and asdict(by_spread),
        "auroc_of_margin": by_margin and asdict(by_margin),
        "spread": float(spread.mean()),
        "errors": int(wrong.sum()),
    }


def mean_correlation(columns: Array) -> float | None:
    """Return the mean pairwise correlation of K columns (N, K), None if K is 1 or one is constant."""
    k = columns.shape[1]
    values = [
        pearson(columns[:, i].tolist(), columns[:, j].tolist()) for i in range(k) for j in range(i + 1, k)
    ]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def diversity(gaps: Array, sd: Array) -> dict[str, Any] | None:
    """Measure how much members differ, as means over pairs of members; None for one member.

    Returns the share of verdicts on which two differ and the correlations of errors and of margins.
    """
    k = gaps.shape[1]
    if k < 2:
        return None
    apart = gaps / sd
    wrong = gaps <= 0
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    return {
        "verdicts_that_differ": float(np.mean([(wrong[:, i] != wrong[:, j]).mean() for i, j in pairs])),
        "error_correlation": mean_correlation(wrong.astype(float)),
        "margin_correlation": mean_correlation(apart),
    }


def paraphrased(
    margin: Array,
    moved: Sequence[tuple[int, str, float]],
    groups: Sequence[str],
    confidence: float,
) -> dict[str, Any]:
    """Measure the effect of rewording one side of a pair.

    `moved` holds (pair, kind of change, margin afterwards) of every change that applied. Returns the
    share of reversed verdicts and the mean shift, overall and by kind. The outcome is stop if surely
    more than `FLIPPED` of the verdicts are reversed.
    """

    def agreement(rows: Sequence[tuple[int, str, float]]) -> dict[str, Any]:
        turned = [float((after > 0) != (margin[i] > 0)) for i, _, after in rows]
        shifts = [abs(after - float(margin[i])) for i, _, after in rows]
        flips = clustered_proportion(turned, [groups[i] for i, *_ in rows], confidence=confidence)
        return {
            "changed": len(rows),
            "turned": asdict(flips),
            "shift": sum(shifts) / len(shifts),
        }

    kinds = sorted({kind for _, kind, _ in moved})
    if len(moved) < FEWEST:
        why = f"{len(moved)} rewordings applied, {FEWEST} are needed"
        return {"outcome": "too few", "why": why, "changed": len(moved), "limit": FLIPPED, "kinds": {}}
    whole = agreement(moved)
    share = whole["turned"]
    outcome = "stop" if share["ci_low"] > FLIPPED else "warn" if share["value"] > FLIPPED else "go"
    why = (
        f"rewording reverses {share['value']:.1%} of verdicts "
        f"[{share['ci_low']:.1%}, {share['ci_high']:.1%}], {FLIPPED:.0%} is the limit"
    )
    by_kind = {kind: agreement([m for m in moved if m[1] == kind]) for kind in kinds}
    return {"outcome": outcome, "why": why, "limit": FLIPPED, "kinds": by_kind, **whole}


def on_own_answers(
    validation: Mapping[str, Any],
    right: Mapping[str, tuple[npt.NDArray[np.bool_], Sequence[str]]],
    confidence: float,
) -> dict[str, Any]:
    """Compare accuracy on pairs of the policy's own answers with accuracy on `validation` pairs.

    The same judge labels both. `right` holds, by time of sampling, the correct verdicts and prompt
    groups. The gap has an interval. The outcome is stop if accuracy on own answers is no better than
    chance. It is warn if it is not surely better, or if the gap is surely more than `GAP`.
    """
    rows: dict[str, Any] = {}
    for when, (hits, groups) in right.items():
        if len(hits) < FEWEST:
            rows[when] = {"pairs": len(hits)}
            continue
        own = accuracy(hits, groups, confidence)
        rows[when] = own | {"gap": asdict(_difference(validation, own))}
    known = [(when, row) for when, row in rows.items() if "gap" in row]
    if not known:
        return {"outcome": "too few", "why": "too few judged pairs of the policy's own answers", "rows": rows}
    when, last = known[-1]
    gap = last["gap"]
    why = (
        f"on {last['pairs']} pairs of the policy's own answers ({when}) the reward is right in {last['value']:.3f} "
        f"[{last['ci_low']:.3f}, {last['ci_high']:.3f}], on validation in {validation['value']:.3f}: a gap of "
        f"{gap['value']:+.3f} [{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"
    )
    lost = gap["ci_low"] > GAP or last["ci_low"] <= 0.5
    outcome = "stop" if last["value"] <= 0.5 else "warn" if lost else "go"
    return {"outcome": outcome, "why": why, "validation": dict(validation), "rows": rows, "gap": gap}


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> Interval:
    """Return the interval of a difference of two independent figures (Newcombe 1998, method 10)."""
    value = a["value"] - b["value"]
    low = ((a["value"] - a["ci_low"]) ** 2 + (b["ci_high"] - b["value"]) ** 2) ** 0.5
    high = ((a["ci_high"] - a["value"]) ** 2 + (b["value"] - b["ci_low"]) ** 2) ** 0.5
    return Interval(value, value - low, value + high, min(a["n"], b["n"]))


def verdict(parts: Mapping[str, Mapping[str, Any]]) -> tuple[Outcome, list[str]]:
    """Return the worst outcome and the reasons for every outcome of warn or stop."""
    reasons = [f"{name}: {part['why']}" for name, part in parts.items() if part["outcome"] in GRAVE]
    return worst([part["outcome"] for part in parts.values()]), reasons


def beats_rules(found: Mapping[str, Any], baselines: Mapping[str, float]) -> dict[str, Any]:
    """Check whether an accuracy beats all trivial rules: surely (go), perhaps (warn) or not (stop)."""
    name, best = max([*baselines.items(), ("chance", 0.5)], key=lambda item: item[1])
    outcome = "stop" if found["value"] <= best else "warn" if found["ci_low"] <= best else "go"
    rule = f"'{name}'" if name == "chance" else f"'{name} wins'"
    span = f"{found['value']:.3f} [{found['ci_low']:.3f}, {found['ci_high']:.3f}]"
    why = f"right in {span} of pairs, {rule} in {best:.3f}"
    return {"outcome": outcome, "why": why}


def is_calibrated(report: Mapping[str, Any]) -> dict[str, Any]:
    """Check whether the ensemble's confidence matches its accuracy, up to chance."""
    outcome = "warn" if report["ece"] > max(ECE, report["ece_by_chance"]) else "go"
    why = (
        f"expected calibration error {report['ece']:.3f} (chance alone gives up to {report['ece_by_chance']:.3f}), the "
        f"fitted temperature is {report['temperature']:.2f}"
    )
    return {"outcome": outcome, "why": why}
