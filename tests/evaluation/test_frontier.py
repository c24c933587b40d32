"""Share of the frontier: sizes, interpolation, ratios by hand, and the cases without a share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from burnish.evaluation.frontier import (
    FAR,
    UNSURE,
    beyond,
    curves_of,
    frontier_at,
    share_of_frontier,
    share_of_updates,
    sizes,
)
from burnish.evaluation.overoptimization import best_of_kl


def test_sizes_are_four_to_an_octave_and_end_at_the_pool() -> None:
    assert sizes(1) == [1]
    assert sizes(7) == [1, 2, 3, 4, 5, 6, 7]
    assert sizes(18) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18]
    assert sizes(37)[-3:] == [28, 32, 37]


def test_the_frontier_is_linear_in_the_root_of_kl_between_sizes() -> None:
    ns, gains = [1, 2, 4], np.array([0.0, 0.5, 1.0])
    assert frontier_at(best_of_kl(2), ns, gains) == pytest.approx(0.5)
    assert frontier_at(-0.1, ns, gains) == 0.0
    # A quarter of best of 2's KL lies halfway to it in the root.
    assert frontier_at(best_of_kl(2) / 4, ns, gains) == pytest.approx(0.25)
    assert frontier_at(best_of_kl(4) + 1e-6, ns, gains) is None
    assert beyond(best_of_kl(4), ns) is None
    assert "beyond best of 4" in str(beyond(2.0, ns))


def test_the_size_that_the_message_proposes_reaches_the_kl() -> None:
    for kl in (0.9, 2.0, 4.0, 6.5):
        needed = int(str(beyond(kl, [1, 2])).rsplit(" ", 1)[1])
        assert best_of_kl(needed) > kl


def of(gains: np.ndarray, kls: np.ndarray, curves: np.ndarray, ns: list[int]) -> dict:
    return share_of_frontier(gains, kls, curves, ns, list(range(len(gains))), seed=3)


def test_a_share_by_hand() -> None:
    """Every prompt's frontier is 0.5 at best of 2 and 1 at best of 4; a policy gains 0.4 at best of 2's KL."""
    ns, kl = [1, 2, 4], best_of_kl(2)
    curves = np.tile([0.0, 0.5, 1.0], (6, 1))
    found = of(np.full(6, 0.4), np.full(6, kl), curves, ns)
    assert found["gain"]["value"] == pytest.approx(0.4)
    assert found["frontier"] == pytest.approx(0.5)
    assert found["share"]["value"] == pytest.approx(0.8)
    assert found["share"]["ci_low"] == pytest.approx(0.8)
    assert found["share"]["n"] == 6
    assert found["reason"] is None


def test_no_share_beyond_the_pool_or_of_a_frontier_that_may_be_flat() -> None:
    ns = [1, 2, 4]
    curves = np.tile([0.0, 0.5, 1.0], (6, 1))
    far = of(np.full(6, 0.4), np.full(6, 3.0), curves, ns)
    assert far["share"] is None
    assert far["frontier"] is None
    assert "pass --answers" in far["reason"]
    flat = curves * np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])[:, None]
    found = of(np.full(6, 0.4), np.full(6, best_of_kl(2)), flat, ns)
    assert found["share"] is None
    assert found["reason"] == UNSURE
    still = of(np.full(6, 0.0), np.zeros(6), curves, ns)
    assert still["share"] is None, "at no KL the frontier gains nothing"


def test_a_kl_near_the_end_of_the_pool_is_said_to_be_too_far() -> None:
    """The mean is inside the pool, but many resamples of these prompts are beyond it."""
    ns, reach = [1, 2, 4], best_of_kl(4)
    curves = np.tile([0.0, 0.5, 1.0], (8, 1))
    kls = np.array([0.0, 2 * reach - 0.02] * 4)
    found = of(np.full(8, 0.4), kls, curves, ns)
    assert found["frontier"] is not None
    assert found["share"] is None
    assert found["reason"] == FAR


def test_best_of_n_itself_has_a_share_of_one_and_intervals_cluster_by_prompt() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(40, 64)) * rng.uniform(0.5, 1.5, size=(40, 1))
    ns, curves = curves_of(proxy, proxy)
    best = curves[:, ns.index(8)]
    groups = [i // 2 for i in range(40)]
    found = share_of_frontier(best, np.full(40, best_of_kl(8)), curves, ns, groups, seed=1)
    assert found["share"]["value"] == pytest.approx(1.0)
    assert found["share"]["ci_high"] == pytest.approx(1.0), "gain and frontier share their prompts"
    assert found["share"]["n"] == 20
    # The ideal policy tilts a Gaussian score: its gain at a KL is sqrt(2 KL) sd, more than best of n has.
    kl = 0.5
    tilted = share_of_frontier(math.sqrt(2 * kl) * proxy.std(1), np.full(40, kl), curves, ns, groups, seed=1)
    assert 1.0 < tilted["share"]["value"] < 1.2


def test_the_last_updates_are_averaged() -> None:
    ns, curve = [1, 2, 4], np.array([0.0, 0.5, 1.0])
    kl = best_of_kl(2)
    found = share_of_updates([0.0, kl - 0.05, kl, kl + 0.05], [0.0, 0.1, 0.2, 0.3], ns, curve)
    assert found["updates"] == 3
    assert found["gain"] == pytest.approx(0.2)
    assert found["share"] == pytest.approx(0.4)
    assert share_of_updates([], [], ns, curve) is None
    assert share_of_updates([9.0], [1.0], ns, curve)["share"] is None
