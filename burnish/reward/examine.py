"""Examination of reward models on held-out pairs: accuracy, baselines, calibration, length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from burnish.models.batches import CPU
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.records import Preference
from burnish.reward.ensemble import RewardEnsemble
from burnish.reward.scrutiny import accuracy, mean_correlation
from burnish.stats import calibration, clustered_proportion, pearson


def examine(
    pairs: Sequence[Preference],
    raw: torch.Tensor,
    sd: torch.Tensor,
    first: Mapping[str, str],
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Examine K models on N held-out pairs.

    `raw` (2N, K) holds raw scores, all chosen, then all rejected. `sd` (K,) holds the members' standard
    deviations on reference samples, which put them on one scale. `first` maps comparison ids to the
    response shown first.

    Accuracies have intervals by prompt; the ensemble's is that of the mean normalised score.
    `calibration` compares it with the ensemble's confidence, the members' mean Bradley-Terry
    probability, which needs raw scores. `error_correlation` is the members' mean (0 independent, 1
    identical, null when a member makes none). `length_correlation` is that of the ensemble's score with
    the number of words.
    """
    n = len(pairs)
    assert raw.shape == (2 * n, len(sd))
    chosen, rejected = raw.chunk(2)
    right = chosen > rejected  # (N, K)
    margin = ((chosen - rejected) / sd).mean(1)
    chosen_wins = torch.sigmoid(chosen - rejected).double().mean(1)
    confidences = torch.where(margin > 0, chosen_wins, 1 - chosen_wins).tolist()
    ece, bins = calibration(confidences, (margin > 0).tolist())
    groups = [p.prompt.group for p in pairs]
    words = [len(p.chosen.split()) for p in pairs] + [len(p.rejected.split()) for p in pairs]
    return {
        "accuracy": accuracy((margin > 0).numpy(), groups, confidence),
        "members": [{"accuracy": accuracy(right[:, k].numpy(), groups, confidence)} for k in range(len(sd))],
        "baselines": trivial_rules(pairs, first),
        "calibration": {"ece": ece, "bins": bins},
        "error_correlation": error_correlation(~right),
        "length_correlation": pearson((raw / sd).mean(1).tolist(), [float(w) for w in words]),
    }


def trivial_rules(pairs: Sequence[Preference], first: Mapping[str, str]) -> dict[str, float]:
    """Return the accuracy of rules: the longer answer wins, the shorter, the first shown if known."""
    apart = [len(p.chosen.split()) - len(p.rejected.split()) for p in pairs]
    stood = [first[p.comparison_id] == p.chosen for p in pairs if p.comparison_id in first]
    ties = apart.count(0)
    return {
        "longer": _rate([d > 0 for d in apart], ties=ties),
        "shorter": _rate([d < 0 for d in apart], ties=ties),
        **({"first": _rate(stood)} if stood else {}),
    }


def length_bias(
    ensemble: RewardEnsemble,
    raw: torch.Tensor,
    samples: Sequences,
    held_out: torch.Tensor,
    pairs: EncodedPairs,
    how: str,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Measure the length bias of the labels and of the ensemble, before and after its correction.

    Reports how often the longer answer of N held-out pairs is preferred (0.5: no bias; pairs of equal
    length are left out), and the correlation of score and length on the reference samples. `raw` (M, K)
    holds the members' scores of the samples, `held_out` (2N, K) those of the pairs, all chosen, then
    all rejected.
    """
    chosen, rejected = (
        [pairs.sequences.response_lengths[row] for row in side] for side in (pairs.chosen, pairs.rejected)
    )
    groups = [p.prompt.group for p in pairs.pairs]
    lengths = [float(n) for n in samples.response_lengths]

    def judged(scores: torch.Tensor) -> dict[str, Any] | None:
        """Return how often the longer answer has the higher score, from scores (2N,)."""
        ahead = (scores[: len(chosen)] > scores[len(chosen) :]).tolist()
        hits = [
            (float(won == (a > b)), group)
            for won, a, b, group in zip(ahead, chosen, rejected, groups, strict=True)
            if a != b
        ]
        if not hits:
            return None
        outcomes, clusters = zip(*hits, strict=True)
        interval = clustered_proportion(list(outcomes), list(clusters), confidence=confidence)
        return {**asdict(interval), "pairs": len(hits)}

    before = ensemble.mean_normalised(held_out)
    labelled = torch.cat([torch.ones(len(chosen), device=CPU), torch.zeros(len(rejected), device=CPU)])
    usual = ensemble.mean_normalised(raw)
    report: dict[str, Any] = {
        "how": how,
        "labels": judged(labelled),
        "reward": judged(before),
        "reward_correlation": pearson(usual.tolist(), lengths),
    }
    if ensemble.length is not None:
        after = ensemble.length.apply(before, [*chosen, *rejected])
        report["corrected"] = judged(after)
        report["corrected_correlation"] = pearson(ensemble.corrected(usual, samples).tolist(), lengths)
        right = (after[: len(chosen)] > after[len(chosen) :]).double().tolist()
        report["corrected_accuracy"] = asdict(clustered_proportion(right, groups, confidence=confidence))
    return report


def _rate(hits: Sequence[bool], ties: int = 0) -> float:
    """Return a rule's accuracy; a tie counts as half right."""
    return (sum(hits) + ties / 2) / len(hits)


def errors(scores: torch.Tensor) -> torch.Tensor:
    """Return pairs (N,) ranked wrongly by the mean of scores (2N, K): all chosen, then all rejected."""
    chosen, rejected = scores.mean(1).chunk(2)
    return chosen <= rejected


def error_correlation(errors: torch.Tensor) -> float | None:
    """Return the mean pairwise correlation of errors (N, K); None for one or a faultless member."""
    return mean_correlation(errors.double().numpy())


def watcher_verdict(report: Mapping[str, Any], baselines: Mapping[str, float]) -> dict[str, Any]:
    """Arm a watcher only if the lower bound of its accuracy beats every trivial baseline."""
    low = report["accuracy"]["ci_low"]
    name, best = max(baselines.items(), key=lambda item: item[1])
    armed = low > best
    relation = "beats" if armed else "does not beat"
    reason = f"lower bound {low:.3f} of its accuracy {relation} '{name} wins' at {best:.3f}"
    return {"armed": armed, "reason": reason}
