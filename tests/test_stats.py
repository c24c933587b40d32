"""Intervals, calibration and correlations against published or hand-worked figures, and their coverage."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from burnish.stats import (
    best_of_n,
    calibration,
    clustered_bootstrap,
    clustered_interval,
    clustered_proportion,
    fitted_temperature,
    length_controlled_win_rate,
    mean_and_se,
    mean_interval,
    paired_win_rate,
    pearson,
    roc_auc,
    sample_size,
    sigmoid,
    wilson,
)

# Wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(60, 100, 0.502, 0.691), (120, 200, 0.531, 0.665), (600, 1000, 0.569, 0.630)],
)
def test_wilson_golden(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert (interval.value, interval.n) == (0.6, n)
    assert interval.ci_low == pytest.approx(low, abs=5e-4)
    assert interval.ci_high == pytest.approx(high, abs=5e-4)


def test_wilson_at_the_ends() -> None:
    # p = 1, n = 4, z^2 = 3.8415: centre (1 + 0.4802) / 1.9604, half width 0.4802 / 1.9604
    interval = wilson(4, 4)
    assert interval.ci_low == pytest.approx(1 / 1.960365, abs=1e-5)
    assert interval.ci_high == 1.0
    assert wilson(0, 4).ci_low == 0.0
    assert wilson(0, 4).ci_high == pytest.approx(1 - 1 / 1.960365, abs=1e-5)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_holds_its_estimate_and_mirrors(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    interval, mirror = wilson(k, n, confidence), wilson(n - k, n, confidence)
    assert 0 <= interval.ci_low <= interval.value <= interval.ci_high <= 1
    assert interval.ci_low == pytest.approx(1 - mirror.ci_high, abs=1e-9)


def test_wilson_refuses_nonsense() -> None:
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="n="):
            wilson(successes, n)
    with pytest.raises(ValueError, match="confidence=95"):
        wilson(1, 2, 95)


# Proportions of pairs that share prompts


def test_clustered_proportion_by_hand() -> None:
    # p = 1/2; cluster sums of x - p are 1, -1, 0: variance 3/2 * 2/36 = 1/12, so 1/4 / (1/12) = 3 effective outcomes,
    # times (1.959964 / 4.302653)^2 = 0.2075 for three clusters: 0.62251. Wilson there: half width 3.3260 / 7.1709.
    interval = clustered_proportion([1, 1, 0, 0, 1, 0], "aabbcc")
    assert (interval.value, interval.n) == (0.5, 3)
    assert interval.ci_low == pytest.approx(0.5 - 0.46383, abs=1e-4)
    assert interval.ci_high == pytest.approx(0.5 + 0.46383, abs=1e-4)


def test_one_outcome_a_cluster_is_wilsons_interval() -> None:
    assert clustered_proportion([1.0] * 60 + [0.0] * 40, range(100)) == wilson(60, 100)


def test_copies_of_an_outcome_are_no_evidence() -> None:
    once = clustered_proportion([1, 1, 0, 1, 0] * 20, range(100))
    six = clustered_proportion(np.repeat([1, 1, 0, 1, 0] * 20, 6).tolist(), np.repeat(range(100), 6).tolist())
    assert six.n == once.n == 100
    assert six.ci_low == pytest.approx(once.ci_low, abs=0.005)
    all_right = clustered_proportion([1.0] * 12, [i // 6 for i in range(12)])
    assert all_right.ci_low == wilson(2, 2).ci_low


def test_clustered_proportion_covers_where_wilson_on_pairs_does_not() -> None:
    """Six pairs a prompt, prompts of very different difficulty (beta with a = b = 1): 95 % intervals of 400 samples of
    60 prompts. 0.92 is under 0.95 by 2.75 standard errors of 400 draws."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(400):
        outcomes = (rng.random((60, 6)) < rng.beta(1, 1, (60, 1))).astype(float).ravel()
        ours = clustered_proportion(outcomes.tolist(), np.repeat(range(60), 6).tolist())
        covered += ours.ci_low <= 0.5 <= ours.ci_high
        plain = wilson(int(outcomes.sum()), 360)
        naive += plain.ci_low <= 0.5 <= plain.ci_high
    assert covered / 400 > 0.92
    assert naive / 400 < 0.85


