"""What the words of a batch show that no score does. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.textstats import language, repeated_ngram_share

SURE = 0.9  # probability of a language


def text_figures(prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """`repetition`: mean share of word pairs that have occurred before in their response. `foreign`: share of responses
    that are surely in another language than their prompt, among those where both are long enough to tell; left out
    where there is none."""
    assert len(prompts) == len(texts) > 0
    figures = {"repetition": sum(repeated_ngram_share(t) for t in texts) / len(texts)}
    told = [(language(prompt), language(text)) for prompt, text in zip(prompts, texts, strict=True)]
    sure = [a != b for (a, p), (b, q) in told if min(p, q) >= SURE]
    return figures | ({"foreign": sum(sure) / len(sure)} if sure else {})
