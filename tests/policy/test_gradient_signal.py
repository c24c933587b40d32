"""The gradient signal of a batch, and updates that take more responses where it is weak."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from burnish.config.ppo import PPOConfig
from burnish.policy.gradient_signal import Halves, signal_of_one, wanted_batches
from tests.toys import make_ppo, toy


@pytest.mark.parametrize(
    ("signal", "wanted"),
    [
        (1 / 3, 1),  # a half has 1/3 signal, two halves 2/3 / (2/3 + 2/3) = 1/2
        (0.2, 2),  # four halves: 0.8 / (0.8 + 0.8)
        (1 / 7, 3),
        (0.05, 4),  # would need 9.5
        (0.0, 4),
        (-0.3, 4),
    ],
)
def test_batches_whose_gradient_is_half_signal(signal: float, wanted: int) -> None:
    assert wanted_batches(signal, 4) == wanted


def test_the_signal_of_one_batch_does_not_depend_on_how_many_were_measured() -> None:
    """Signal 1 and noise 4 a half of one batch: c = 1 / 5; of three batches noise 4 / 3 and c = 3 / 7."""
    assert signal_of_one(1 / 5, 1) == pytest.approx(0.2)
    assert signal_of_one(3 / 7, 3) == pytest.approx(0.2)
    assert -0.2 < signal_of_one(-0.2, 4) < 0


def test_halves_share_no_prompt_and_leave_no_row_out() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, advantage="rloo", samples_per_prompt=4, batch_size=16)
    rollout = ppo.collect(1).rollout
    rows = [5, 0, 15, 3, 9, 12]
    halves = Halves.of(rollout, rows, ppo.policy_parameters)
    assert halves is not None
    assert sorted(halves.ordered) == sorted(rows)
    sides = [{rollout.prompts[r].id for r in side} for side in (halves.first, halves.second)]
    assert not sides[0] & sides[1]
    assert halves.parts(rows)[0] == [r for r in rows if r in halves.first]
    one = [r for r in range(16) if rollout.prompts[r].id == rollout.prompts[0].id]
    assert Halves.of(rollout, one, ppo.policy_parameters) is None


def test_the_signal_is_the_cosine_of_both_halves_and_the_gradient_is_their_sum() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, advantage="rloo", samples_per_prompt=4, batch_size=24)
    batch = ppo.collect(1)
    rows = list(range(24))
    halves = Halves.of(batch.rollout, rows, ppo.policy_parameters)
    assert halves is not None

    def gradient(part: list[int]) -> torch.Tensor:
        """Gradient of the part's rows, as their share of all tokens."""
        figures = ppo.accumulate(batch, part)
        assert figures
        flat = torch.cat([p.grad.flatten() for p in ppo.policy_parameters if p.grad is not None])
        share = sum(batch.rollout.lengths[r] for r in part) / sum(batch.rollout.lengths)
        return flat * share

    first, second, whole = gradient(halves.first), gradient(halves.second), gradient(rows)
    ppo.accumulate(batch, halves.ordered, halves=halves)
    split = torch.cat([p.grad.flatten() for p in ppo.policy_parameters if p.grad is not None])
    assert torch.allclose(split, whole, atol=1e-7)
    cosine = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
    assert halves.signal()["gradient_signal"] == pytest.approx(cosine, abs=1e-4)


def test_every_update_of_the_policy_reports_its_signal() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, updates=3, batch_size=32, minibatches=2, epochs=2)
    stats = list(ppo.updates())
    assert all(-1 <= s["gradient_signal"] <= 1 for s in stats)
    assert all(s["answers"] == 32 for s in stats)


def test_a_weak_signal_takes_more_responses_and_the_run_as_many_as_before(tmp_path: Path) -> None:
    """A reward that no response earns more than another has no signal: updates of 4 batches, in all as many."""
    base, codec = toy()
    settings = {
        "updates": 9,
        "batch_size": 16,
        "advantage": "rloo",
        "samples_per_prompt": 4,
        "answers_per_update": "auto",
    }

    def start():  # type: ignore[no-untyped-def]
        ppo = make_ppo(base, codec, **settings)
        ppo.adapt_answers(-0.5)
        return ppo

    ppo = start()
    assert ppo.answers == 64
    wanted = ppo.wanted_kl
    seen = []
    for stats in ppo.updates():
        seen.append(stats["answers"])
        assert ppo.spent == sum(seen)
    assert seen[0] == 64
    assert sum(seen) == 9 * 16, "no response more than a run of fixed updates"
    assert all(n % 16 == 0 for n in seen)
    fixed = make_ppo(base, codec, **{**settings, "answers_per_update": "fixed"})
    assert wanted == pytest.approx(4 * fixed.wanted_kl), "an update of four batches may move as far as four"


def test_a_strong_signal_keeps_updates_small_and_no_prompt_is_left_out() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, updates=4, batch_size=24, answers_per_update="auto", samples_per_prompt=2)
    asked = []
    for _ in ppo.updates():
        asked.append(ppo.experience.rollout.prompts)  # type: ignore[union-attr]
        ppo.signal, ppo.answers = None, 24
    fixed = make_ppo(base, codec, updates=4, batch_size=24, samples_per_prompt=2)
    assert asked == [fixed.experience.rollout.prompts for _ in fixed.updates()]  # type: ignore[union-attr]


def test_a_resumed_run_takes_the_same_responses(tmp_path: Path) -> None:
    base, codec = toy()
    settings = {
        "updates": 12,
        "batch_size": 16,
        "advantage": "rloo",
        "samples_per_prompt": 4,
        "answers_per_update": "auto",
    }
    ppo = make_ppo(base, codec, **settings)
    updates = ppo.updates()
    list(islice(updates, 2))
    ppo.save(tmp_path)
    state = ppo.state_dict()
    again = make_ppo(base, codec, **settings)
    again.load(tmp_path)
    again.load_state_dict(state)
    assert [s.as_row() for s in again.updates()] == [s.as_row() for s in updates]


def test_an_update_has_one_limit() -> None:
    with pytest.raises(ValidationError, match="set one of the two"):
        PPOConfig(answers_per_update="auto", update_seconds=60)
    assert PPOConfig(answers_per_update="auto").most_answers == 4 * 64
    assert PPOConfig().most_answers == 64