# Bootstrap


def test_bootstrap_agrees_with_the_normal_interval_of_independent_values() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400).tolist()
    interval = clustered_bootstrap(values, range(400), seed=1)
    mean, se = mean_and_se(values)
    assert interval.value == pytest.approx(mean)
    assert interval.n == 400
    assert interval.ci_low == pytest.approx(mean - 1.96 * se, abs=0.25 * se)
    assert interval.ci_high == pytest.approx(mean + 1.96 * se, abs=0.25 * se)


def test_copies_within_a_cluster_add_no_certainty() -> None:
    values = np.random.default_rng(0).normal(0.0, 1.0, 50).tolist()
    alone = clustered_bootstrap(values, range(50), seed=3)
    copied = clustered_bootstrap(values * 8, list(range(50)) * 8, seed=3)
    assert (copied.n, copied.value) == (50, pytest.approx(alone.value))
    assert (copied.ci_low, copied.ci_high) == (pytest.approx(alone.ci_low), pytest.approx(alone.ci_high))
    naive = clustered_bootstrap(values * 8, range(400), seed=3)
    assert naive.ci_high - naive.ci_low < 0.5 * (copied.ci_high - copied.ci_low)


def test_bootstrap_weighs_clusters_by_their_size() -> None:
    # Every resample of clusters (0, 0, 0) and (1,) is one of 0, 1/4 and 1.
    interval = clustered_bootstrap([0, 0, 0, 1], ["a", "a", "a", "b"], seed=0, confidence=0.2)
    assert (interval.value, interval.ci_low, interval.ci_high, interval.n) == (0.25, 0.25, 0.25, 2)
    wide = clustered_bootstrap([0, 0, 0, 1], ["a", "a", "a", "b"], seed=0, confidence=0.9)
    assert (wide.ci_low, wide.ci_high) == (0.0, 1.0)


def test_bootstrap_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        effect = rng.normal(0, 1, 40)
        values = (effect[:, None] + rng.normal(0, 0.3, (40, 3))).ravel().tolist()
        interval = clustered_bootstrap(values, np.repeat(range(40), 3).tolist(), seed=trial, draws=300)
        hits += interval.ci_low <= 0 <= interval.ci_high
    assert 0.89 <= hits / 200 <= 0.985  # 0.95 less the small-sample shortfall, 2 sd of 200 trials around


