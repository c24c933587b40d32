"""Examine reward models on held-out pairs: accuracy beside trivial baselines, calibration, shared errors, length."""

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
    """What N held-out pairs say of K models, given raw scores (2N, K), all chosen, then all rejected, and the members'
    standard deviations (K,) on reference samples, by which they are put on one scale.

    `first` maps comparison ids to the response that stood first. Accuracies come with intervals by prompt; the
    ensemble's is that of the mean normalised score. `calibration` sets against it how sure the ensemble is of its
    verdict: the members' mean Bradley-Terry probability, which only raw scores give. `error_correlation` is the mean
    correlation of the members' errors (0 independent, 1 identical, null when a member makes none);
    `length_correlation` that of the ensemble's score with the number of words.
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
    """Share of pairs that rules get right which have read nothing: the longer wins, the shorter, and whatever stood
    first, where that is known."""
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
    """What length is worth to the annotators and to the ensemble, before and after its correction: how often the
    longer answer of N held-out pairs is the preferred one (0.5: length is worth nothing; pairs of equal length are left
    out), and the correlation of the score with length on the reference samples. `raw` (M, K) are the members' scores
    of the samples, `held_out` (2N, K) those of the pairs, all chosen, then all rejected."""
    chosen, rejected = (
        [pairs.sequences.response_lengths[row] for row in side] for side in (pairs.chosen, pairs.rejected)
    )
    groups = [p.prompt.group for p in pairs.pairs]
    lengths = [float(n) for n in samples.response_lengths]

    def judged(scores: torch.Tensor) -> dict[str, Any] | None:
        """How often the longer answer has the higher score, from scores (2N,)."""
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
    """Share of pairs a rule gets right; where it cannot tell, it is right half the time."""
    return (sum(hits) + ties / 2) / len(hits)


def errors(scores: torch.Tensor) -> torch.Tensor:
    """(N,) whether the mean over models ranks a pair the wrong way, from scores (2N, K) on one scale, all chosen, then
    all rejected."""
    chosen, rejected = scores.mean(1).chunk(2)
    return chosen <= rejected


def error_correlation(errors: torch.Tensor) -> float | None:
    """Mean pairwise correlation of error indicators (N, K) bool; None for one member or a faultless one."""
    return mean_correlation(errors.double().numpy())


def watcher_verdict(report: Mapping[str, Any], baselines: Mapping[str, float]) -> dict[str, Any]:
    """A watcher is armed only when the lower bound of its accuracy beats every trivial baseline."""
    low = report["accuracy"]["ci_low"]
    name, best = max(baselines.items(), key=lambda item: item[1])
    armed = low > best
    relation = "beats" if armed else "does not beat"
    reason = f"lower bound {low:.3f} of its accuracy {relation} '{name} wins' at {best:.3f}"
    return {"armed": armed, "reason": reason}
