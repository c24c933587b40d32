"""Text figures of a batch that show hacking where the score does not; torch-free."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations

from burnish.textstats import is_formatted, language, ngrams, non_latin_share, repeated_ngram_share, words

SURE = 0.9  # least probability of a language
SAME = 0.7  # Jaccard index of the word triples of two answers that makes them near-duplicates
PHRASE = 5  # words
MOST = 256  # most answers that are compared with one another


def text_figures(prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return shares over a batch, and `prompts`, the number of different prompts.

    - `repetition`: mean share of word pairs that have occurred before in their response
    - `formatted`: responses with Markdown's lists, headings, code or bold words
    - `foreign`: responses that are surely in another language or script than their prompt, among
      those where both are long enough to tell
    - `duplicates`: responses that say nearly the same as one to another prompt
    - `stock`: prompts that are answered with the most frequent phrase of five words

    A share that cannot be measured is left out.
    """
    assert len(prompts) == len(texts) > 0
    n = len(texts)
    figures = {
        "repetition": sum(repeated_ngram_share(t) for t in texts) / n,
        "formatted": sum(is_formatted(t) for t in texts) / n,
        "prompts": float(len(set(prompts))),
    }
    known = [
        foreign for p, t in zip(prompts, texts, strict=True) if (foreign := in_another(p, t)) is not None
    ]
    if known:
        figures["foreign"] = sum(known) / len(known)
    if len(set(prompts)) > 1:
        some = range(0, n, -(-n // MOST))
        asked, said = [prompts[i] for i in some], [texts[i] for i in some]
        figures["duplicates"] = near_duplicates(asked, said)
        figures["stock"] = stock_phrase(asked, said)
    return figures


def in_another(prompt: str, text: str) -> bool | None:
    """Return whether prompt and response surely differ in language or script; None if unknown."""
    ours, theirs = non_latin_share(prompt), non_latin_share(text)
    if (ours < 1 - SURE and theirs > SURE) or (theirs < 1 - SURE and ours > SURE):
        return True
    (a, p), (b, q) = language(prompt), language(text)
    return a != b if min(p, q) >= SURE else None


def near_duplicates(prompts: Sequence[str], texts: Sequence[str]) -> float:
    """Return the share of responses that nearly repeat a response to another prompt.

    Responses are compared by Jaccard's index of their word triples, or of the whole text if it is
    shorter. Empty responses are not duplicates.
    """
    grams = []
    for text in texts:
        folded = [w.casefold() for w in words(text)]
        grams.append(set(ngrams(folded, 3)) or ({tuple(folded)} if folded else set()))
    who = defaultdict(list)
    for i, own in enumerate(grams):
        for gram in own:
            who[gram].append(i)
    shared: Counter[tuple[int, int]] = Counter()
    for rows in who.values():
        shared.update(combinations(rows, 2))
    twice = set()
    for (i, j), both in shared.items():
        if prompts[i] != prompts[j] and both >= SAME * (len(grams[i]) + len(grams[j]) - both):
            twice |= {i, j}
    return len(twice) / len(texts)


def stock_phrase(prompts: Sequence[str], texts: Sequence[str]) -> float:
    """Return the largest share of prompts whose first responses share one phrase.

    A phrase that the prompt itself contains does not count.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    first = dict(zip(reversed(prompts), reversed(texts), strict=True))
    for prompt, text in first.items():
        own, given = ([w.casefold() for w in words(t)] for t in (text, prompt))
        counts.update(set(ngrams(own, PHRASE)) - set(ngrams(given, PHRASE)))
    return max(counts.values(), default=0) / len(first)