def test_bootstrap_is_a_function_of_its_seed() -> None:
    values = [0.1, 0.5, 0.9, 0.3, 0.2]
    a, b, c = (clustered_bootstrap(values, range(5), seed=s, draws=50) for s in (1, 1, 2))
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "values is empty"),
        ([1.0, math.nan], [1, 2], r"values\[1\]=nan is not finite"),
        ([1.0, 2.0], [1], "2 values but 1 clusters"),
        ([1.0, 2.0], [1, 1], "1 cluster; a clustered interval needs at least two"),
    ],
)
def test_bootstrap_refuses_nonsense(values: list[float], clusters: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clustered_bootstrap(values, clusters, seed=0)


# Paired win rate


def test_win_rate_counts_ties_half_and_prompts_once() -> None:
    interval = paired_win_rate([1, 0.5, 0, 1, 1, 0.5], ["a", "a", "b", "b", "c", "c"], seed=0)
    assert (interval.value, interval.n) == (pytest.approx(4 / 6), 3)
    assert interval.ci_low < 4 / 6 < interval.ci_high


def test_three_wins_of_three_are_no_certainty() -> None:
    interval = paired_win_rate([1, 1, 1], ["a", "b", "c"], seed=0)
    # Clopper and Pearson for 3 of 3: 0.025 ** (1 / 3); Wilson, 0.4385, lies within
    assert interval.ci_low == pytest.approx(0.29240, abs=1e-4)
    assert interval.ci_high == 1.0
    one = paired_win_rate([1, 1, 1], ["a", "a", "a"], seed=0)
    assert (one.n, one.ci_low) == (1, pytest.approx(0.025, abs=1e-4))


def test_nothing_but_ties_is_one_half_without_certainty() -> None:
    interval = paired_win_rate([0.5] * 20, [str(i) for i in range(20)], seed=0)
    assert interval.value == 0.5
    assert interval.ci_low < 0.35
    assert interval.ci_high > 0.65


def test_win_rate_refuses_outcomes_that_are_none() -> None:
    with pytest.raises(ValueError, match="outcomes is empty"):
        paired_win_rate([], [], seed=0)
    with pytest.raises(ValueError, match=r"outcomes\[1\]=1.5 must lie in \[0, 1\]"):
        paired_win_rate([1, 1.5], ["a", "b"], seed=0)


# Sample size


@pytest.mark.parametrize(("rate", "n"), [(0.55, 783), (0.60, 194), (0.65, 85), (0.52, 4904)])
def test_sample_size_golden(rate: float, n: int) -> None:
    assert sample_size(rate) == n
    assert sample_size(1 - rate) == n


def test_sample_size_needs_a_difference() -> None:
    for rate in (0.0, 0.5, 1.0):
        with pytest.raises(ValueError, match="win_rate"):
            sample_size(rate)


# Calibration


def test_calibration_golden() -> None:
    # bin 6, half the weight: one of 0.62, 0.68 right, |0.5 - 0.65| = 0.15; bin 9: 0.95, 1.0 right, 0.025
    ece, bins = calibration([0.62, 0.68, 0.95, 1.0], [True, False, True, True])
    assert ece == pytest.approx(0.5 * 0.15 + 0.5 * 0.025)
    assert bins == [
        {"confidence": pytest.approx(0.65), "accuracy": 0.5, "n": 2},
        {"confidence": pytest.approx(0.975), "accuracy": 1.0, "n": 2},
    ]
    assert calibration([1.0, 1.0], [True, True])[0] == 0.0
    assert calibration([1.0, 1.0], [False, False])[0] == 1.0


def test_one_bin_compares_the_means() -> None:
    ece, bins = calibration([0.6, 1.0], [True, False], bins=1)
    assert ece == pytest.approx(0.3)  # |0.5 - 0.8|
    assert len(bins) == 1


def test_calibration_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="empty"):
        calibration([], [])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        calibration([-0.1], [True])
    with pytest.raises(ValueError, match="2 confidences but 1 correct"):
        calibration([0.5, 0.6], [True])


# Correlation, mean


def test_pearson_golden() -> None:
    # deviations (-1, 0, 1) and (-4/3, -1/3, 5/3): 3 / sqrt(2 * 42 / 9)
    assert pearson([1, 2, 3], [1, 2, 4]) == pytest.approx(3 / math.sqrt(84 / 9))
    assert pearson([1, 2, 3], [-1, -2, -3]) == pytest.approx(-1.0)


def test_pearson_abstains_when_a_side_does_not_vary() -> None:
    assert pearson([0.1] * 7, range(7)) is None  # seven times 0.1 has a mean that rounds
    assert pearson(range(7), [0.1] * 7) is None
    with pytest.raises(ValueError, match="x is empty"):
        pearson([], [])
    with pytest.raises(ValueError, match="2 x but 3 y"):
        pearson([1, 2], [1, 2, 3])


