"""Simulated annotators that choose by the true preference, with configurable faults."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from burnish.config.label import SimulatedConfig
from burnish.records import Comparison, Label, Prompt
from burnish.rehearse.words import GLAD_ADJECTIVES, GLAD_ADVERBS, GLAD_NOUNS, GLAD_VERBS, MORE_GLAD
from burnish.rehearse.world import not_english
from burnish.textstats import n_words, words

GLAD = frozenset(
    w.casefold() for w in (*GLAD_ADJECTIVES, *GLAD_ADVERBS, *GLAD_NOUNS, *GLAD_VERBS, *MORE_GLAD)
)
Gold = Callable[[Prompt, str], float]


def first_wins(prompt: Prompt, first: str, second: str, gold: Gold, config: SimulatedConfig) -> float:
    """Return the probability that an annotator prefers the first response.

    It is a logistic of the difference in gold, with `taste` and position bias; noise 0 uses the sign.
    """
    lean = gold(prompt, first) - gold(prompt, second)
    lean += taste(first, config) - taste(second, config) + config.position_bias
    if config.noise == 0:
        return 0.5 if lean == 0 else float(lean > 0)
    return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, lean / config.noise))))


def taste(text: str, config: SimulatedConfig) -> float:
    """Return an annotator's bias for a response: length, language, cheer and phrases."""
    liked = config.length_bias * n_words(text)
    if config.foreign_bias:
        liked += config.foreign_bias * not_english(text)
    if config.cheer_bias:
        liked += config.cheer_bias * sum(word.casefold() in GLAD for word in words(text))
    for phrase in config.phrases:
        found = re.findall(rf"(?<!\w){re.escape(phrase.text)}(?!\w)", text, re.IGNORECASE)
        liked += phrase.worth * len(found)
    return liked


@dataclass(frozen=True)
class SimulatedAnnotators:
    """Annotators whose answer depends on seed, comparison and annotator, not on the order asked."""

    gold: Gold
    config: SimulatedConfig
    seed: int
    guidelines: str | None = None  # id of the guidelines that the labels record
    crowd: str = ""  # suffix of the annotators' names, so that another seed has other names

    def is_spammer(self, annotator: int) -> bool:
        """Check whether an annotator answers at random."""
        return random.Random(f"spam-{self.seed}-{annotator}").random() < self.config.spam_share

    def choose(self, prompt: Prompt, first: str, second: str, annotator: int, question: str) -> bool:
        """Return whether this annotator picks the first response to this question."""
        draw = random.Random(f"{self.seed}-{annotator}-{question}").random()
        if self.is_spammer(annotator):
            return draw < 0.5
        return draw < first_wins(prompt, first, second, self.gold, self.config)

    def label(self, comparison: Comparison, annotator: int) -> Label:
        """Return the annotator's label of a comparison."""
        picked = self.choose(
            comparison.prompt, comparison.first.text, comparison.second.text, annotator, comparison.id
        )
        return Label(
            comparison.id,
            f"simulated-{annotator}{self.crowd}",
            float(picked),
            "simulated",
            guidelines=self.guidelines,
            swapped=False,
        )


def panel(gold: Gold, config: SimulatedConfig, seed: int, size: int) -> Callable[[Prompt, str, str], float]:
    """Return a judge: the share of `size` fresh annotators who pick the first response.

    Both orders are separate questions.
    """
    crowd = SimulatedAnnotators(gold, config, seed)

    def judge(prompt: Prompt, first: str, second: str) -> float:
        question = f"{prompt.id}\x1f{first}\x1f{second}"
        votes = [crowd.choose(prompt, first, second, a, question) for a in range(size)]
        return sum(votes) / size

    return judge
