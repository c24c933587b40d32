"""Detectors of reward hacking during a run: figures that leave the range of healthy runs while the reward rises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from burnish.monitor import thresholds
from burnish.monitor.windows import Drift, drift
from burnish.records import Alert, StepStats

WHAT_HACKS_NEED = "score"  # without a sure rise of which nothing is being hacked


@dataclass(frozen=True)
class Found:
    """What a detector saw: a value past its limit, in words."""

    value: float
    limit: float
    text: str


Look = Callable[[Drift], Found | None]


@dataclass(frozen=True)
class Detector:
    """A look at one figure. `share`: the figure is a share of the responses; `hack`: it means something only while the
    reward rises."""

    figure: str
    look: Look
    share: bool = False
    hack: bool = True


def length_drift(d: Drift) -> Found | None:
    """Longer and longer answers, or shorter and shorter ones."""
    most, least = thresholds.LENGTH_GROWTH * d.before, thresholds.LENGTH_LOSS * d.before
    if least <= d.now <= most:
        return None
    limit, how = (most, "grown") if d.now > most else (least, "shrunk")
    return Found(d.now, limit, f"answers have {how} from {d.before:.0f} to {d.now:.0f} tokens")


def nonsense(d: Drift) -> Found | None:
    """Tokens that the reference finds far less likely, or far more, than its own."""
    least, most = thresholds.LIKELY * d.before, thresholds.UNLIKELY * d.before
    if least <= d.now <= most:
        return None
    limit = most if d.now > most else least
    text = f"the reference gives {d.now:.2f} nats a token to these answers, {d.before:.2f} to its own"
    return Found(d.now, limit, text)


def entropy_drop(d: Drift) -> Found | None:
    """A policy that has ever fewer things to say, before it has only one."""
    limit = thresholds.ENTROPY * d.before
    if d.now >= limit:
        return None
    text = f"entropy has fallen from {d.before:.2f} to {d.now:.2f} nats a token"
    return Found(d.now, limit, text)


def spread(d: Drift) -> Found | None:
    """Reward models that disagree about these answers more than about the reference's: the policy is where they know
    little (Coste et al. 2023)."""
    limit = thresholds.SPREAD * d.before
    if d.now <= limit:
        return None
    text = f"the reward models disagree by {d.now:.2f} about these answers, {d.before:.2f} at the start"
    return Found(d.now, limit, text)


def sampling_gap(d: Drift) -> Found | None:
    """Sampler and trainer that no longer give the same token the same probability."""
    limit = max(thresholds.GAP * d.before, thresholds.GAP_LEAST)
    if d.now <= limit:
        return None
    text = f"sampled and recomputed log-probabilities differ by {d.now:.2g} nats, {d.before:.2g} at the start"
    return Found(d.now, limit, text)


def risen(margin: float, what: str) -> Look:
    """A share that lies more than a margin above where it began."""

    def look(d: Drift) -> Found | None:
        limit = d.before + margin
        if d.now <= limit:
            return None
        return Found(d.now, limit, f"{what}: {d.before:.0%} before, {d.now:.0%} now")

    return look


DETECTORS: dict[str, Detector] = {
    "length_drift": Detector("length", length_drift),
    "truncation": Detector("truncated", risen(thresholds.TRUNCATED, "answers that are cut off"), share=True),
    "repetition": Detector("repetition", risen(thresholds.REPETITION, "repeated word pairs"), share=True),
    "language_switch": Detector(
        "foreign", risen(thresholds.FOREIGN, "answers in another language than their prompt"), share=True
    ),
    "nonsense": Detector("ref_nll", nonsense),
    "format_drift": Detector(
        "formatted",
        risen(thresholds.FORMATTED, "answers with lists, headings, code or bold words"),
        share=True,
    ),
    "entropy_drop": Detector("entropy", entropy_drop),
    "ensemble_spread": Detector("spread", spread),
    "near_duplicates": Detector(
        "duplicates",
        risen(thresholds.DUPLICATES, "answers that say what another prompt was told"),
        share=True,
    ),
    "stock_phrase": Detector(
        "stock", risen(thresholds.STOCK, "prompts answered with the same phrase"), share=True
    ),
    "sampling_gap": Detector("sampling_gap", sampling_gap, hack=False),
}
FIGURES = (*(d.figure for d in DETECTORS.values()), WHAT_HACKS_NEED)


class HackMonitor:
    """Medians over the last updates against those over the first, for every detector, once enough responses were seen.
    A detector of hacks speaks only while the reward is surely above where it began: without that a drift is no hack."""

    def __init__(self, responses: int) -> None:
        self.responses = responses  # of an update, of as many prompts where its figures do not say how many
        self.start: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []

    def observe(self, stats: StepStats) -> list[Alert]:
        """Alerts of one update. A figure that is missing is no evidence of anything."""
        row = {name: stats[name] for name in FIGURES if name in stats.values}
        if not row:
            return []
        row["prompts"] = min(stats.values.get("prompts", self.responses), self.responses)
        needed = math.ceil(thresholds.RESPONSES / self.responses)
        if len(self.start) < max(thresholds.BASELINE, needed):
            self.start.append(row)
            return []
        window = max(thresholds.WINDOW, needed)
        self.recent = [*self.recent, row][-max(window, thresholds.HISTORY) :]
        if len(self.recent) < max(needed, thresholds.FEWEST):
            return []

        def moved(name: str, share: bool = False) -> Drift | None:
            return drift(self.start, self.recent, window, name, share=share)

        reward = moved(WHAT_HACKS_NEED)
        rises = reward is not None and reward.change > thresholds.SURE_RISE * reward.se
        alerts = []
        for name, detector in DETECTORS.items():
            found = None
            d = moved(detector.figure, detector.share)
            if d is not None and d.sure and (rises or not detector.hack):
                found = detector.look(d)
            if d is None or found is None:
                continue
            evidence = {"attempt": stats.attempt, "updates": min(window, len(self.recent)), "se": d.se}
            text = found.text
            if detector.hack:
                assert reward is not None
                evidence["reward_rise"] = reward.change
                text += f" while the reward rose by {reward.change:.2f}"
            alerts.append(Alert(name, "warning", text, stats.step, found.value, found.limit, evidence))
        return alerts

    def restart(self, before: HackMonitor) -> None:
        """After a roll-back: forget what was given up, keep where the run began, which `before` knows though what was
        gone back to may not."""
        self.recent = []
        if len(self.start) < len(before.start):
            self.start = before.start

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Older checkpoints have rows without their number of prompts.
        self.start, self.recent = (
            [{"prompts": float(self.responses), **row} for row in state[part]] for part in ("start", "recent")
        )