def test_mean_and_se_golden() -> None:
    # variance (1 + 0 + 1) / 2 = 1: 1 / sqrt(3)
    assert mean_and_se([1, 2, 3]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    with pytest.raises(ValueError, match="at least two"):
        mean_and_se([1.0])
    with pytest.raises(ValueError, match="empty"):
        mean_and_se([])


# Length-controlled win rate


def simulated(n: int, skill: float, length_bias: float, longer: float, seed: int) -> tuple[list, list]:
    """Outcomes of a judge that adds `length_bias` * tanh(delta / sd) to the log-odds `skill`."""
    rng = np.random.default_rng(seed)
    delta = rng.normal(longer, 10.0, n)
    p = 1 / (1 + np.exp(-(skill + length_bias * np.tanh(delta / delta.std()))))
    return (rng.random(n) < p).astype(float).tolist(), delta.tolist()


def test_length_control_takes_out_what_length_bought() -> None:
    outcomes, delta = simulated(2000, skill=0.0, length_bias=2.0, longer=10.0, seed=0)
    interval = length_controlled_win_rate(outcomes, delta, clusters=range(2000), seed=0, draws=100)
    assert np.mean(outcomes) > 0.7
    assert interval.ci_low <= 0.5 <= interval.ci_high
    assert interval.n == 2000
    assert interval.ci_high - interval.ci_low < 0.12


def test_length_control_keeps_what_skill_bought() -> None:
    outcomes, delta = simulated(2000, skill=1.0, length_bias=2.0, longer=-10.0, seed=1)
    interval = length_controlled_win_rate(outcomes, delta, clusters=range(2000), seed=0, draws=100)
    assert np.mean(outcomes) < 0.6
    assert interval.value == pytest.approx(0.731, abs=0.05)  # sigmoid(1)
    assert interval.ci_low > 0.5


def test_at_equal_lengths_it_is_the_plain_rate() -> None:
    outcomes = [1.0] * 30 + [0.0] * 9 + [0.5]
    interval = length_controlled_win_rate(outcomes, [0.0] * 40, clusters=range(40), seed=0)
    assert interval.value == pytest.approx((30.5 + 0.5) / 41)  # half a win and half a loss beside them
    assert interval.ci_low < interval.value < interval.ci_high


def test_swapping_the_sides_mirrors_the_estimate() -> None:
    outcomes, delta = simulated(200, skill=0.5, length_bias=1.0, longer=3.0, seed=2)
    forth = length_controlled_win_rate(outcomes, delta, clusters=range(200), seed=0)
    back = length_controlled_win_rate(
        [1 - o for o in outcomes], [-d for d in delta], clusters=range(200), seed=0
    )
    assert back.value == pytest.approx(1 - forth.value)
    assert back.ci_low == pytest.approx(1 - forth.ci_high)


def test_wins_that_length_explains_wholly_stay_finite() -> None:
    delta = [float(d) for d in range(-20, 21) if d]
    outcomes = [1.0 if d > 0 else 0.0 for d in delta]
    interval = length_controlled_win_rate(outcomes, delta, clusters=range(40), seed=0)
    assert interval.value == pytest.approx(0.5, abs=1e-6)
    assert 0.0 < interval.ci_low < 0.5 < interval.ci_high < 1.0


def test_length_control_resamples_clusters() -> None:
    outcomes, delta = simulated(60, skill=0.0, length_bias=1.0, longer=0.0, seed=4)
    alone = length_controlled_win_rate(outcomes, delta, clusters=range(60), seed=0)
    copied = length_controlled_win_rate(outcomes * 6, delta * 6, clusters=list(range(60)) * 6, seed=0)
    assert copied.n == 60
    assert copied.ci_high - copied.ci_low == pytest.approx(alone.ci_high - alone.ci_low, rel=0.1)


def test_without_variation_wilson_stands_in() -> None:
    interval = length_controlled_win_rate([1.0] * 3, [5.0, -1.0, 2.0], clusters=range(3), seed=0)
    assert (interval.value, interval.n) == (1.0, 3)
    assert interval.ci_low == pytest.approx(0.43850, abs=1e-4)
    one = length_controlled_win_rate([1.0, 0.0], [5.0, -1.0], clusters=["a", "a"], seed=0)
    assert (one.value, one.n) == (0.5, 1)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-1e4, 1e4)), min_size=1, max_size=12),
    st.integers(0, 1000),
)
def test_the_fit_settles_on_whatever_comes(rows: list[tuple[float, float]], seed: int) -> None:
    outcomes, delta = [r[0] for r in rows], [r[1] for r in rows]
    interval = length_controlled_win_rate(outcomes, delta, clusters=range(len(rows)), seed=seed, draws=20)
    assert 0.0 <= interval.ci_low <= interval.ci_high <= 1.0
    assert 0.0 <= interval.value <= 1.0


def test_length_control_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="outcomes is empty"):
        length_controlled_win_rate([], [], clusters=[], seed=0)
    with pytest.raises(ValueError, match="2 outcomes but 1 length_deltas"):
        length_controlled_win_rate([0, 1], [1], clusters=[0, 1], seed=0)
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        length_controlled_win_rate([0, 1], [1, 2], clusters=[0], seed=0)
    with pytest.raises(ValueError, match=r"outcomes\[0\]=2.0"):
        length_controlled_win_rate([2, 1], [1, 2], clusters=[0, 1], seed=0)


