"""The adaptive KL controller: steps worked by hand, the gate, the clamps, and a loop that it must settle."""

import json
import math

import pytest
import torch
from hypothesis import given, strategies as st

from burnish.objectives import exact_kl
from burnish.policy.kl_control import AdaptiveKLController, initial_coef, lowered_target


def controller(**changes: float) -> AdaptiveKLController:
    return AdaptiveKLController(**({"coef": 1.0, "target": 6.0, "horizon": 1000.0} | changes))


@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (6.6, 1.01),  # 6.6 / 6 - 1 = 0.1; 1 + 0.1 * 100 / 1000
        (60.0, 1.02),  # clipped to 0.2
        (5.4, 0.99),  # -0.1
        (3.0, 0.98),  # -0.5 clipped to -0.2; half the target is reached
        (6.0, 1.0),
    ],
)
def test_one_update_golden(kl: float, coef: float) -> None:
    held = controller()
    assert held.update(kl, 100) == pytest.approx(coef)
    assert held.coef == pytest.approx(coef)


def test_no_downward_move_before_half_the_target_was_reached() -> None:
    held = controller()
    for kl in (0.0, -0.3, 1.0, 2.99):
        assert held.update(kl, 100) == 1.0
    assert not held.reached
    held.update(3.0, 100)
    assert held.reached
    assert held.update(0.5, 100) == pytest.approx(0.98 * 0.98)  # once reached, a low KL lowers it


def test_the_gate_looks_at_the_smoothed_kl() -> None:
    held = controller(smoothing=0.9)
    held.update(0.0, 100)
    held.update(5.0, 100)  # (0.9 * 0.1 * 0 + 0.1 * 5) / 0.19 = 2.63 < 3
    assert held.smoothed == pytest.approx(0.5 / 0.19)
    assert not held.reached
    assert held.coef == 1.0


def test_smoothing_is_bias_corrected() -> None:
    held = controller(smoothing=0.5)
    assert held.smoothed is None
    held.update(8.0, 10)
    assert held.smoothed == pytest.approx(8.0)
    assert held.coef == pytest.approx(1.002)  # it acts on 8, past the clip, and not on 4: 1 + 0.2 * 10 / 1000
    held.update(2.0, 10)
    assert held.smoothed == pytest.approx(4.0)  # (0.25 * 8 + 0.5 * 2) / 0.75


def test_the_clamp_holds_and_forgets_what_lies_beyond_it() -> None:
    held = controller(coef=1.99, max_coef=2.0, min_coef=1.9)
    for _ in range(50):
        held.update(100.0, 1000)
    assert held.coef == 2.0
    assert held.update(0.0, 100) == pytest.approx(1.96)  # falls at once: nothing was wound up
    for _ in range(50):
        held.update(0.0, 1000)
    assert held.coef == 1.9
    assert controller(coef=50.0, max_coef=10.0).coef == 10.0
    assert controller(coef=1e-9, min_coef=1e-4).coef == 1e-4


def test_a_batch_beyond_the_horizon_counts_as_one_horizon() -> None:
    held = controller(horizon=10.0)
    held.update(6.0, 10)
    assert held.update(3.0, 1000) == pytest.approx(0.8)
    assert held.update(60.0, 1000) == pytest.approx(0.96)


def test_raise_coef_multiplies_within_the_clamps() -> None:
    held = controller(max_coef=3.0)
    held.raise_coef(2.0)
    assert held.coef == 2.0
    held.raise_coef(2.0)
    assert held.coef == 3.0


def test_initial_coef_golden() -> None:
    assert initial_coef(1.0, 2.0) == 0.5  # 1 / sqrt(4)
    assert initial_coef(3.0, 4.5) == 1.0  # 3 / sqrt(9)


@pytest.mark.parametrize("target", [0.5, 2.0, 6.0])
def test_initial_coef_tilts_a_gaussian_by_the_target(target: float) -> None:
    """Tilt a finely binned N(0, sd^2) of rewards by exp(r / coef) and measure its KL."""
    sd = 1.7
    rewards = torch.linspace(-20, 20, 20001, dtype=torch.float64)
    reference = -(rewards**2) / (2 * sd**2)
    tilted = reference + rewards / initial_coef(sd, target)
    assert float(exact_kl(tilted, reference)) == pytest.approx(target, rel=1e-3)


