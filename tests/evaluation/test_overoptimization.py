"""Worth against KL: both forms are recovered from what they made, peaks are told only within reach, and a pool whose
proxy is blind to something turns down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from burnish.evaluation.overoptimization import (
    best_of_kl,
    coefficients,
    doublings,
    fitted,
    of_pool,
    of_run,
    peak,
    pool_curves,
    predicted,
)
from burnish.report.overoptimized import as_report
from burnish.report.text_report import as_text


def test_kl_and_doublings_worked_by_hand() -> None:
    assert best_of_kl(1) == 0.0
    assert best_of_kl(4) == pytest.approx(math.log(4) - 0.75)
    assert doublings(1) == [1]
    assert doublings(37) == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_curve_gives_back_what_made_it(form: str) -> None:
    d = np.linspace(0.2, 3.0, 12)
    alpha, beta = coefficients(form, d, predicted(form, 1.3, 0.4, d))  # type: ignore[arg-type]
    assert (alpha, beta) == (pytest.approx(1.3), pytest.approx(0.4))


def test_peaks_are_where_the_curve_is_flat_and_none_is_told_that_was_not_nearly_seen() -> None:
    assert peak("best_of_n", 1.2, 0.4, 2.0) == pytest.approx(1.5)
    assert peak("best_of_n", 1.2, 0.4, 0.9) is None, "nobody has been there"
    assert peak("best_of_n", 1.2, -0.1, 2.0) is None, "it does not bend"
    at = peak("rl", 1.0, 0.5, 3.0)
    assert at == pytest.approx(math.e)
    d = np.array([at - 1e-4, at, at + 1e-4])
    values = predicted("rl", 1.0, 0.5, d)
    assert values[1] >= max(values[0], values[2])


def test_best_of_n_is_exact_and_starts_at_the_mean() -> None:
    proxy, worth = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[0.0, 4.0, 8.0, 0.0]])
    curves = pool_curves(proxy, worth, [1, 2, 4])
    # Best of 2 of 4: the third of four wins with probability 2 / 6, the second with 1 / 6, the first never.
    assert curves[0].tolist() == pytest.approx([0.0, 8 * 2 / 6 + 4 * 1 / 6 - 3, 0.0 - 3])


def pool(blind: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A proxy that sees quality and likes length without end, and a worth that likes it up to a point."""
    rng = np.random.default_rng(seed)
    quality, length = rng.normal(size=(2, 48, 128))
    proxy = quality + blind * length
    return proxy, quality - 0.5 * blind * np.maximum(length, 0) ** 2


def test_a_blind_proxy_turns_down_and_an_honest_one_does_not() -> None:
    proxy, worth = pool(1.0)
    found = of_pool(proxy, {"gold": worth}, seed=1)
    fit = found["fits"]["gold"]
    assert fit["kl"] is not None
    assert fit["kl_interval"][0] <= fit["kl"] <= fit["kl_interval"][1]
    assert found["curves"]["proxy"][-1]["value"] > found["curves"]["proxy"][2]["value"]
    proxy, worth = pool(0.0)
    honest = of_pool(proxy, {"gold": worth}, seed=1)
    assert honest["fits"]["gold"]["alpha"] > 0.5
    rising = [s["value"] for s in honest["curves"]["gold"]]
    assert rising == sorted(rising)


def test_updates_of_a_run() -> None:
    rng = np.random.default_rng(0)
    kl = np.linspace(0, 9, 36)
    gains = predicted("rl", 0.6, 0.5, np.sqrt(kl)) + rng.normal(0, 0.02, 36)
    fit = of_run(kl.tolist(), gains.tolist(), seed=0)
    assert fit is not None
    assert fit["kl"] == pytest.approx(math.exp(2 * (0.6 / 0.5 - 1)), rel=0.15)
    assert of_run([0.0, 0.1, 0.2], [0.0, 0.1, 0.2], seed=0) is None


def test_too_few_distances_are_refused() -> None:
    d = np.array([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="at least 4"):
        fitted("rl", lambda rows: (d, d), 3, 0)


def report(blind: float, target: float) -> dict:
    proxy, worth = pool(blind)
    found = of_pool(proxy, {"gold": worth}, seed=1)
    fit = found["fits"]["gold"]
    offer = None
    if fit["kl"] is not None and fit["kl_interval"] is not None:
        offer = {"kl": fit["kl"], "interval": fit["kl_interval"], "judge": "gold", "from": "best of n"}
    return {"run": "r", "kl_target": target, "judges": ["gold"], "pool": found, "ppo": None, "offered": offer}


def test_the_account_offers_the_peak_as_a_target_where_the_runs_lies_beyond_it() -> None:
    assert "set ppo.kl.target:" in as_text(as_report(report(1.0, 50.0)))
    near = as_text(as_report(report(1.0, 0.1)))
    assert "set ppo.kl.target:" not in near
    assert "worth peaks at" in near
    no_peak = report(0.0, 4.0) | {"offered": None}
    assert "worth has no peak near the observed KL" in as_text(as_report(no_peak))
