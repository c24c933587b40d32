"""Members that read at different places of one base."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

import burnish
from burnish import PPOConfig, RewardConfig
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.generate import sample_rollout
from burnish.models.heads import Pooling, new_reward_head
from burnish.models.load import Codec
from burnish.models.logprobs import make_policy
from burnish.models.sequences import Sequences
from burnish.records import Preference, Prompt
from burnish.rehearse.grammar import prompts
from burnish.reward.ensemble import RewardEnsemble
from burnish.runs.files import read_json

PLACES: tuple[tuple[int, Pooling], ...] = ((4, "mean"), (3, "last"), (2, "mean"))


def test_an_ensemble_scores_as_its_members_do_alone(base: Backbone, codec: Codec) -> None:
    """From any part of the base, with the activations that sampling kept or without them."""
    whole = Backbone(base.lm, "top:1")
    members = [
        new_reward_head(
            whole.at(depth), 0, f"member-{k}", layers="top:1", dropout=0.0, pooling=pooling
        ).eval()
        for k, (depth, pooling) in enumerate(PLACES)
    ]
    ensemble = RewardEnsemble(members, torch.zeros(3), torch.ones(3))
    policy = make_policy(TrainableLayers(whole), codec.pad_id)
    asked = [Prompt(p.text) for p in prompts(6, 1)]
    rollout = sample_rollout(policy, codec, asked, max_tokens=12, batch_size=6, seed=0, where=("t",))
    ids = (rollout.prompt_ids, rollout.response_ids)
    alone = torch.stack(
        [m.score(Sequences(m.top.base, *ids, codec.pad_id).batch(range(6))).detach() for m in members], 1
    )
    for sequences in (
        Sequences.of(ensemble.base, rollout, codec.pad_id),
        Sequences.of(whole, rollout, codec.pad_id),
        Sequences(members[2].top.base, *ids, codec.pad_id),
    ):
        assert torch.allclose(ensemble.raw(sequences), alone, atol=1e-5)
        found = ensemble.prefixes(sequences)
        assert found.shape == (6, max(map(len, ids[1])))
        assert found.abs().sum() > 0
    sequences = Sequences.of(whole, rollout, codec.pad_id)
    assert sequences.at(members[1].top.base) is sequences.at(members[1].top.base), "computed once"
    assert sequences.at(whole) is sequences


def test_members_read_at_places_of_their_own_and_ppo_uses_them() -> None:
    model = burnish.load_model("embedded", layers="top:1")
    pairs = [Preference(p, " She was happy and sang.", " He wept in the cold.") for p in prompts(120, 3)]
    config = RewardConfig(readings="different", pooling="mean", learning_rate=1e-3, reference_samples=32)
    rewards = burnish.train_rewards(model, pairs, config=config)
    saved = read_json(rewards.folder / "readings.json")
    places = [(saved[f"member-{k}"]["depth"], saved[f"member-{k}"]["pooling"]) for k in range(3)]
    assert len(set(places)) == 3
    assert [m.top.base.depth for m in rewards.ensemble.members] == [depth for depth, _ in places]
    assert rewards.report["accuracy"]["value"] > 0.9
    better, worse = rewards.score(["Once"] * 2, [" She was happy and sang.", " He wept in the cold."])
    assert better > worse
    ppo = PPOConfig(updates=2, batch_size=8, samples_per_prompt=4, advantage="rloo", credit="prefix")
    aligned = burnish.train_ppo(model, [p.text for p in prompts(8, 4)], rewards, config=ppo)
    assert aligned.outcome is not None
    assert aligned.outcome["updates"] == 2


@pytest.mark.parametrize(
    "settings",
    [{"shared_head": True}, {"depth": 3, "pooling": "mean"}],
)
def test_settings_that_contradict_different_readings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="readings=different"):
        RewardConfig(readings="different", **settings)  # type: ignore[arg-type]