def test_in_a_closed_loop_it_settles_at_the_target() -> None:
    """A policy follows its Gaussian optimum, KL = sd^2 / (2 coef^2), with lag; it starts 4 times too low."""
    held = AdaptiveKLController(coef=0.25 * initial_coef(1.0, 6.0), target=6.0, horizon=640, smoothing=0.5)
    kl = 0.0
    for _ in range(400):
        kl += 0.3 * (1.0 / (2 * held.coef**2) - kl)
        held.update(kl, 64)
    assert kl == pytest.approx(6.0, rel=0.02)
    assert held.coef == pytest.approx(initial_coef(1.0, 6.0), rel=0.02)


def overshoot(lead: float) -> float:
    """Of a slow policy and a fast controller, in nats past a target of 4."""
    coef = 2.5 * initial_coef(1.0, 4.0)
    held = AdaptiveKLController(coef=coef, target=4.0, horizon=230, smoothing=0.5, reached=True, lead=lead)
    kl, highest = 0.0, 0.0
    for _ in range(120):
        kl += 0.07 * (1.0 / (2 * held.coef**2) - kl)
        held.update(kl, 64)
        highest = max(highest, kl)
    assert kl == pytest.approx(4.0, abs=0.6)
    return highest - 4.0


def test_looking_ahead_it_passes_the_target_by_less() -> None:
    assert overshoot(0.0) > 1.0
    assert overshoot(3.0) < 0.7 * overshoot(0.0)


def test_looking_ahead_a_rising_kl_counts_for_more() -> None:
    held = controller(lead=3.0)
    held.update(5.0, 100)
    assert held.coef == pytest.approx(1 - 0.1 / 6)
    before = held.coef
    held.update(5.4, 100)  # 5.4 + 3 * 0.4 = 6.6
    assert held.coef == pytest.approx(before * 1.01)


@given(st.lists(st.floats(-5, 200), min_size=1, max_size=30), st.integers(1, 4096), st.floats(0, 0.95))
def test_the_coefficient_stays_in_its_clamps_and_moves_by_a_fifth_at_most(
    kls: list[float], episodes: int, smoothing: float
) -> None:
    held = controller(horizon=64.0, smoothing=smoothing, min_coef=0.1, max_coef=5.0)
    for kl in kls:
        before = held.coef
        after = held.update(kl, episodes)
        assert 0.1 <= after <= 5.0
        assert 0.8 * before - 1e-12 <= after <= 1.2 * before + 1e-12


@given(st.lists(st.floats(0, 50), min_size=2, max_size=20), st.integers(1, 19))
def test_a_restored_controller_goes_on_as_if_never_stopped(kls: list[float], cut: int) -> None:
    whole = controller(smoothing=0.5)
    want = [whole.update(kl, 64) for kl in kls]
    first = controller(smoothing=0.5)
    got = [first.update(kl, 64) for kl in kls[:cut]]
    second = controller(coef=7.0, target=1.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.update(kl, 64) for kl in kls[cut:]]
    assert got == want
    assert second == whole


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_raises_and_changes_nothing(kl: float) -> None:
    held = controller(smoothing=0.5)
    held.update(7.0, 64)
    before = held.state_dict()
    with pytest.raises(ValueError, match="kl_seq_sum_nats"):
        held.update(kl, 64)
    with pytest.raises(ValueError, match="n_episodes=0"):
        held.update(7.0, 0)
    with pytest.raises(ValueError, match="factor"):
        held.raise_coef(kl)
    assert held.state_dict() == before


@pytest.mark.parametrize("name", ["coef", "target", "horizon", "min_coef", "max_coef"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_settings_must_be_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r} must be finite and above 0"):
        controller(**{name: value})


def test_other_settings_out_of_range_raise() -> None:
    with pytest.raises(ValueError, match=r"min_coef=2\.0 must not exceed max_coef=1\.0"):
        controller(min_coef=2.0, max_coef=1.0)
    assert controller(coef=1.0, min_coef=1.0, max_coef=1.0).coef == 1.0, "a coefficient that is held"
    for lead in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"lead={lead} must be finite and at least 0"):
            controller(lead=lead)
    with pytest.raises(ValueError, match=r"factor=0\.0 must be finite and above 0"):
        controller().raise_coef(0.0)
    for smoothing in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="smoothing"):
            controller(smoothing=smoothing)
    with pytest.raises(ValueError, match=r"score_sd=0\.0"):
        initial_coef(0.0, 6.0)
    with pytest.raises(ValueError, match=r"target=-6\.0"):
        initial_coef(1.0, -6.0)


def test_a_foreign_state_is_refused_whole() -> None:
    held = controller()
    before = held.state_dict()
    for state, words in (
        ({"coef": 1.0}, r"'average', 'horizon'.*missing or unknown; load one that `state_dict` wrote"),
        ({}, "wrong keys"),
        (before | {"kl": 1.0}, r"\['kl'\] missing"),
        (before | {"coef": math.nan}, "coef=nan"),
    ):
        with pytest.raises(ValueError, match=words):
            held.load_state_dict(state)
    assert held.state_dict() == before


