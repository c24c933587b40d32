"""Judged win rates: both orders averaged, ties half, intervals clustered by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from burnish.records import Interval, Prompt
from burnish.stats import paired_win_rate

Examiner = Callable[[Prompt, str, str], float]
"""(prompt, first, second) -> preference for the first, in [0, 1]."""


def head_to_head(
    judge: Examiner, prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]
) -> list[float]:
    """Return the preference for `ours` per prompt, averaged over both orders against position bias.

    Identical texts tie without a question. A judge that fails or leaves [0, 1] raises.
    """
    outcomes = []
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        if a == b:
            outcomes.append(0.5)
            continue
        forth, back = judge(prompt, a, b), judge(prompt, b, a)
        for value in (forth, back):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"a judge answered {value!r} for prompt {prompt.id}; it must be in [0, 1]")
        outcomes.append((forth + 1.0 - back) / 2)
    return outcomes


def win_rate(
    outcomes: Sequence[float], prompt_ids: Sequence[str], *, seed: int, draws: int, confidence: float
) -> Interval:
    """Return the mean outcome with a bootstrap interval over prompts."""
    return paired_win_rate(outcomes, prompt_ids, seed=seed, draws=draws, confidence=confidence)
