"""Champion rule: select on one split, test once on another, keep SFT unless it is beaten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.records import Interval

BEST_OF = "best_of_"  # followed by n; has no model of its own
ROUND = "round_"  # followed by its number; the final policy of an earlier round
AVERAGE = "ppo_average"  # PPO's policy with the moving average of its weights
BEST = "ppo_best"  # PPO's policy at the checkpoint that the watcher prefers
TRAINED = (
    "ppo",
    "dpo",
    "distill",
    AVERAGE,
    BEST,
)  # policies that an align stage may save; its result is the first that exists


@dataclass(frozen=True)
class Candidate:
    """A policy with its win rates against the baseline on the selection and test prompts."""

    name: str
    selection: Interval
    test: Interval


@dataclass(frozen=True)
class ChampionDecision:
    """The champion, the candidate that was selected for the test, and the reason."""

    champion: str
    selected: str | None
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


def choose_champion(candidates: Sequence[Candidate], *, baseline: str = "sft") -> ChampionDecision:
    """Select the best candidate on the selection prompts and test it against the baseline.

    The candidate with the best selection win rate (the first among equals) wins if the lower bound of
    its test interval is above one half; otherwise the baseline stays. Test figures of the others are
    not read. Intervals are of the win rate against the baseline, ties half. Raises ValueError if a
    figure that is read is not finite or a name occurs twice.
    """
    if not candidates:
        return ChampionDecision(baseline, None, f"no candidate: {baseline} stays")
    names = [baseline, *(c.name for c in candidates)]
    if len(set(names)) < len(names):
        raise ValueError(f"{names}: a name occurs twice; baseline and candidates need different names")
    for c in candidates:
        _finite(c.name, "selection win rate", c.selection.value)
    selected = max(candidates, key=lambda c: c.selection.value)
    test = selected.test
    _finite(selected.name, "test lower bound", test.ci_low)
    figures = f"{test.value:.3f} [{test.ci_low:.3f}, {test.ci_high:.3f}], n = {test.n}"
    beats = test.ci_low > 0.5
    evidence = {
        "selected": selected.name,
        "selection": {c.name: c.selection.value for c in candidates},
        "test_win_rate": test.value,
        "ci_low": test.ci_low,
        "ci_high": test.ci_high,
        "n": test.n,
    }
    if beats:
        reason = f"{selected.name} beats {baseline} on the test prompts: {figures}"
    else:
        reason = f"{selected.name} does not significantly beat {baseline}: {figures}; {baseline} stays"
    return ChampionDecision(selected.name if beats else baseline, selected.name, reason, evidence)


@dataclass(frozen=True)
class Held:
    """A champion's result on a regression set.

    `champion` and `baseline` (SFT) are mean metrics. `difference` has an interval by prompt, and
    `tolerance` is the loss that is allowed.
    """

    name: str
    champion: float
    baseline: float
    difference: Interval
    tolerance: float

    @property
    def loses(self) -> bool:
        """True if the upper bound of the difference is below -`tolerance`."""
        return self.difference.ci_high < -self.tolerance


def held_to(decision: ChampionDecision, sets: Sequence[Held], *, baseline: str = "sft") -> ChampionDecision:
    """Return the decision, or the baseline if the champion surely loses on a regression set."""
    lost = [held for held in sets if held.loses]
    evidence = decision.evidence | {"regression_sets": {h.name: h.difference.value for h in sets}}
    if not lost:
        return replace(decision, evidence=evidence)
    why = "; ".join(
        f"{h.name}: {h.champion:.3f} against {h.baseline:.3f} ({h.difference.value:+.3f} "
        f"[{h.difference.ci_low:+.3f}, {h.difference.ci_high:+.3f}], n = {h.difference.n})"
        for h in lost
    )
    reason = f"{decision.reason}, but significantly loses on {why}: {baseline} stays"
    return replace(decision, champion=baseline, reason=reason, evidence=evidence)


def _finite(name: str, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(
            f"{name}: {what} {value!r} is not finite, so it cannot be ranked; run the evaluation again"
        )
