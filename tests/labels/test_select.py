"""What is worth a label: golden values, a planted disagreement, a random part, and a part that measures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from burnish.errors import DataError
from burnish.labels.select import acquisition, choose, is_reserved


def test_acquisition_golden() -> None:
    """Two models, one sure each way (margins 2 and -2); two unsure alike (0, 0); two sure alike (2, 2)."""
    margins = np.array([[2.0, -2.0], [0.0, 0.0], [2.0, 2.0]])
    assert acquisition(margins, "variance").tolist() == [4.0, 0.0, 0.0]
    p = 1 / (1 + math.exp(-2))
    sure = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    entropy = acquisition(margins, "entropy")
    assert entropy == pytest.approx([math.log(2), math.log(2), sure])
    assert acquisition(margins, "bald") == pytest.approx([math.log(2) - sure, 0.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_missing_score_is_an_error(bad: float) -> None:
    with pytest.raises(DataError, match="1 of 2 comparisons have no finite score"):
        acquisition(np.array([[0.0, bad], [1.0, 2.0]]), "bald")


def test_the_best_are_taken_beside_a_random_part() -> None:
    ids = [f"c{i}" for i in range(100)]
    scores = np.arange(100.0)
    taken = choose(ids, scores, 20, how="bald", random_share=0.3, seed=0)
    assert sorted(i for i, why in taken if why == "bald") == list(range(86, 100))
    drawn = [i for i, why in taken if why == "random"]
    assert len(drawn) == 6
    assert max(drawn) < 86
    assert len({i for i, _ in taken}) == 20
    assert taken == choose(ids, scores, 20, how="bald", random_share=0.3, seed=0)
    assert drawn != [
        i for i, why in choose(ids, scores, 20, how="bald", random_share=0.3, seed=1) if why == "random"
    ]
    assert len(choose(ids, None, 500, how="random", random_share=0.3, seed=0)) == 100


def test_a_share_is_reserved_for_good() -> None:
    share = sum(is_reserved(f"c{i}", 0.1) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert all(is_reserved(f"c{i}", 0.3) for i in range(500) if is_reserved(f"c{i}", 0.1))
