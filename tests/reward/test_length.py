"""Length corrections: worked by hand, safe on both sides of zero, and on the scale they began with."""

from __future__ import annotations

import json

import pytest
import torch

from burnish.errors import TrainingError
from burnish.reward.length import How, LengthCorrection, fit_correction
from burnish.stats import pearson

HOWS: list[How] = ["sqrt", "regress", "penalty"]


def test_sqrt_golden() -> None:
    """Zero at -1, typical length 16: (3 + 1) / sqrt(64 / 16) = 2; below zero (-2 + 1) * sqrt(64 / 16) = -2."""
    fit = LengthCorrection("sqrt", zero=-1.0, shortest=4.0, typical=16.0)
    scores = torch.tensor([3.0, -2.0, 3.0, 3.0])
    assert fit.apply(scores, [64, 64, 4, 1]).tolist() == [2.0, -2.0, 8.0, 8.0]


@pytest.mark.parametrize("score", [-3.0, -1.01, -0.99, 2.0])
def test_with_sqrt_longer_is_never_better_and_shorter_than_the_shortest_gains_nothing(score: float) -> None:
    fit = LengthCorrection("sqrt", zero=-1.0, shortest=4.0, typical=16.0)
    values = fit.apply(torch.full((5,), score), [1, 4, 9, 30, 200]).tolist()
    assert values[0] == values[1]
    assert values[1:] == sorted(values[1:], reverse=True)
    assert values[1] > values[-1]


def test_plain_division_would_pay_for_length_below_zero() -> None:
    """The trap that the shift and the product are there for."""
    naive = [-1.0 / (length**0.5) for length in (4, 100)]
    assert naive[1] > naive[0]


def test_penalty_golden() -> None:
    fit = LengthCorrection("penalty", slope=0.1, typical=20.0)
    assert fit.apply(torch.tensor([1.0, 1.0]), [30, 10]).tolist() == [0.0, 2.0]


def test_regress_reads_the_curve_between_its_knots_and_its_ends_beyond() -> None:
    fit = LengthCorrection("regress", lengths=(10.0, 20.0), fitted=(0.0, 1.0))
    assert fit.apply(torch.ones(4), [15, 5, 20, 900]).tolist() == [0.5, 1.0, 0.0, 0.0]


def samples(n: int = 400) -> tuple[torch.Tensor, list[int]]:
    """Scores that grow with the root of the length, and a part that does not."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (n,), generator=rng)
    return (lengths.sqrt() + torch.randn(n, generator=rng)), lengths.tolist()


@pytest.mark.parametrize("how", HOWS)
def test_a_fit_keeps_mean_and_sd_and_lowers_what_length_buys(how: How) -> None:
    scores, lengths = samples()
    fit = fit_correction(how, scores, lengths)
    after = fit.apply(scores, lengths)
    assert float(after.mean()) == pytest.approx(float(scores.mean()), abs=1e-4)
    assert float(after.std()) == pytest.approx(float(scores.std()), rel=1e-4)
    before, now = (pearson(s.tolist(), [float(n) for n in lengths]) for s in (scores, after))
    assert before is not None
    assert now is not None
    assert before > 0.7
    assert now < before - 0.15
    if how == "regress":
        assert abs(now) < 0.1


def test_a_curve_is_taken_away_that_no_line_could() -> None:
    lengths = list(range(1, 201))
    scores = torch.tensor([((n - 100) / 50) ** 2 for n in lengths])
    after = fit_correction("regress", scores, lengths)._corrected(scores, lengths)
    assert float(after.std()) < 0.35 * float(scores.std())


@pytest.mark.parametrize("how", HOWS)
def test_it_survives_a_file(how: How) -> None:
    scores, lengths = samples(64)
    fit = fit_correction(how, scores, lengths)
    again = LengthCorrection.from_json(json.loads(json.dumps(fit.as_json())))
    assert again == fit
    assert torch.equal(again.apply(scores, lengths), fit.apply(scores, lengths))


@pytest.mark.parametrize("how", HOWS)
def test_samples_that_are_all_as_long_stay_as_they_are(how: How) -> None:
    scores, _ = samples(50)
    fit = fit_correction(how, scores, [20] * 50)
    assert torch.allclose(fit.apply(scores, [20] * 50).argsort(), scores.argsort())
    assert torch.isfinite(fit.apply(scores, [5] * 50)).all()


def test_a_score_that_is_length_alone_is_refused() -> None:
    lengths = list(range(10, 60))
    with pytest.raises(TrainingError, match="length alone explains it"):
        fit_correction("regress", torch.tensor(lengths).float(), lengths)


def test_most_answers_as_long_as_may_be_give_a_finite_curve() -> None:
    """Three quarters cut off at the limit: LOWESS has no neighbourhood there."""
    lengths = [*range(10, 60), *[64] * 150]
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(200, generator=rng) + torch.tensor(lengths) / 20
    fit = fit_correction("regress", scores, lengths)
    assert torch.isfinite(fit.apply(scores, lengths)).all()
    assert fit.fitted[-1] == pytest.approx(float(scores[50:].mean()), abs=0.3)
