"""Torch-free text statistics for stress tests, monitors and evaluation; shares are in [0, 1]."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
MIN_WORDS_FOR_LANGUAGE = 4
LANGUAGES = ("en", "fr", "de", "es", "it", "nl", "pt")


def words(text: str) -> list[str]:
    """Return the words of a text with their case and their inner hyphens and apostrophes."""
    return WORD.findall(text)


def n_words(text: str) -> int:
    """Return the number of words in a text."""
    return len(words(text))


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of n consecutive items."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def repeated_ngram_share(text: str, n: int = 2) -> float:
    """Return the share of word n-grams (case folded) that repeat an earlier one; 0 without any."""
    grams = ngrams([w.casefold() for w in words(text)], n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LANGUAGES))
    return identifier


@lru_cache(maxsize=1 << 14)  # each answer to a prompt asks for the language of the prompt
def language(text: str) -> tuple[str, float]:
    """Return the likeliest of `LANGUAGES` and its probability; ("und", 0.0) under four words."""
    if n_words(text) < MIN_WORDS_FOR_LANGUAGE:
        return "und", 0.0
    name, probability = _identifier().classify(text)
    return str(name), float(probability)


def non_latin_share(text: str) -> float:
    """Return the share of letters outside the Latin script; 0 for a text without letters."""
    letters = [c for c in text if c.isalpha()]
    return sum(ord(c) > 0x24F for c in letters) / len(letters) if letters else 0.0


def compression_ratio(text: str) -> float:
    """Return zlib bytes per byte: low for repetitive, about 1 or more for short or random text."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 1.0


MARKUP = re.compile(r"^\s*(?:[-*•]\s|\d+[.)]\s|#{1,6}\s|```|\|.*\|)|\*\*[^*\n]+\*\*|`[^`\n]+`", re.M)


def is_formatted(text: str) -> bool:
    """Check whether a text has a Markdown list item, heading, table row, code or bold words."""
    return MARKUP.search(text) is not None


def list_or_heading_share(text: str) -> float:
    """Return the share of non-empty lines that are list items or headings in Markdown."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = sum(bool(re.match(r"\s*(?:[-*•]|\d+[.)]|#{1,6})\s", line)) for line in lines)
    return marked / len(lines) if lines else 0.0
