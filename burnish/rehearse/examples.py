"""Example questions for a labelling page, made by the story grammar without any model."""

from __future__ import annotations

import random

from burnish.data.store import LabelStore
from burnish.records import Comparison, Prompt, Response
from burnish.rehearse.grammar import sample_story

PAIRS, FOURS, GOLD = 30, 10, 6


def add_examples(store: LabelStore, seed: int = 0) -> None:
    """Add thirty prompts with two stories each, ten with four, and six obvious gold questions."""
    rng = random.Random(f"examples-{seed}")
    prompts: dict[str, list[str]] = {}
    while len(prompts) < PAIRS + FOURS + GOLD:
        story = sample_story(rng)
        prompts.setdefault(story.prompt, [story.continuation])
    plain = [text for (text,) in prompts.values()]
    asked = []
    for number, (prompt, (own,)) in enumerate(prompts.items()):
        if number >= PAIRS + FOURS:
            shuffled = own.split()
            rng.shuffle(shuffled)
            sides = Response(own, "story"), Response(" ".join(shuffled), "shuffled")
            store.add_gold([(Comparison(Prompt(prompt), *sides), 1.0)])
            continue
        others = [t for t in plain if t != own]
        answers = [own, *rng.sample(others, 3 if number >= PAIRS else 1)]
        texts = [Response(text, "story") for text in dict.fromkeys(answers)]
        asked += [Comparison(Prompt(prompt), a, b) for i, a in enumerate(texts) for b in texts[i + 1 :]]
    store.add_comparisons(asked)
