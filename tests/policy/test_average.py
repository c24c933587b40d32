"""The moving average of the policy's weights: its value, its restart and its use as a policy."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from burnish.config.ppo import PPOConfig
from tests.toys import make_ppo, toy


def averaged_ppo(**config):  # type: ignore[no-untyped-def]
    base, codec = toy()
    ppo = make_ppo(base, codec, updates=6, batch_size=16, epochs=1, **config)
    ppo.average_updates = 2
    ppo.__post_init__()
    return ppo


def test_the_average_by_hand() -> None:
    """With two updates: the first policy, then halves of what was and of each new policy."""
    ppo = averaged_ppo()
    expected = None
    for _ in ppo.updates():
        now = ppo.policy_parameters[0].detach().clone()
        expected = now if expected is None else (expected + now) / 2
        assert torch.allclose(ppo.average[0], expected, atol=1e-7)
    assert not torch.equal(ppo.average[0], ppo.policy_parameters[0])


def test_a_block_has_the_averaged_weights_and_the_policy_gets_its_own_back() -> None:
    ppo = averaged_ppo()
    list(ppo.updates())
    before = [p.detach().clone() for p in ppo.policy_parameters]
    with ppo.averaged():
        assert all(torch.equal(p, a) for p, a in zip(ppo.policy_parameters, ppo.average, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(ppo.policy_parameters, before, strict=True))
    with pytest.raises(RuntimeError, match="stop"), ppo.averaged():
        raise RuntimeError("stop")
    assert all(torch.equal(p, b) for p, b in zip(ppo.policy_parameters, before, strict=True))


def test_a_resumed_run_has_the_same_average(tmp_path: Path) -> None:
    ppo, again = averaged_ppo(), averaged_ppo()
    updates = ppo.updates()
    list(islice(updates, 3))
    ppo.save(tmp_path)
    again.load(tmp_path)
    again.load_state_dict(ppo.state_dict())
    list(updates), list(again.updates())
    assert all(torch.equal(a, b) for a, b in zip(ppo.average, again.average, strict=True))


def test_a_checkpoint_of_an_older_version_starts_the_average_at_its_policy(tmp_path: Path) -> None:
    ppo, again = averaged_ppo(), averaged_ppo()
    list(islice(ppo.updates(), 3))
    ppo.save(tmp_path)
    (tmp_path / "average.safetensors").unlink()
    again.load(tmp_path)
    assert all(torch.equal(a, p) for a, p in zip(again.average, ppo.policy_parameters, strict=True))


def test_updates_that_train_the_value_alone_are_not_averaged() -> None:
    ppo = averaged_ppo(value_warmup=2)
    start = ppo.average[0].clone()
    updates = ppo.updates()
    list(islice(updates, 2))
    assert torch.equal(ppo.average[0], start)
    next(updates)
    assert torch.equal(ppo.average[0], ppo.policy_parameters[0]), "the first policy that moved"


def test_how_many_updates_are_averaged() -> None:
    assert PPOConfig(updates=36).averaged(whole=False) == 6
    assert PPOConfig(updates=3).averaged(whole=False) == 1
    assert PPOConfig(updates=36).averaged(whole=True) == 0, "a copy of every weight is asked for, not taken"
    assert PPOConfig(updates=36, average_updates=4).averaged(whole=True) == 4
    assert PPOConfig(updates=36, average_updates=0).averaged(whole=False) == 0