def test_a_policy_that_moved_and_stopped_is_let_go_on_but_not_for_ever() -> None:
    held = AdaptiveKLController(coef=0.4, target=8.0, horizon=100)
    for kl in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        held.update(kl, 100)
    assert held.coef == 0.4, "it goes on by itself"
    for _ in range(5):
        held.update(3.0, 100)
    assert held.coef == pytest.approx(0.4 * 0.8), "five updates without a rise"
    for _ in range(50):
        held.update(3.0, 100)
    assert held.coef == pytest.approx(0.1), "a quarter of its start: half of the target was never reached"
    held.update(4.0, 100)
    assert held.coef < 0.1, "once it was, it is free"


def test_a_policy_that_never_moved_is_no_reason_to_lower_anything() -> None:
    held = AdaptiveKLController(coef=0.4, target=8.0, horizon=100)
    for _ in range(50):
        held.update(0.01, 100)
    assert held.coef == 0.4


def test_older_checkpoints_know_less() -> None:
    held = AdaptiveKLController(coef=0.4, target=8.0, horizon=100)
    state = held.state_dict()
    for name in ("highest", "stalled", "start", "lead"):
        del state[name]
    held.load_state_dict(state | {"coef": 0.3})
    assert (held.coef, held.start) == (0.3, 0.3)
    assert (held.highest, held.stalled, held.lead) == (0.0, 0, 0.0)


def let_go_on(step: float, kls: list[float], target: float = 8.0) -> bool:
    """Whether the coefficient falls in six updates that each rise by `step` targets, after some KLs."""
    held = AdaptiveKLController(coef=0.4, target=target, horizon=100)
    for kl in kls:
        held.update(kl, 100)
    for n in range(6):
        held.update(kls[-1] + (n + 1) * step * target, 100)
    return held.coef < 0.4


def test_what_counts_as_having_stopped_and_as_having_begun() -> None:
    assert let_go_on(0.0, [1.0])
    assert let_go_on(0.003, [1.0]), "a creep is no rise"
    assert not let_go_on(0.03, [1.0])
    assert let_go_on(0.0, [0.8]), "a tenth of the target"
    assert not let_go_on(0.0, [0.79])
    assert not let_go_on(0.0, [0.05], target=0.75)
    assert let_go_on(0.0, [0.1], target=0.75)
    exact = AdaptiveKLController(coef=0.4, target=50.0, horizon=100)
    exact.update(10.0, 100)
    for n in range(1, 6):
        exact.update(10.0 + n, 100)
    assert exact.stalled == 5, "a fiftieth of the target is no rise yet"


def test_once_let_go_on_it_goes_on_whatever_the_next_update_is() -> None:
    held = AdaptiveKLController(coef=0.4, target=8.0, horizon=100)
    for kl in (1.0, *[1.0] * 5):
        held.update(kl, 100)
    assert (held.stalled, held.coef) == (5, pytest.approx(0.32))
    held.update(1.4, 100)  # it rises, as it was meant to
    assert (held.stalled, held.coef) == (5, pytest.approx(0.256))


def test_a_lowered_target_keeps_the_raise_of_the_coefficient() -> None:
    """A policy whose KL is 0.5 / coef, at its target: the coefficient is doubled, and the controller goes on."""

    def after(lower: bool) -> float:
        held = AdaptiveKLController(coef=0.125, target=4.0, horizon=100)
        held.raise_coef(2.0)
        if lower:
            held.lower_target(2.0)
        for _ in range(20):
            held.update(0.5 / held.coef, 100)
        return held.coef

    assert after(lower=False) == pytest.approx(0.125, rel=0.2), "the raise is undone"
    assert after(lower=True) == pytest.approx(0.25, rel=0.2)


def test_the_lowered_target_is_half_of_what_was_reached_and_never_nothing() -> None:
    assert lowered_target(4.0, None, 2.0) == 2.0
    assert lowered_target(4.0, 9.0, 2.0) == 2.0
    assert lowered_target(4.0, 3.0, 2.0) == 1.5
    assert lowered_target(4.0, -1.0, 2.0) == pytest.approx(0.2)
    held = AdaptiveKLController(coef=0.1, target=4.0, horizon=100)
    held.lower_target(2.0)
    again = AdaptiveKLController(coef=0.1, target=4.0, horizon=100)
    again.load_state_dict(held.state_dict())
    assert again.target == 2.0
