"""DPO: it learns the preference, starts at a margin of zero, and continues bit-identically."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from burnish.config.dpo import DPOConfig
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.load import Codec
from burnish.models.logprobs import make_policy
from burnish.models.pairs import EncodedPairs
from burnish.policy.dpo import DPO
from burnish.records import Preference, Prompt


def make_dpo(
    base: Backbone, codec: Codec, prompts: list[Prompt], smoothing: float = 0.0, **config: object
) -> DPO:
    pairs = [Preference(p, " Zoe was happy and sang.", " Zoe was sad and wept.") for p in prompts[:24]]
    settings = DPOConfig(**{"batch_size": 8, "micro_batch": 8, **config})  # type: ignore[arg-type]
    return DPO(
        policy=make_policy(TrainableLayers(base), codec.pad_id),
        reference=make_policy(TrainableLayers(base, trainable=False), codec.pad_id),
        pairs=EncodedPairs(base, codec, pairs),
        config=settings,
        learning_rate=1e-3,
        seed=0,
        smoothing=smoothing,
    )


def test_it_starts_at_zero_margin_and_learns(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    dpo = make_dpo(base, codec, prompts, epochs=3)
    stats = list(dpo.updates())
    assert len(stats) == dpo.steps == 9
    assert stats[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert stats[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert stats[-1]["accuracy"] == 1.0
    assert stats[-1]["margin"] > 0.1


def test_label_smoothing_acts(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    plain = list(make_dpo(base, codec, prompts, epochs=3, smoothing=0.0).updates())
    smooth = list(make_dpo(base, codec, prompts, epochs=3, smoothing=0.3).updates())
    assert smooth[-1]["loss"] > plain[-1]["loss"] + 0.02


def test_it_continues_bit_identically(
    base: Backbone, codec: Codec, prompts: list[Prompt], tmp_path: Path
) -> None:
    whole = make_dpo(base, codec, prompts, epochs=2)
    rows = [s.as_row() for s in whole.updates()]
    first = make_dpo(base, codec, prompts, epochs=2)
    updates = first.updates()
    assert [next(updates).as_row() for _ in range(3)] == rows[:3]
    first.save(tmp_path)
    second = make_dpo(base, codec, prompts, epochs=2)
    second.load(tmp_path, 3)
    assert [s.as_row() for s in second.updates()] == rows[3:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))


def test_ipo_stops_where_the_margin_is_what_it_should_be(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    last = {
        loss: list(make_dpo(base, codec, prompts, epochs=12, loss=loss, beta=0.5).updates())[-1]
        for loss in ("sigmoid", "ipo")
    }
    assert last["ipo"]["accuracy"] == 1.0
    assert 0.3 < last["ipo"]["margin"] < 0.8, "beta h is to become one half"
    assert last["sigmoid"]["margin"] > 2 * last["ipo"]["margin"]


def test_the_likelihood_of_what_was_chosen_can_be_kept_up(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    ratios = {
        nll: list(make_dpo(base, codec, prompts, epochs=4, nll=nll).updates())[-1]["chosen_logratio"]
        for nll in (0.0, 2.0)
    }
    assert ratios[2.0] > ratios[0.0] + 1


def test_per_token_a_longer_answer_makes_no_larger_margin(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    dpo = make_dpo(base, codec, prompts, per_token=True, beta=5.0)
    whole = make_dpo(base, codec, prompts, beta=5.0)
    lengths = torch.tensor(dpo.pairs.sequences.response_lengths)
    apart = torch.full((len(lengths),), -0.01) * lengths  # as much more likely a token, whatever the length
    reference = dpo.cache_reference()
    _, margin, _ = dpo.losses([0], reference + apart)
    _, summed, _ = whole.losses([0], reference + apart)
    chosen, rejected = (side[0] for side in dpo.pairs.sides(lengths))
    assert float(margin) == pytest.approx(0.0, abs=1e-3)
    assert float(summed) == pytest.approx(5 * 0.01 * float(chosen - rejected), abs=1e-2)


def test_what_the_losses_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="ipo bounds the margin itself"):
        DPOConfig(loss="ipo", label_smoothing=0.1)
    assert DPOConfig(per_token=True).strength == 5.0
    assert DPOConfig().strength == 0.1
