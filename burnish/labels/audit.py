"""Audit of an AI judge's biases and of its consistency.

It covers position, padding, self-preference, the wording of the question, and verdicts that turn.
Position, verbosity and self-preference follow Zheng et al. 2023 (sections 3.3 and 4). Each
statistic is one mean over comparisons, tested against its value without that bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from burnish.labels.hypothesis_tests import Tested, mean_against, share_against
from burnish.labels.judge import preference, side
from burnish.labels.ledger import Answer
from burnish.records import Comparison
from burnish.textstats import n_words

TURNS = 0.05  # share of verdicts that may change on repetition: no model always answers alike

Both = Mapping[str, tuple[Answer, Answer]]
"""By comparison: the judge's answers in its order, and with the sides swapped."""


def verdict(both: Both, comparison: Comparison) -> float | None:
    """Return the first side's preference over both orders; None if abstained or not asked."""
    found = both.get(comparison.id)
    return None if found is None else preference(*found)


def firm(value: float | None) -> float | None:
    """Return 1 for the first side, 0 for the second, or None for a tie or an abstention."""
    return None if value is None or value == 0.5 else float(value > 0.5)


def position(both: Both, asked: Sequence[Comparison], seed: int = 0) -> Tested | None:
    """Test how often the answer shown first wins over both orders; one half without bias."""
    rows = []
    for c in asked:
        pair = [side(a) for a in both.get(c.id, ()) if a.why is None]
        known = [s for s in pair if s is not None]
        if len(known) == 2:
            rows.append((sum(known) / 2, c.prompt.group))
    return mean_against("position", "the answer shown first wins", *_columns(rows), null=0.5, seed=seed)


def padding(name: str, what: str, both: Both, asked: Sequence[Comparison], seed: int = 0) -> Tested | None:
    """Test how often an answer with worthless text added (the second side) beats the original.

    A judge without this bias is at one half or below.
    """
    values = [(verdict(both, c), c.prompt.group) for c in asked]
    rows = [(1.0 - v, group) for v, group in values if v is not None]
    return mean_against(name, what, *_columns(rows), null=0.5, side="more", seed=seed)


def verbosity(
    both: Both, asked: Sequence[Comparison], people: Mapping[str, float], seed: int = 0
) -> Tested | None:
    """Test how much more often than people the judge prefers the longer answer (in words).

    Both judge the same comparisons. Longer answers may well be better, so this needs people's
    labels.
    """
    rows = []
    for c in asked:
        ours, theirs = firm(verdict(both, c)), firm(people.get(c.id))
        a, b = n_words(c.first.text), n_words(c.second.text)
        if a != b and ours is not None and theirs is not None:
            rows.append(((ours == (a > b)) - float(theirs == (a > b)), c.prompt.group))
    return mean_against(
        "verbosity", "prefers the longer answer more often than people do", *_columns(rows), seed=seed
    )


def self_preference(
    both: Both, asked: Sequence[Comparison], people: Mapping[str, float], own: str, seed: int = 0
) -> Tested | None:
    """Test how much further than people the judge prefers answers whose source is `own`."""
    rows = []
    for c in asked:
        ours, theirs = verdict(both, c), people.get(c.id)
        if ours is None or theirs is None or (c.first.source == own) == (c.second.source == own):
            continue
        lean = ours - theirs
        rows.append((lean if c.first.source == own else -lean, c.prompt.group))
    return mean_against(
        "self-preference", f"prefers answers of {own} further than people do", *_columns(rows), seed=seed
    )


def turned(one: Both, other: Both, asked: Sequence[Comparison]) -> dict[str, bool]:
    """Return whether the verdict turned between runs, by comparison with firm verdicts in both."""
    found = {}
    for c in asked:
        before, after = firm(verdict(one, c)), firm(verdict(other, c))
        if before is not None and after is not None:
            found[c.id] = before != after
    return found


def stability(again: Mapping[str, bool], asked: Sequence[Comparison]) -> Tested | None:
    """Test how often a verdict turns when the same question is asked again; 5 % may turn."""
    what = "verdicts that change when the question is repeated"
    groups = [c.prompt.group for c in asked if c.id in again]
    hits = [float(again[c.id]) for c in asked if c.id in again]
    return share_against("stability", what, hits, groups, most=TURNS)


def wording(
    reworded: Mapping[str, bool], again: Mapping[str, bool], asked: Sequence[Comparison], seed: int = 0
) -> Tested | None:
    """Test how much more often a verdict turns with the wording than on asking again."""
    rows = [
        (float(reworded[c.id]) - float(again[c.id]), c.prompt.group)
        for c in asked
        if c.id in reworded and c.id in again
    ]
    what = "verdicts that change with the rubric's wording, beyond those that change on repetition"
    return mean_against("wording", what, *_columns(rows), side="more", seed=seed)


def _columns(rows: Sequence[tuple[float, str]]) -> tuple[list[float], list[str]]:
    return [value for value, _ in rows], [group for _, group in rows]
