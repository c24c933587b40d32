"""D-optimal selection: the same as trying every candidate each time, by hand for two, and never twice the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from burnish.labels import design
from burnish.labels.design import d_optimal


def tried_all(x: Any, w: Any, n: int, past: Any = None, ridge: float = 1.0) -> list[int]:
    """Greedy design by inverting the information matrix before each pick."""
    scale = np.sqrt(np.square(x).sum() / len(x))
    rows = x / scale * np.sqrt(w)[:, None]
    known = ridge * np.eye(x.shape[1])
    if past is not None:
        known += (past / scale).T @ (past / scale)
    picked: list[int] = []
    for _ in range(n):
        gains = np.einsum("nd,de,ne->n", rows, np.linalg.inv(known), rows)
        gains[picked] = -1
        picked.append(int(gains.argmax()))
        known += np.outer(rows[picked[-1]], rows[picked[-1]])
    return picked


def candidates(seed: int, n: int = 400, width: int = 7) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)) * rng.uniform(0.1, 3, width), rng.uniform(0.01, 0.25, n)


def test_golden() -> None:
    """Rows (2, 0), (1.9, 0), (0, 1) of weight 1/4, scaled by sqrt(8.61 / 3) = 1.694: first (2, 0), of gain
    log(1 + 0.25 * 4 / 2.87) = 0.2991; then (0, 1), log(1 + 0.25 / 2.87) = 0.0836, for (1.9, 0) has left
    0.25 * 3.61 / 2.87 / 1.3484 = 0.2332, log 1.2332 = 0.2096: more. Third (0, 1)."""
    x = np.array([[2.0, 0.0], [1.9, 0.0], [0.0, 1.0]], dtype=np.float32)
    picked, gains = d_optimal(x, np.full(3, 0.25), 3)
    assert picked == [0, 1, 2]
    assert gains == pytest.approx([0.2991, 0.2096, 0.0836], abs=1e-3)
    # With little known beforehand a direction that has been seen is worth less than one that has not.
    assert d_optimal(x, np.full(3, 0.25), 2, ridge=0.01)[0] == [0, 2]
    assert d_optimal(x, np.full(3, 0.25), 1, past=np.array([[5.0, 0.0]], dtype=np.float32))[0] == [2]


@pytest.mark.parametrize("block", [8, 64, 1024])
def test_it_picks_what_trying_all_would(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "BLOCK", block)
    for seed in range(3):
        x, w = candidates(seed)
        past = x[:20]
        assert d_optimal(x.astype(np.float32), w, 40)[0] == tried_all(x, w, 40)
        assert d_optimal(x.astype(np.float32), w, 40, past=past.astype(np.float32))[0] == tried_all(
            x, w, 40, past
        )


@given(st.integers(0, 50), st.integers(1, 60))
def test_gains_fall_and_nothing_is_picked_twice(seed: int, n: int) -> None:
    x, w = candidates(seed, 60, 4)
    picked, gains = d_optimal(x.astype(np.float32), w, n)
    assert len(set(picked)) == n
    assert all(a >= b - 1e-5 for a, b in pairwise(gains))


def test_every_group_has_its_turn_before_one_has_two() -> None:
    x, w = candidates(1, 60)
    groups = [f"prompt {i % 10}" for i in range(60)]
    picked, _ = d_optimal(x.astype(np.float32), w, 25, groups=groups)
    assert len({groups[i] for i in picked[:10]}) == 10
    assert len(set(picked)) == 25


def test_it_tells_more_than_chance_or_uncertainty_alone() -> None:
    x, w = candidates(2, 500, 20)
    picked, gains = d_optimal(x.astype(np.float32), w, 30)
    rng = np.random.default_rng(0)
    scale = np.sqrt(np.square(x).sum() / len(x))
    rows = x / scale * np.sqrt(w)[:, None]

    def information(chosen: Any) -> float:
        return float(np.linalg.slogdet(np.eye(20) + rows[chosen].T @ rows[chosen])[1])

    assert information(picked) == pytest.approx(sum(gains), rel=1e-3)
    assert information(picked) > information(np.argsort(-w)[:30])
    assert all(information(picked) > information(rng.choice(500, 30, replace=False)) for _ in range(20))


def test_what_cannot_be_picked_from_is_said() -> None:
    x, w = candidates(0, 5)
    with pytest.raises(ValueError, match="n=6 of 5 candidates"):
        d_optimal(x.astype(np.float32), w, 6)
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        d_optimal(x.astype(np.float32), w, 2)
