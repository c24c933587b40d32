"""Judges with planted faults, for studies and tests: log-odds from a worth of answers that is known."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from burnish.labels.ledger import Answer
from burnish.records import Comparison, Prompt, Response
from burnish.textstats import n_words

NAMED = re.compile(r"Answer \d+ \d+ \w+")
ANSWER = re.compile(r"<answer_([ab])>\n(.*?)\n</answer_\1>", re.S)


def draw(*parts: object) -> float:
    """A number in [0, 1) that the parts decide."""
    return int(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:12], 16) / 16**12


def normal(*parts: object) -> float:
    """A standard normal number that the parts decide."""
    return random.Random(hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()).gauss(0, 1)


@dataclass
class PlantedJudge:
    """Its log-odds are the difference in `worth`, plus the faults: `position` for what stands first, `length` a word,
    `own` for an answer that holds `mark`, `claims` for one that says it is the better; `wording` is the sd of what
    depends on the template, `noise` of what depends on the comparison, `unsteady` of what is drawn anew every time."""

    worth: Callable[[str], float]
    position: float = 0.0
    length: float = 0.0
    own: float = 0.0
    mark: str = "indeed"
    claims: float = 0.0
    wording: float = 0.0
    noise: float = 0.0
    unsteady: float = 0.0
    seed: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return "planted"

    @property
    def settings(self) -> str:
        return str(self.seed)

    def value(self, text: str) -> float:
        return (
            self.worth(text)
            + self.length * n_words(text)
            + self.own * (self.mark in text)
            + self.claims * ("this is the better" in text)
        )

    def odds(self, question: str) -> float:
        sides = dict(ANSWER.findall(question))
        a, b = sides["a"], sides["b"]
        template = question.replace(a, "").replace(b, "")[:40]
        turn = 1.0 if a <= b else -1.0  # noise that turns with the sides is no bias for a place
        lean = self.value(a) - self.value(b) + self.position
        lean += turn * self.noise * normal("noise", self.seed, *sorted((a, b)))
        lean += turn * self.wording * normal("wording", self.seed, template, *sorted((a, b)))
        return lean + self.unsteady * normal("again", self.seed, question, self.asked[question])

    async def ask(self, question: str) -> Answer:
        self.asked[question] += 1
        return Answer(log_odds=self.odds(question), tokens_in=len(question) // 4, tokens_out=1)

    async def close(self) -> None:
        """Nothing is held."""


def worth(text: str) -> float:
    """In log-odds, normal with sd 1.5, by the name that an answer of `comparisons` gives itself: what is added to it
    changes nothing."""
    found = NAMED.search(text)
    return 1.5 * normal("worth", found[0] if found else text)


def comparisons(n: int, seed: int, own_share: float = 0.5) -> list[Comparison]:
    """Pairs of answers of 8 to 30 words by two models; the words of `mine` have a mark in them."""
    rng = random.Random(f"pairs-{seed}")

    def text(name: str, i: int) -> str:
        words = [
            rng.choice(["lorem", "ipsum", "dolor", "sit", "amet", "tempor", "magna"])
            for _ in range(rng.randint(4, 26))
        ]
        mark = " indeed" if name == "mine" else ""
        return f"Answer {seed} {i} {name}{mark} {' '.join(words)}."

    found = []
    for i in range(n):
        names = ["mine", "theirs"] if rng.random() < own_share else ["theirs", "others"]
        rng.shuffle(names)
        found.append(
            Comparison(Prompt(f"question {seed} {i}"), *(Response(text(name, i), name) for name in names))
        )
    return found
