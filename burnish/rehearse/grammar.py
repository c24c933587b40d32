"""A grammar for short stories: an opening (the prompt) and a continuation of varying mood."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

from burnish.records import Prompt
from burnish.rehearse import words as w

T = TypeVar("T")
FRENCH_SHARE = 0.03
MOODS = ("glad", "grim", "plain")
MOOD_WEIGHTS = (0.4, 0.4, 0.2)
MOOD_KEPT = 0.85


@dataclass(frozen=True)
class Story:
    """An English opening (`prompt`) and a `continuation`, without the space between them."""

    prompt: str
    continuation: str
    language: str


@dataclass(frozen=True)
class Cast:
    """The names and things in a story, which its sentences share."""

    name: str
    job: str
    animal: str
    thing: str
    place: str
    friend: str
    town: str


def sample_story(rng: random.Random) -> Story:
    """Sample a story; the continuation has two to four sentences (in French for about 3 %)."""
    cast = Cast(
        name=_pick(rng, w.NAMES),
        job=_pick(rng, w.JOBS),
        animal=_pick(rng, w.ANIMALS),
        thing=_pick(rng, OBJECTS),
        place=_pick(rng, w.PLACES),
        friend=f"{_pick(rng, w.NAMES)} {_pick(rng, w.SURNAMES)}",
        town=_pick(rng, w.TOWNS),
    )
    opening, present = _opening(rng, cast)
    fitting = [make for make, needs in SENTENCES if needs <= present]
    if rng.random() < FRENCH_SHARE:
        return Story(opening, _french(rng, cast), "fr")
    main = rng.choices(MOODS, MOOD_WEIGHTS)[0]
    count = rng.choices((2, 3, 4), (0.4, 0.4, 0.2))[0]
    sentences = []
    for make in rng.sample(fitting, count):
        # Most sentences have the main mood; a few have a random one.
        mood = main if rng.random() < MOOD_KEPT else rng.choice(MOODS)
        sentences.append(make(rng, cast, mood))
    return Story(opening, " ".join(sentences), "en")


def prompts(n: int, seed: int) -> list[Prompt]:
    """Return `n` distinct English openings."""
    rng = random.Random(f"prompts-{seed}")
    found: dict[str, None] = {}
    while len(found) < n:
        found[sample_story(rng).prompt] = None
    return [Prompt(text) for text in found]


@lru_cache(maxsize=256)
def _weights(n: int) -> tuple[float, ...]:
    """Return cumulative Zipf weights, so that few words are frequent, as in any language."""
    return tuple(accumulate(1.0 / (rank + 2.0) for rank in range(n)))


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    """Sample one of the options, where earlier ones are likelier."""
    return rng.choices(options, cum_weights=_weights(len(options)))[0]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _opening(rng: random.Random, c: Cast) -> tuple[str, frozenset[str]]:
    """Return an opening, and which parts of the cast it mentions."""
    what = f"{_pick(rng, w.ADJECTIVES if rng.random() < 0.8 else w.MATERIALS)} {c.thing}"
    where = f"{rng.choice(('near', 'by', 'behind', 'beside', 'outside'))} the {c.place}"
    if rng.random() < 0.3:
        where += f" of {c.town}"
    start = _pick(rng, w.OPENERS)
    forms = (
        (f"{start} {c.name} the {c.job} {_pick(rng, w.FINDS)} {_a(what)} {where}.", "job thing place"),
        (f"{start} {c.name} and {_a(c.animal)} met {where}.", "animal place"),
        (f"{c.name} the {c.job} had {_a(what)}.", "job thing"),
        (f"{start} {_a(c.animal)} brought {c.name} {_a(what)}.", "animal thing"),
    )
    text, present = rng.choices(forms, (0.5, 0.2, 0.15, 0.15))[0]
    return text, frozenset(present.split())


OBJECTS = (*w.OBJECTS, *w.MORE_OBJECTS)
PLAIN_VERBS = (*w.PLAIN_VERBS, *w.MORE_VERBS)
GLAD = (*w.GLAD_ADJECTIVES, *w.MORE_GLAD)
GRIM = (*w.GRIM_ADJECTIVES, *w.MORE_GRIM)


def _adjective(rng: random.Random, mood: str) -> str:
    return _pick(rng, {"glad": GLAD, "grim": GRIM, "plain": w.ADJECTIVES}[mood])


def _verb(rng: random.Random, mood: str) -> str:
    return _pick(rng, {"glad": w.GLAD_VERBS, "grim": w.GRIM_VERBS, "plain": PLAIN_VERBS}[mood])


def _noun(rng: random.Random, mood: str) -> str:
    return _pick(rng, {"glad": w.GLAD_NOUNS, "grim": w.GRIM_NOUNS, "plain": w.PLAIN_NOUNS}[mood])


def _adverb(rng: random.Random, mood: str) -> str:
    return _pick(rng, {"glad": w.GLAD_ADVERBS, "grim": w.GRIM_ADVERBS, "plain": w.ADVERBS}[mood])


def _felt(rng: random.Random, c: Cast, mood: str) -> str:
    return f"{c.name} was {_adjective(rng, mood)} and {_verb(rng, mood)} {_adverb(rng, mood)}."


def _thing_was(rng: random.Random, c: Cast, mood: str) -> str:
    return f"The {c.thing} was {_adjective(rng, mood)} and full of {_noun(rng, mood)}."


def _friend_came(rng: random.Random, c: Cast, mood: str) -> str:
    return f"Then {c.friend} of {c.town} came and {_verb(rng, mood)} with {c.name}."


def _animal_did(rng: random.Random, c: Cast, mood: str) -> str:
    return f"The {c.animal} {_verb(rng, mood)} because it was {_adjective(rng, mood)}."


def _later(rng: random.Random, c: Cast, mood: str) -> str:
    when = _pick(rng, w.TIMES)
    return f"{when[0].upper()}{when[1:]}, there was {_noun(rng, mood)} in the {c.place}."


def _job_said(rng: random.Random, c: Cast, mood: str) -> str:
    return f'"What {_a(_adjective(rng, mood))} {c.thing}," said the {c.job}.'


def _kept(rng: random.Random, c: Cast, mood: str) -> str:
    return f"{c.name} kept the {c.thing} and thought of {_noun(rng, mood)}."


def _gave(rng: random.Random, c: Cast, mood: str) -> str:
    return f"So {c.name} gave {c.friend} the {c.thing} and {_verb(rng, mood)}."


def _ate(rng: random.Random, c: Cast, mood: str) -> str:
    return f"They ate {_pick(rng, w.FOODS)} under the {_pick(rng, w.TREES)} and {_verb(rng, mood)}."


def _counted(rng: random.Random, c: Cast, mood: str) -> str:
    return f"For {_pick(rng, w.COUNTS)} days {c.name} was {_adjective(rng, mood)}."


Sentence = Callable[[random.Random, Cast, str], str]
SENTENCES: tuple[tuple[Sentence, frozenset[str]], ...] = (
    (_felt, frozenset()),
    (_thing_was, frozenset({"thing"})),
    (_friend_came, frozenset()),
    (_animal_did, frozenset({"animal"})),
    (_later, frozenset({"place"})),
    (_job_said, frozenset({"job", "thing"})),
    (_kept, frozenset({"thing"})),
    (_gave, frozenset({"thing"})),
    (_ate, frozenset()),
    (_counted, frozenset()),
)
"""Sentence forms, each with the parts of the cast that the opening must mention."""


def _french(rng: random.Random, c: Cast) -> str:
    """Return a continuation in French that keeps the names."""

    def noun() -> str:
        return _pick(rng, w.NOUNS_FR)

    def sentence() -> str:
        forms = (
            f"{c.name} {_pick(rng, w.VERBS_FR)} le {noun()} et le {noun()} {_pick(rng, w.COLOURS_FR)}.",
            f"Le {noun()} {_pick(rng, w.VERBS_FR)} avec le {noun()} {_pick(rng, w.TIMES_FR)}.",
            f"Il est {_pick(rng, w.COLOURS_FR)} et il {_pick(rng, w.VERBS_FR)} dans le {noun()}.",
            f"Dans le {noun()}, {c.name} {_pick(rng, w.VERBS_FR)} un {noun()} {_pick(rng, w.COLOURS_FR)}.",
        )
        return rng.choice(forms)

    return " ".join(sentence() for _ in range(rng.choice((2, 3))))