def test_mean_interval_is_students() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5
    # t(0.975, 3) = 3.182, se = 1.291 / 2
    assert (found.ci_low, found.ci_high) == pytest.approx((2.5 - 2.054, 2.5 + 2.054), abs=1e-3)
    assert found.n == 4
    with pytest.raises(ValueError, match="1 value"):
        mean_interval([1.0])


# Best of n, ranking, temperature


def test_best_of_n_is_the_mean_over_all_draws() -> None:
    scores, values = [3.0, 1.0, 2.0, 2.0, 5.0], [1.0, 0.0, 4.0, 2.0, -1.0]
    for n in range(1, 6):
        best = []
        for draw in combinations(range(5), n):
            top = max(scores[i] for i in draw)
            best.append(np.mean([values[i] for i in draw if scores[i] == top]))
        assert best_of_n(scores, values, n) == pytest.approx(np.mean(best))
    with pytest.raises(ValueError, match="n=6 of 5 answers"):
        best_of_n(scores, values, 6)


def test_best_of_n_of_many() -> None:
    scores = np.random.default_rng(0).normal(size=4096)
    assert best_of_n(scores, scores, 1) == pytest.approx(scores.mean())
    assert best_of_n(scores, scores, 4096) == pytest.approx(scores.max())
    # The expected largest of 4 standard normal numbers.
    assert best_of_n(scores, scores, 4) == pytest.approx(1.0294, abs=0.05)


def test_roc_auc_by_hand() -> None:
    assert roc_auc([3.0, 1.0, 2.0, 2.0], [True, False, True, False]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert roc_auc([1.0, 2.0], [True, True]) is None


def test_the_temperature_that_fits_is_found() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=20_000) * 2
    won = rng.random(20_000) < sigmoid(true)
    gaps = np.where(won, true, -true)[:, None] * 3  # three times too sure
    assert fitted_temperature(gaps) == pytest.approx(3.0, rel=0.06)


def test_a_clustered_interval_of_any_figure() -> None:
    x = np.random.default_rng(2).normal(size=400)
    groups = [i // 4 for i in range(400)]
    found = clustered_interval(lambda rows: float(x[rows].mean()), groups, seed=0)
    expected = clustered_bootstrap(x, groups, seed=0)
    assert found is not None
    assert found.n == 100
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.ci_low, expected.ci_high), abs=0.02)
    assert clustered_interval(lambda rows: None, groups, seed=0) is None


def test_few_prompts_that_are_won_or_lost_need_an_exact_sign_test() -> None:
    """Of 256 prompts: four wins (p = 1/16) do not ship, six wins of six (p = 1/64) do, and five of six do not."""

    def low(won: int, lost: int, n: int = 256) -> float:
        outcomes = [1.0] * won + [0.0] * lost + [0.5] * (n - won - lost)
        return paired_win_rate(outcomes, range(n), seed=0).ci_low

    assert low(4, 0) < 0.5
    assert low(6, 0) > 0.5
    assert low(5, 1) < 0.5
    assert low(4, 0, 4) < 0.5, "four wins of four as well"
    assert low(15, 4) > 0.5, "p = 0.0096"
    exact = paired_win_rate([1.0] * 3 + [0.0] + [0.5] * 96, range(100), seed=0)
    # Clopper and Pearson, 3 of 4: [0.1941, 0.9937].
    assert exact.ci_low == pytest.approx(0.5 + 0.04 * (0.1941 - 0.5), abs=1e-5)
    assert exact.ci_high == pytest.approx(0.5 + 0.04 * (0.9937 - 0.5), abs=0.02)


def test_hardly_any_champion_is_false_where_nearly_all_prompts_are_ties() -> None:
    """The lower bound lies above one half in at most 2.5 % of runs without a better policy, for any number of
    decided prompts: 400 runs, 3 standard errors of 0.8 %."""
    rng = np.random.default_rng(0)
    for decided in (4, 8, 20):
        false = 0
        for _ in range(400):
            won = int(rng.binomial(decided, 0.5))
            outcomes = [1.0] * won + [0.0] * (decided - won) + [0.5] * (64 - decided)
            false += paired_win_rate(outcomes, range(64), seed=1, draws=400).ci_low > 0.5
        assert false <= 19
