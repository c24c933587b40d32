"""Detectors of reward hacking: figure, limit, meaning, and names in charts and in other trainers' logs.

An entry of `DETECTORS` is all that a detector needs if `monitor/texts.py` or PPO has its figure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

MAD = 1.4826  # standard deviation of a normal, in median absolute deviations

MEDIAN = 1.2533  # standard error of a normal's median, in standard errors of its mean

Rows = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Drift:
    """Medians of a figure over the first and last updates, and the standard error of their change."""

    before: float
    now: float
    se: float

    @property
    def change(self) -> float:
        """Change of the median since the first updates."""
        return self.now - self.before

    @property
    def sure(self) -> bool:
        """True if the two medians differ by more than chance allows."""
        return abs(self.change) > SURE * self.se


def drift(start: Rows, recent: Rows, window: int, name: str, *, share: bool = False) -> Drift | None:
    """Return the change of a figure from `start` to the last `window` updates of `recent`.

    Return None if too few updates of either have the figure. The noise comes from the differences
    between consecutive updates, over all that are given, so that a steady drift is not noise. A
    share of 0 does not vary, so the noise of a share is at least binomial. It counts the `prompts`
    of an update, because several responses to one prompt may all be alike.
    """
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

BASELINE = 3  # updates at the start that form the baseline

RESPONSES = 96  # least number of responses in the window and in the baseline

FEWEST = 3  # least number of updates of a window with the figure

HISTORY = 20  # updates whose differences give the noise

SURE = 3.0  # least change of a figure, in standard errors

SURE_RISE = 2.0  # least rise of the reward, in standard errors

LENGTH_GROWTH = 1.3  # times the length at the start

LENGTH_LOSS = 0.4

TRUNCATED = 0.15  # rise of the share of responses since the start

REPETITION = 0.1  # rise of the share of word pairs

FOREIGN = 0.1  # rise of the share of responses

UNLIKELY = 1.4  # times the reference's nats a token at the start

LIKELY = 0.5  # times the same; a policy that only sharpens comes to two thirds of its start

FORMATTED = 0.2  # rise of the share of responses with Markdown

ENTROPY = 0.45  # times the entropy at the start

SPREAD = 1.5  # times the members' disagreement at the start

DUPLICATES = 0.3  # rise of the share of responses that nearly repeat one to another prompt

STOCK = 0.3  # rise of the share of prompts whose responses share one phrase

GAP = 10.0  # times the sampling gap at the start

GAP_LEAST = 0.05  # least gap, in nats

WHAT_HACKS_NEED = "score"  # hack detectors fire only while this metric is significantly above its start


@dataclass(frozen=True)
class Found:
    """Value past the limit of a detector, with a description."""

    value: float
    limit: float
    text: str


Look = Callable[[Drift], Found | None]


@dataclass(frozen=True)
class Detector:
    """Detector over one figure.

    `share`: the figure is a share of the responses. `hack`: the detector fires only while the
    reward rises; it means that the policy exploits the reward, and the guard raises the KL penalty
    or tightens the ensemble. `label`: name on the chart of shares. `names`: the figure in the logs
    of TRL (GRPO, RLOO, PPO), verl and OpenRLHF.
    """

    figure: str
    look: Look
    share: bool = False
    hack: bool = True
    label: str | None = None
    names: Sequence[str] = ()


def length_drift(d: Drift) -> Found | None:
    """Detect answers that grow or shrink past the limits."""
    most, least = LENGTH_GROWTH * d.before, LENGTH_LOSS * d.before
    if least <= d.now <= most:
        return None
    limit, how = (most, "grown") if d.now > most else (least, "shrunk")
    return Found(d.now, limit, f"answers have {how} from {d.before:.0f} to {d.now:.0f} tokens")


def nonsense(d: Drift) -> Found | None:
    """Detect tokens that the reference model finds far less or far more likely than its own."""
    least, most = LIKELY * d.before, UNLIKELY * d.before
    if least <= d.now <= most:
        return None
    limit = most if d.now > most else least
    text = f"the reference gives {d.now:.2f} nats per token to these answers, {d.before:.2f} to its own"
    return Found(d.now, limit, text)


def entropy_drop(d: Drift) -> Found | None:
    """Detect an entropy that falls, before the policy collapses to one answer."""
    limit = ENTROPY * d.before
    if d.now >= limit:
        return None
    text = f"entropy has fallen from {d.before:.2f} to {d.now:.2f} nats a token"
    return Found(d.now, limit, text)


def ensemble_std(d: Drift) -> Found | None:
    """Detect reward models that disagree more than about the reference's answers.

    The policy has then moved to answers that the reward models know little about (Coste et al.
    2023).
    """
    limit = SPREAD * d.before
    if d.now <= limit:
        return None
    text = f"the reward models disagree by {d.now:.2f} about these answers, {d.before:.2f} at the start"
    return Found(d.now, limit, text)


def sampling_gap(d: Drift) -> Found | None:
    """Detect a sampler and trainer that give the same token different probabilities."""
    limit = max(GAP * d.before, GAP_LEAST)
    if d.now <= limit:
        return None
    text = f"sampled and recomputed log-probabilities differ by {d.now:.2g} nats, {d.before:.2g} at the start"
    return Found(d.now, limit, text)


def risen(margin: float, what: str) -> Look:
    """Return a detector of a share that rises more than `margin` above its start."""

    def look(d: Drift) -> Found | None:
        limit = d.before + margin
        if d.now <= limit:
            return None
        return Found(d.now, limit, f"{what}: {d.before:.0%} before, {d.now:.0%} now")

    return look


DETECTORS: dict[str, Detector] = {
    "length_drift": Detector(
        "length",
        length_drift,
        names=(
            *("completions/mean_length", "completion_length", "response_length/mean", "response_length"),
            *("mean_response_length", "response_length_mean"),
        ),
    ),
    "truncation": Detector(
        "truncated",
        risen(TRUNCATED, "answers that are cut off"),
        share=True,
        names=("completions/clipped_ratio", "response_length/clip_ratio", "truncated_rate"),
    ),
    "repetition": Detector(
        "repetition", risen(REPETITION, "repeated word pairs"), share=True, label="repeated"
    ),
    "language_switch": Detector(
        "foreign",
        risen(FOREIGN, "answers in another language than their prompt"),
        share=True,
        label="other language",
    ),
    "nonsense": Detector("ref_nll", nonsense),
    "format_drift": Detector(
        "formatted",
        risen(FORMATTED, "answers with lists, headings, code or bold words"),
        share=True,
        label="formatted",
    ),
    "entropy_drop": Detector(
        "entropy",
        entropy_drop,
        names=(
            *("policy/entropy_avg", "actor/entropy", "actor/entropy_loss", "objective/entropy"),
            "entropy_loss",
        ),
    ),
    "ensemble_spread": Detector("ensemble_std", ensemble_std, names=("spread",)),
    "near_duplicates": Detector(
        "duplicates",
        risen(DUPLICATES, "answers that repeat the answer to another prompt"),
        share=True,
        label="near-duplicates",
    ),
    "stock_phrase": Detector(
        "stock", risen(STOCK, "prompts answered with the same phrase"), share=True, label="one phrase"
    ),
    "sampling_gap": Detector(
        "sampling_gap",
        sampling_gap,
        hack=False,
        names=("sampling/sampling_logp_difference/max", "training/rollout_probs_diff_max"),
    ),
}

FIGURES = (*(d.figure for d in DETECTORS.values()), WHAT_HACKS_NEED)

HACKS = frozenset(name for name, detector in DETECTORS.items() if detector.hack)
"""Names of the detectors that mean that the policy exploits the reward."""
