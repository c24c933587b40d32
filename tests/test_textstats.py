"""Text figures, by hand."""

from __future__ import annotations

import pytest

from burnish import textstats as t


def test_words_keep_hyphens_and_apostrophes() -> None:
    assert t.words("It's a well-made cup, isn't it?") == ["It's", "a", "well-made", "cup", "isn't", "it"]
    assert t.n_words(" \n") == 0


def test_repeated_bigrams() -> None:
    # a b a b a: bigrams ab ba ab ba: two of four seen before
    assert t.repeated_ngram_share("a b A b a") == 0.5
    assert t.repeated_ngram_share("one") == 0.0


def test_language_abstains_on_short_text() -> None:
    assert t.language("le chat") == ("und", 0.0)
    assert t.language("The cat sat on the mat and it was happy.")[0] == "en"
    assert t.language("Le chat mange dans le jardin avec la petite fille.")[0] == "fr"


def test_scripts() -> None:
    assert t.non_latin_share("ab日本") == 0.5
    assert t.non_latin_share("café 12") == 0.0
    assert t.non_latin_share("") == 0.0


def test_compression_is_lower_for_repetition() -> None:
    assert t.compression_ratio("ab " * 100) < 0.1 < t.compression_ratio("the quick brown fox jumps over it")
    assert t.compression_ratio("") == 1.0


def test_list_lines() -> None:
    assert t.list_or_heading_share("# T\n- a\nplain\n1. b\n") == pytest.approx(0.75)
    assert t.list_or_heading_share("") == 0.0
