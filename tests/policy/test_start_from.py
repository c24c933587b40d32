"""PPO that starts from other weights than those of the reference."""

from __future__ import annotations

import pytest
import torch

from burnish.errors import Diverged
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import start_from
from tests.toys import make_ppo, toy


def moved(factor: float = 1.0) -> tuple[PPO, dict[str, torch.Tensor]]:
    """Return a PPO before its first update, and weights that a few updates have reached."""
    ahead = make_ppo(*toy(), updates=6, batch_size=32, epochs=1, rate=0.05)
    for _ in ahead.updates():
        pass
    fresh = make_ppo(*toy(), updates=6, batch_size=32, epochs=1, rate=0.05)
    first, last = fresh.policy.top.trained_state(), ahead.policy.top.trained_state()
    return fresh, {n: torch.lerp(first[n], last[n], factor) for n in first}


def test_weights_within_their_kl_are_taken_as_they_are() -> None:
    ppo, weights = moved()
    found = start_from(ppo, weights, most=1000.0)
    assert found["scale"] == 1
    assert found["kl"] > 0
    state = ppo.policy.top.trained_state()
    assert all(torch.allclose(state[n], w) for n, w in weights.items())


def test_weights_that_spend_too_much_are_scaled_until_they_do_not() -> None:
    ppo, weights = moved()
    first = ppo.policy.top.trained_state()
    all_of_it = start_from(ppo, weights, most=1000.0)["kl"]
    ppo, weights = moved()
    most = all_of_it / 5
    found = start_from(ppo, weights, most=most)
    assert 0 < found["scale"] < 1
    assert most / 3 < found["kl"] <= most
    for name, now in ppo.policy.top.trained_state().items():
        assert torch.allclose(now, torch.lerp(first[name], weights[name], found["scale"]))


def test_the_first_update_reports_the_kl_of_the_start() -> None:
    ppo, weights = moved()
    found = start_from(ppo, weights, most=1000.0)
    stats = next(ppo.updates())
    assert stats["kl"] == pytest.approx(found["kl"], rel=0.5)
    assert stats["kl"] > 0.05


def test_weights_that_diverged_are_refused() -> None:
    ppo, weights = moved()
    broken = {n: torch.full_like(w, torch.nan) for n, w in weights.items()}
    with pytest.raises(Diverged):
        start_from(ppo, broken, most=1.0)
