"""Plans: a curve that is recovered, an interval that holds, prices and worths by hand."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.commands.label_plan import learned
from burnish.labels.plan import Curve, examinations, fit_curve, mixes, worth_of_judge

SIZES = [25, 50, 100, 200, 400]


def curves(noise: float, seed: int = 0, splits: int = 24) -> np.ndarray:
    """0.85 - n^-0.5, and noise of every split."""
    rng = np.random.default_rng(seed)
    x = np.array(SIZES, dtype=float)
    return (
        0.85 - x**-0.5 + noise * rng.normal(size=(splits, 1)) + noise / 2 * rng.normal(size=(splits, len(x)))
    )


def test_a_curve_without_noise_is_recovered() -> None:
    curve = fit_curve(SIZES, curves(0.0), 1 / 3)
    assert curve.mean == pytest.approx((0.85, 1.0, 0.5), abs=1e-3)
    assert curve.at(10_000).value == pytest.approx(0.84, abs=1e-3)
    assert curve.at(10_000).ci_high - curve.at(10_000).ci_low < 1e-3
    found = curve.labels_for(0.80)
    assert found["value"] == pytest.approx(400, rel=0.05)  # 0.05 = n^-0.5
    assert curve.labels_for(0.86)["value"] is None


def test_curves_of_any_shape_are_fitted() -> None:
    """Steep ones, and ones below chance: a single split may look like either."""
    for row in (
        [0.5, 0.97, 0.97, 0.97, 0.97],
        [0.45, 0.4, 0.47, 0.44, 0.46],
        [0.9, 0.8, 0.7, 0.6, 0.5],
        [1.0] * 5,
    ):
        assert 0.4 < fit_curve(SIZES, np.array([row] * 3), 1 / 3).at(1000).value <= 1.0


def test_the_interval_grows_with_the_distance_and_with_noise() -> None:
    curve, louder = (fit_curve(SIZES, curves(noise), 1 / 3) for noise in (0.01, 0.03))

    def width(c: Curve, n: float) -> float:
        return c.at(n).ci_high - c.at(n).ci_low

    assert width(curve, 400) < width(curve, 40_000)
    assert width(curve, 400) < width(louder, 400)
    found = curve.labels_for(0.8)
    assert found["low"] < found["value"]
    assert found["high"] is None or found["value"] < found["high"]


def test_the_interval_is_corrected_for_what_splits_share() -> None:
    """Two splits at 0.6 and 0.8, a third held out: variance .02, (1/2 + 1/3) * .02 = .016667, root .1291."""
    flat = [(0.6, 0.0, 0.5), (0.8, 0.0, 0.5)]
    found = Curve((0.7, 0.0, 0.5), flat, 1 / 3).at(100, confidence=0.5)
    assert found.value == 0.7
    assert found.ci_high - found.value == pytest.approx(0.1291, abs=1e-3)  # t_1 at one half is 1
    assert fit_curve(SIZES, curves(0.0)[:3], 1 / 3)
    with pytest.raises(ValueError, match="2 numbers of labels and 24 splits"):
        fit_curve(SIZES[:2], curves(0.0)[:, :2], 1 / 3)


def test_what_a_judge_is_worth_golden() -> None:
    """Agreement .8 with people of whom two agree on .82: ((2 * .8 - 1) / (2 * .82 - 1))^2 = (.6 / .64)^2."""
    assert worth_of_judge(0.8, 0.82) == pytest.approx(0.8789, abs=1e-4)
    assert worth_of_judge(0.75, 0.75) == pytest.approx(1.0), "whoever agrees as a person does is worth one"
    assert worth_of_judge(0.8, None) == pytest.approx(0.36)
    assert worth_of_judge(0.5, 0.82) == 0.0
    assert worth_of_judge(0.3, 0.82) == 0.0


def test_mixes_golden() -> None:
    """1,000 labels, half by a judge at a cent whose labels are worth half of people's at a dollar."""
    rows = {row["judge"]: row for row in mixes(1000, 0.5, 0.01, 1.0, None)}
    assert (rows[0.0]["cost"], rows[0.0]["worth"]) == (1000.0, 1000.0)
    assert rows[0.5]["cost"] == pytest.approx(505.0)
    assert rows[0.5]["worth"] == pytest.approx(750.0)
    assert rows[1.0]["worth"] == pytest.approx(500.0)
    assert rows[1.0]["accuracy"] is None


def test_smaller_win_rates_need_more_prompts() -> None:
    needed = [row["prompts"] for row in examinations()]
    assert needed == sorted(needed, reverse=True)
    assert 750 < {row["win_rate"]: row["prompts"] for row in examinations()}[0.55] < 820


def test_learning_goes_up_on_what_can_be_learned_and_not_on_noise() -> None:
    rng = np.random.default_rng(0)
    direction, x = rng.normal(size=12), rng.normal(size=(500, 12))
    odds = x @ direction / 2
    signed = x * np.where(rng.random(500) < 1 / (1 + np.exp(-odds)), 1.0, -1.0)[:, None]
    groups = [str(i // 2) for i in range(500)]
    sizes, accuracies, held_out = learned(signed, groups, 0)
    assert held_out == pytest.approx(1 / 3)
    assert accuracies.shape == (24, len(sizes))
    assert accuracies[:, -1].mean() > accuracies[:, 0].mean() + 0.05
    noise = x * rng.choice([-1.0, 1.0], 500)[:, None]
    assert abs(learned(noise, groups, 0)[1][:, -1].mean() - 0.5) < 0.05
    again = learned(signed, groups, 0)[1]
    assert (again == accuracies).all()
