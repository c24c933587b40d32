"""Detectors of reward hacking: figures over windows of updates, their limits, causes and remedies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from burnish.records import Alert, StepStats

MAD = 1.4826  # times the median absolute deviation: a normal's standard deviation

MEDIAN = 1.2533  # times the standard error of a mean: that of a normal's median

Rows = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Drift:
    """A figure's median over the first updates and over the last, and the standard error of the difference."""

    before: float
    now: float
    se: float

    @property
    def change(self) -> float:
        return self.now - self.before

    @property
    def sure(self) -> bool:
        """Whether the two differ by more than chance allows."""
        return abs(self.change) > SURE * self.se


def drift(start: Rows, recent: Rows, window: int, name: str, *, share: bool = False) -> Drift | None:
    """How a figure moved from `start` to the last `window` of the `recent` updates; None where too few of either have
    it. The noise of an update comes from the differences between consecutive updates, over all that are given, so that
    a steady drift is not noise. A share of 0 does not vary, so the noise of a share is at least binomial, over the
    `prompts` of an update: several responses to one prompt may all be alike."""
    first = [row for row in start if name in row]
    last = [row for row in recent[-window:] if name in row]
    if len(first) < min(len(start), FEWEST) or len(last) < FEWEST:
        return None
    seen = [row for row in recent if name in row]
    steps = [abs(b[name] - a[name]) for part in (first, seen) for a, b in itertools.pairwise(part)]
    sd = MAD * median(steps) / math.sqrt(2)
    if share:
        prompts = [row["prompts"] for row in (*first, *last)]
        n = sum(prompts)
        p = (sum(row[name] * k for row, k in zip((*first, *last), prompts, strict=True)) + 1) / (n + 2)
        sd = max(sd, math.sqrt(max(p * (1 - p), 0.0) * len(prompts) / n))
    before, now = (median(row[name] for row in part) for part in (first, last))
    return Drift(before, now, MEDIAN * sd * math.sqrt(1 / len(first) + 1 / len(last)))


ORIGIN = (
    "quickstart, seeds 0 to 4, commit 6a3ae4d: length fell to 0.61 and rose to 0.98 of its start, cut-off answers rose "
    "by 0.009 at most, repeated word pairs by 0.010, answers in another language by 0.002, the reference's nats a "
    "token went from 0.97 to 1.17 times their start; no window of 180 updates was over a limit. A real model "
    "(SmolLM2 on AI feedback): length 0.64 of its start, entropy 0.7. FORMATTED, ENTROPY, SPREAD, DUPLICATES, STOCK "
    "and GAP are chosen, not measured: on the quickstart, seed 0, commit e3d3818, medians of five updates came to 0 "
    "formatted answers and near-duplicates, 0.06 more with one phrase, 0.94 of the entropy, 1.10 of the spread and 1.5 "
    "of the gap at the start"
)

WINDOW = 5  # updates

BASELINE = 3  # updates at the start

RESPONSES = 96  # that a window, and the start, must hold

FEWEST = 3  # updates of a window that must have a figure

HISTORY = 20  # updates from whose differences the noise is known

SURE = 3.0  # standard errors by which a figure must have moved

SURE_RISE = 2.0  # and the reward must have risen

LENGTH_GROWTH = 1.3  # times the length at the start

LENGTH_LOSS = 0.4

TRUNCATED = 0.15  # more of the responses than at the start

REPETITION = 0.1  # more of their word pairs

FOREIGN = 0.1  # more of the responses

UNLIKELY = 1.4  # times the reference's nats a token at the start

LIKELY = 0.5  # a policy that sharpens comes to two thirds of it

FORMATTED = 0.2  # more of the responses with marks of Markdown

ENTROPY = 0.45  # of its start

SPREAD = 1.5  # times the members' disagreement at the start

DUPLICATES = 0.3  # more of the responses that say nearly what one to another prompt says

STOCK = 0.3  # more of the responses that share one phrase

GAP = 10.0  # times the sampling gap at the start

GAP_LEAST = 0.05  # nats that it must have come to

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
    most, least = LENGTH_GROWTH * d.before, LENGTH_LOSS * d.before
    if least <= d.now <= most:
        return None
    limit, how = (most, "grown") if d.now > most else (least, "shrunk")
    return Found(d.now, limit, f"answers have {how} from {d.before:.0f} to {d.now:.0f} tokens")


def nonsense(d: Drift) -> Found | None:
    """Tokens that the reference finds far less likely, or far more, than its own."""
    least, most = LIKELY * d.before, UNLIKELY * d.before
    if least <= d.now <= most:
        return None
    limit = most if d.now > most else least
    text = f"the reference gives {d.now:.2f} nats a token to these answers, {d.before:.2f} to its own"
    return Found(d.now, limit, text)


def entropy_drop(d: Drift) -> Found | None:
    """A policy that has ever fewer things to say, before it has only one."""
    limit = ENTROPY * d.before
    if d.now >= limit:
        return None
    text = f"entropy has fallen from {d.before:.2f} to {d.now:.2f} nats a token"
    return Found(d.now, limit, text)


def spread(d: Drift) -> Found | None:
    """Reward models that disagree about these answers more than about the reference's: the policy is where they know
    little (Coste et al. 2023)."""
    limit = SPREAD * d.before
    if d.now <= limit:
        return None
    text = f"the reward models disagree by {d.now:.2f} about these answers, {d.before:.2f} at the start"
    return Found(d.now, limit, text)


def sampling_gap(d: Drift) -> Found | None:
    """Sampler and trainer that no longer give the same token the same probability."""
    limit = max(GAP * d.before, GAP_LEAST)
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
    "truncation": Detector("truncated", risen(TRUNCATED, "answers that are cut off"), share=True),
    "repetition": Detector("repetition", risen(REPETITION, "repeated word pairs"), share=True),
    "language_switch": Detector(
        "foreign", risen(FOREIGN, "answers in another language than their prompt"), share=True
    ),
    "nonsense": Detector("ref_nll", nonsense),
    "format_drift": Detector(
        "formatted",
        risen(FORMATTED, "answers with lists, headings, code or bold words"),
        share=True,
    ),
    "entropy_drop": Detector("entropy", entropy_drop),
    "ensemble_spread": Detector("spread", spread),
    "near_duplicates": Detector(
        "duplicates",
        risen(DUPLICATES, "answers that repeat the answer to another prompt"),
        share=True,
    ),
    "stock_phrase": Detector("stock", risen(STOCK, "prompts answered with the same phrase"), share=True),
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
        needed = math.ceil(RESPONSES / self.responses)
        if len(self.start) < max(BASELINE, needed):
            self.start.append(row)
            return []
        window = max(WINDOW, needed)
        self.recent = [*self.recent, row][-max(window, HISTORY) :]
        if len(self.recent) < max(needed, FEWEST):
            return []

        def moved(name: str, share: bool = False) -> Drift | None:
            return drift(self.start, self.recent, window, name, share=share)

        reward = moved(WHAT_HACKS_NEED)
        rises = reward is not None and reward.change > SURE_RISE * reward.se
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
