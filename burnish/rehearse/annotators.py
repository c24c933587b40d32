"""Simulated annotators: they choose by the true preference, with faults that can be set."""

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
    """Probability that an annotator prefers the first response: a logistic of the difference in gold, to which its
    tastes (`taste`) and position bias are added; noise 0 decides by its sign."""
    lean = gold(prompt, first) - gold(prompt, second)
    lean += taste(first, config) - taste(second, config) + config.position_bias
    if config.noise == 0:
        return 0.5 if lean == 0 else float(lean > 0)
    return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, lean / config.noise))))


def taste(text: str, config: SimulatedConfig) -> float:
    """What an annotator likes about a response besides its worth."""
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
    """A crowd. An answer depends on the seed, the comparison and the annotator, not on the order of asking."""

    gold: Gold
    config: SimulatedConfig
    seed: int
    guidelines: str | None = None  # that its labels say they were given under
    crowd: str = ""  # ends their names: annotators of another seed are other people

    def is_spammer(self, annotator: int) -> bool:
        return random.Random(f"spam-{self.seed}-{annotator}").random() < self.config.spam_share

    def choose(self, prompt: Prompt, first: str, second: str, annotator: int, question: str) -> bool:
        """Whether this annotator, asked this question, picks the first response."""
        draw = random.Random(f"{self.seed}-{annotator}-{question}").random()
        if self.is_spammer(annotator):
            return draw < 0.5
        return draw < first_wins(prompt, first, second, self.gold, self.config)

    def label(self, comparison: Comparison, annotator: int) -> Label:
        """The annotator's label of a comparison."""
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
    """A judge for examinations: the share of `size` fresh annotators who pick the first response. Both orders
    are real questions, answered apart."""
    crowd = SimulatedAnnotators(gold, config, seed)

    def judge(prompt: Prompt, first: str, second: str) -> float:
        question = f"{prompt.id}\x1f{first}\x1f{second}"
        votes = [crowd.choose(prompt, first, second, a, question) for a in range(size)]
        return sum(votes) / size

    return judge
