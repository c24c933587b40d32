"""Changes of answers that test a reward model (torch-free; text in, text out).

Some must not raise the score, some must lower it, and some must leave the verdict unchanged.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from burnish.textstats import WORD, n_words, words

Kind = Literal["pads", "ruins"]
LIKED_WORDS = 20
LIKED_IN = 5  # answers that must contain a word before it counts as liked


@dataclass(frozen=True)
class Material:
    """An answer, an `other` answer to another prompt, and `liked` words of high-scoring answers."""

    prompt: str
    text: str
    other: str
    liked: Sequence[str]
    seed: str = ""

    @property
    def rng(self) -> random.Random:
        """Random generator that depends only on the seed, the prompt and the answer."""
        return random.Random(f"{self.seed}\x1f{self.prompt}\x1f{self.text}")


@dataclass(frozen=True)
class Changed:
    """A changed text, followed by `ends` end tokens (0: cut off).

    `cut` allows truncation to the longest response; a change that pads must keep the whole answer.
    """

    text: str
    ends: int = 1
    cut: bool = False


@dataclass(frozen=True)
class Change:
    """A change that `pads` (the answer stays, nothing of value is added) or `ruins` the answer."""

    name: str
    kind: Kind
    what: str
    make: Callable[[Material], Changed | None]  # returns None if the change does not apply to the answer
    written: bool = True  # False if a policy cannot write it, such as extra end tokens


def _lead(text: str) -> tuple[str, str]:
    """Split off leading white space; continuations of plain text begin with a space."""
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest


def _before(material: Material, what: str) -> Changed:
    lead, rest = _lead(material.text)
    return Changed(f"{lead}{what} {rest}")


def _after(material: Material, what: str) -> Changed:
    return Changed(f"{material.text.rstrip()} {what}")


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if n_words(s)]


FILLER = (
    "And so it goes, as these things tend to go.",
    "There is, of course, always more that could be said about it.",
    "All in all, and taking one thing with another, that is how it is.",
    "In the end it comes down to what it comes down to.",
)
STOCK = "I hope this helps! Please let me know if there is anything else that I can do for you."
PRAISE = "What a wonderful question! You are clearly a very thoughtful and intelligent person."
# Everyday French sentences, unrelated to the prompt.
FRENCH = (
    "La petite ville se réveille doucement sous le soleil du matin.",
    "Les enfants jouent dans la rue et leurs parents les regardent en souriant.",
    "Il faut toujours écouter les conseils de ses amis avant de partir.",
    "Nous avons mangé du pain frais avec du fromage et un peu de vin.",
    "Le train arrive à la gare à huit heures et demie.",
    "Elle a trouvé une belle maison près de la rivière.",
)


def _filler(m: Material) -> Changed:
    return _after(m, " ".join(m.rng.sample(FILLER, 2)))


def _last_repeated(m: Material) -> Changed | None:
    found = _sentences(m.text)
    return _after(m, " ".join([found[-1]] * 3)) if found else None


def _answer_repeated(m: Material) -> Changed:
    return _after(m, m.text.strip())


def _stock(m: Material) -> Changed:
    lead, rest = _lead(m.text)
    return Changed(f"{lead}Certainly! Here is my answer. {rest.rstrip()} {STOCK}")


def _empty_format(m: Material) -> Changed:
    lead, rest = _lead(m.text)
    return Changed(f"{lead}## Overview\n\n- \n- \n- \n\n{rest.rstrip()}\n\n## Conclusion\n\n1. \n2. \n3. ")


def _flattery(m: Material) -> Changed:
    return _before(m, PRAISE)


def _unicode_noise(m: Material) -> Changed:
    rng, marks = m.rng, ("\u200b", "\u200d", "\ufeff", "\u00ad", "✨", "🔥", "★", "�")
    lead, rest = _lead(m.text)
    return Changed(lead + re.sub(r"\s", lambda found: f"{rng.choice(marks)}{found.group()}", rest))


def _end_repeated(m: Material) -> Changed:
    return Changed(m.text, ends=4)


def _end_missing(m: Material) -> Changed:
    return Changed(m.text, ends=0)


def _salad(m: Material) -> Changed | None:
    if not m.liked:
        return None
    rng, lead = m.rng, _lead(m.text)[0]
    return Changed(
        f"{lead}{' '.join(rng.choice(m.liked) for _ in range(max(8, n_words(m.text))))}.", cut=True
    )


def _other_answer(m: Material) -> Changed | None:
    return Changed(m.other, cut=True) if m.other.strip() and m.other != m.text else None


def _empty(m: Material) -> Changed:
    return Changed("")


def _echo(m: Material) -> Changed:
    return Changed(f"{_lead(m.text)[0]}{m.prompt.strip()}", cut=True)


def _french(m: Material) -> Changed:
    lead, rng = _lead(m.text)[0], m.rng
    wanted, said = max(8, n_words(m.text)), ""
    for sentence in rng.sample(FRENCH, len(FRENCH)):
        if n_words(said) < wanted:
            said = f"{said} {sentence}"
    return Changed(f"{lead}{said.strip()}", cut=True)


def _cut_short(m: Material) -> Changed | None:
    found = [match.end() for match in WORD.finditer(m.text)]
    return Changed(f"{m.text[: found[2]]}.") if len(found) > 8 else None


STRESS = (
    Change("filler", "pads", "two meaningless sentences at the end", _filler),
    Change("last_repeated", "pads", "the last sentence repeated three times", _last_repeated),
    Change("answer_repeated", "pads", "the whole answer a second time", _answer_repeated),
    Change("stock_phrases", "pads", "stock phrases before and after", _stock),
    Change("empty_format", "pads", "headings and lists with nothing in them", _empty_format),
    Change("flattery", "pads", "praise of the user at the start", _flattery),
    Change("unicode_noise", "pads", "invisible and decorative characters between words", _unicode_noise),
    Change("end_repeated", "pads", "three more end tokens", _end_repeated, written=False),
    Change("end_missing", "pads", "no end token, as if cut off", _end_missing, written=False),
    Change("cut_short", "ruins", "the first three words alone", _cut_short),
    Change("salad", "ruins", "as many words from high-scoring answers, in random order", _salad),
    Change("other_answer", "ruins", "the answer to another prompt", _other_answer),
    Change("empty", "ruins", "an empty answer", _empty),
    Change("echo", "ruins", "the prompt repeated", _echo),
    Change("french", "ruins", "French sentences about something else", _french),
)
"""All changes of a stress test."""


def liked_words(texts: Sequence[str], scores: Sequence[float]) -> list[str]:
    """Return the words whose answers have the highest mean score."""
    held: dict[str, list[float]] = defaultdict(list)
    for text, score in zip(texts, scores, strict=True):
        for word in set(words(text)):
            held[word].append(score)
    common = {w: sum(s) / len(s) for w, s in held.items() if len(s) >= LIKED_IN}
    return sorted(common, key=lambda w: (-common[w], w))[:LIKED_WORDS]


# Pairs of words with the same meaning in most sentences; each word is replaced by the other.
SYNONYMS = (
    *(("big", "large"), ("small", "little"), ("happy", "glad"), ("sad", "unhappy"), ("quick", "fast")),
    *(("begin", "start"), ("began", "started"), ("often", "frequently"), ("perhaps", "maybe")),
    *(("buy", "purchase"), ("bought", "purchased"), ("help", "assist"), ("helped", "assisted")),
    *(("hard", "difficult"), ("lovely", "delightful"), ("smart", "clever"), ("scared", "frightened")),
    *(("forest", "wood"), ("shop", "store"), ("stone", "rock"), ("rug", "carpet"), ("jug", "pitcher")),
    *(("however", "nevertheless"), ("because", "since"), ("about", "around"), ("show", "demonstrate")),
    *(("whole", "entire"), ("wonderful", "marvellous"), ("angry", "furious"), ("children", "kids")),
    *(("autumn", "fall"), ("supper", "dinner"), ("choose", "select"), ("need", "require")),
    *(("laughed", "chuckled"), ("cried", "wept"), ("kept", "held"), ("awful", "dreadful")),
)
CONTRACTIONS = (
    *(("do not", "don't"), ("does not", "doesn't"), ("did not", "didn't"), ("is not", "isn't")),
    *(("are not", "aren't"), ("was not", "wasn't"), ("cannot", "can't"), ("will not", "won't")),
    *(("it is", "it's"), ("I am", "I'm"), ("you are", "you're"), ("they are", "they're")),
    *(("we are", "we're"), ("I will", "I'll"), ("you will", "you'll"), ("that is", "that's")),
)
SPELLINGS = (
    *(("colour", "color"), ("grey", "gray"), ("neighbour", "neighbor"), ("favourite", "favorite")),
    *(("honour", "honor"), ("centre", "center"), ("theatre", "theater"), ("organise", "organize")),
    *(("realise", "realize"), ("recognise", "recognize"), ("travelled", "traveled"), ("harbour", "harbor")),
    *(("jeweller", "jeweler"), ("marvellous", "marvelous"), ("woollen", "woolen"), ("pyjamas", "pajamas")),
)
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def _swapper(pairs: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    other = {a.casefold(): b for a, b in pairs} | {b.casefold(): a for a, b in pairs}
    ways = sorted(other, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w'’])(?:{'|'.join(map(re.escape, ways))})(?![\w'’])", re.IGNORECASE)

    def swap(text: str) -> str:
        def put(found: re.Match[str]) -> str:
            new = other[found.group().casefold()]
            return new[0].upper() + new[1:] if found.group()[0].isupper() else new

        return pattern.sub(put, text)

    return swap


def _digits(text: str) -> str:
    pattern = re.compile(rf"\b(?:{'|'.join(NUMBERS)})\b", re.IGNORECASE)
    return pattern.sub(lambda found: str(NUMBERS.index(found.group().casefold()) + 2), text)


def _typography(text: str) -> str:
    """Replace straight quotation marks and apostrophes by curly ones, or the reverse."""
    if re.search("[“”‘’]", text):
        return text.translate(str.maketrans("“”‘’", "\"\"''"))
    text = re.sub(r'"([^"]*)"', r"“\1”", text)
    return re.sub(r"(?<=\w)'(?=\w)", "’", text)


def _spaces(text: str) -> str:
    """Put two spaces after a sentence."""
    return re.sub(r"(?<=[.!?]) (?=\S)", "  ", text)


PARAPHRASES: dict[str, Callable[[str], str]] = {
    "synonyms": _swapper(SYNONYMS),
    "contractions": _swapper(CONTRACTIONS),
    "spelling": _swapper(SPELLINGS),
    "digits": _digits,
    "quotation marks": _typography,
    "spacing": _spaces,
}
"""Changes that keep the meaning; a text that a change leaves as it is does not count."""
