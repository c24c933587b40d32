"""Layer that the reward reads: probes find the best one, and a model that reads there is saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from burnish.config.reward import RewardConfig
from burnish.models.artefacts import load_reward_model, save_reward_model
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import pad_batch
from burnish.models.generate import sample_rollout
from burnish.models.heads import Pooling, Reading, ScalarHead, new_reward_head, raw_scores
from burnish.models.load import Codec
from burnish.models.logprobs import make_policy
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.records import Preference, Prompt
from burnish.reward.ensemble import prepare
from burnish.reward.probe import (
    Probed,
    choose,
    choose_different,
    choose_other,
    fit,
    held_out_margins,
    probe,
    probed_depths,
)
from burnish.reward.train import train_reward_model
from tests.standalone import without_burnish

DEPTH = 8


def model_of(layers: int = DEPTH) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    lm = LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=2048, num_hidden_layers=layers, pad_token_id=0, eos_token_id=1)
    )
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
    return lm


def planted(
    base: Backbone, codec: Codec, prompts: list[Prompt], depth: int, pooling: Pooling, n: int = 3
) -> list[Preference]:
    """Pairs that a linear function of the activations at `depth` tells apart without error."""
    words = [" happy", " sad", " ran", " sang", " cup", " home", " dog", " rain", " red", " old"]
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(words, 6)) for _ in range(2 * n * len(prompts))]
    pairs = [
        Preference(p, texts[2 * (n * i + k)], texts[2 * (n * i + k) + 1])
        for i, p in enumerate(prompts)
        for k in range(n)
    ]
    encoded = EncodedPairs(base, codec, pairs)
    rows = encoded.sequences.batch(range(len(encoded.sequences)))
    states = base.lm.base_model(
        rows.input_ids,
        attention_mask=rows.attention_mask,
        position_ids=rows.position_ids,
        output_hidden_states=True,
    ).hidden_states
    hidden = states[-1] if depth == base.depth else base.lm.base_model.norm(states[depth])
    answer = hidden[:, rows.response] * rows.response_mask[..., None]
    read = answer.sum(1) / rows.response_mask.sum(1, keepdim=True)
    if pooling == "last":
        read = hidden[torch.arange(len(rows)), rows.last_index]
    direction = torch.linalg.svd(read - read.mean(0), full_matrices=False).Vh[0]
    quality = (read @ direction).detach()
    chosen, rejected = encoded.sides(quality)
    return [
        p if a > b else Preference(p.prompt, p.rejected, p.chosen)
        for p, a, b in zip(pairs, chosen, rejected, strict=True)
    ]


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("depth", [3, 6, 8])
def test_labels_planted_at_a_layer_are_found_there(
    codec: Codec, prompts: list[Prompt], depth: int, engine: bool
) -> None:
    base = Backbone(model_of(), "top:1")
    if not engine:
        base.__dict__["_fast"] = False
    pairs = planted(base, codec, prompts, depth, "mean")
    found = probe(
        base, EncodedPairs(base, codec, pairs), probed_depths(base, base.layers), ["mean", "last"], 0
    )
    best = min(found, key=lambda p: p.loss)
    assert abs(best.reading.depth - depth) <= 2
    assert best.reading.pooling == "mean"
    assert best.accuracy > 0.8
    assert best.loss < 0.6
    chosen = choose(found)
    assert chosen.reading.depth <= best.reading.depth
    other = choose_other(found, chosen.reading)
    assert other.reading.depth != chosen.reading.depth
    assert other.reading.pooling == "last"


def test_shuffled_labels_are_no_better_than_chance_anywhere(codec: Codec, prompts: list[Prompt]) -> None:
    base = Backbone(model_of(), "top:1")
    rng = np.random.default_rng(1)
    pairs = [
        p if rng.random() < 0.5 else Preference(p.prompt, p.rejected, p.chosen)
        for p in planted(base, codec, prompts, 6, "mean")
    ]
    found = probe(
        base, EncodedPairs(base, codec, pairs), probed_depths(base, base.layers), ["mean", "last"], 0
    )
    assert all(p.loss > 0.67 for p in found), "no fold was fitted to what it is held against"
    assert all(0.35 < p.accuracy < 0.65 for p in found)


def test_weights_are_those_of_a_bradley_terry_model() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    true = np.array([1.0, -0.5, 0.0])
    wins = rng.random(4000) < 1 / (1 + np.exp(-x @ true))
    assert fit(np.where(wins[:, None], x, -x), 1e-4, np.zeros(3)) == pytest.approx(true, abs=0.12)
    assert np.abs(fit(np.where(wins[:, None], x, -x), 100.0, np.zeros(3))).max() < 0.01


def test_a_pair_is_judged_by_weights_that_have_not_seen_its_prompt() -> None:
    """Every fold has a dimension of its own, which is worth nothing elsewhere."""
    folds = np.arange(50) % 5
    x = np.eye(5)[folds]
    assert np.abs(held_out_margins(x, folds)).max() < 1e-6


def probed(depth: int, pooling: Pooling, losses: list[float], errors: list[float] | None = None) -> Probed:
    values = torch.tensor(losses, dtype=torch.float64)
    wrong = torch.tensor(losses if errors is None else errors, dtype=torch.float64)
    return Probed(Reading(depth, pooling), float(values.mean()), float(values.std()), 0.5, values, wrong)


def test_different_places_are_good_ones_whose_errors_correlate_least() -> None:
    best = probed(8, "mean", [0.50, 0.52, 0.49, 0.51], [0.1, 0.9, 0.1, 0.9])
    twin = probed(6, "mean", [0.55, 0.45, 0.56, 0.50], [0.1, 0.8, 0.2, 0.9])
    other = probed(8, "last", [0.45, 0.57, 0.56, 0.49], [0.1, 0.1, 0.9, 0.9])
    poor = probed(2, "last", [0.90, 0.91, 0.92, 0.90], [0.9, 0.1, 0.9, 0.1])
    found = [best, twin, other, poor]
    assert choose_different(found, 1) == [choose(found)]
    first, second, third = choose_different(found, 3)
    assert {first.reading, second.reading} == {Reading(6, "mean"), Reading(8, "last")}, "not the twin"
    assert third is best, "a poor place only where no good one is left"
    assert [p.reading.depth for p in choose_different(found, 4)][-1] == 2
    assert choose_different([best], 3) == [best] * 3


def test_the_shallowest_of_those_that_cannot_be_told_from_the_best() -> None:
    deep, good = probed(8, "mean", [0.50, 0.52, 0.49, 0.51]), probed(4, "mean", [0.51, 0.51, 0.50, 0.51])
    bad, last = probed(2, "mean", [0.60, 0.61, 0.59, 0.60]), probed(6, "last", [0.55, 0.55, 0.55, 0.55])
    assert choose([deep, good, bad, last]) is good
    assert choose_other([deep, good, bad, last], good.reading) is last
    assert choose_other([deep, good], good.reading) is deep
    assert choose_other([good], good.reading) is good


@pytest.mark.parametrize("layers", ["top:2", "all", "lora", "lora_top:1"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_model_that_reads_below_the_top_comes_back_the_same(
    codec: Codec, prompts: list[Prompt], layers: str, pooling: Pooling, tmp_path: Path
) -> None:
    base = Backbone(model_of(), layers)
    part = base.at(5)
    pairs = EncodedPairs(
        part, codec, [Preference(p, " She sang.", " He wept and wept.") for p in prompts[:8]]
    )
    model = new_reward_head(part, 0, "m", layers=layers, dropout=0.1, pooling=pooling)
    losses = [
        s["loss"]
        for s in train_reward_model(
            model, pairs, RewardConfig(batch_size=4, epochs=4), learning_rate=1e-2, seed=0, member="m"
        )
    ]
    assert losses[-1] < losses[0]
    raw = raw_scores(model, pairs.sequences)
    save_reward_model(model, tmp_path, codec.tokenizer)
    assert json.loads((tmp_path / "reading.json").read_text()) == {
        "depth": 5,
        "pooling": pooling,
        "layers": layers,
    }
    again = load_reward_model(base, tmp_path)
    assert again.top.base is part
    assert torch.allclose(raw_scores(again, pairs.sequences), raw, atol=1e-5)


def test_the_mean_is_over_the_response_alone_its_end_included(codec: Codec) -> None:
    base = Backbone(model_of(3), "all")
    model = new_reward_head(base, 0, "m", layers="all", dropout=0.0, pooling="mean").eval()
    batch = pad_batch([[5, 6, 7], [8]], [[9, 10, 1], [11, 12, 13, 14, 1]], 0)
    with torch.no_grad():
        scores = model.score(batch)
        for row, (prompt, answer) in enumerate((([5, 6, 7], [9, 10, 1]), ([8], [11, 12, 13, 14, 1]))):
            hidden = model.top.body(torch.tensor([[*prompt, *answer]])).last_hidden_state[0, len(prompt) :]
            assert torch.allclose(scores[row], hidden.mean(0) @ model.head.weight[0], atol=1e-5)
        values = model.values(batch)
        hidden = model.top.body(torch.tensor([[5, 6, 7, 9, 10]])).last_hidden_state[0, 2:]
    for t in range(3):
        assert torch.allclose(values[0, t], hidden[: t + 1].mean(0) @ model.head.weight[0], atol=1e-5)
    assert (values[0, 3:] == 0).all()


def test_the_lines_of_the_card_load_it_where_burnish_is_not(
    codec: Codec, prompts: list[Prompt], tmp_path: Path
) -> None:
    base = Backbone(model_of(), "top:2")
    model = new_reward_head(base.at(6), 0, "m", layers="top:2", dropout=0.0, pooling="mean").eval()
    with torch.no_grad():
        for parameter in model.top.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_reward_model(model, tmp_path, codec.tokenizer)
    assert AutoModel.from_pretrained(tmp_path).config.num_hidden_layers == 6
    ids = [codec.encode_prompt(prompts[0]), codec.encode_response(" She sang.")]
    expected = float(raw_scores(model, Sequences(base.at(6), [ids[0]], [ids[1]], codec.pad_id)))
    lines = (tmp_path / "README.md").read_text().split("```python")[1].split("```")[0]
    names: dict[str, Any] = {"FOLDER": str(tmp_path)}
    with without_burnish(tmp_path):
        exec(lines, names)
        found = float(names["score"](*ids))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_value_function_that_begins_as_a_mean_reward_ends_near_its_score(
    codec: Codec, prompts: list[Prompt]
) -> None:
    """The last value has seen all but the end: over long answers it is the score, nearly."""
    base = Backbone(model_of(), "top:2")
    head = nn.Linear(base.hidden_size, 1, bias=False)
    model: Any = ScalarHead(TrainableLayers(base.at(6)), head, pooling="mean").eval()
    texts = [" She sang and danced and they all went home." * 3 for _ in range(4)]
    rows = Sequences(
        base.at(6),
        [codec.encode_prompt(p) for p in prompts[:4]],
        [codec.encode_response(t) for t in texts],
        codec.pad_id,
    )
    with torch.no_grad():
        batch = rows.batch(range(4))
        last = model.values(batch)[torch.arange(4), batch.response_mask.sum(1) - 1]
        assert torch.allclose(last, model.score(batch), atol=0.2)


def test_what_is_sampled_after_preparing_keeps_what_every_reward_model_reads(
    codec: Codec, prompts: list[Prompt], tmp_path: Path
) -> None:
    """As a run that goes on in another process begins: nothing is loaded yet."""
    made = Backbone(model_of(), "top:2")
    for name, depth in (("member-0", 5), ("examiner", 7)):
        save_reward_model(
            new_reward_head(made.at(depth), 0, name, layers="top:2", dropout=0.0),
            tmp_path / name,
            codec.tokenizer,
        )
    (tmp_path / "ensemble.json").write_text("{}")
    base = Backbone(model_of(), "top:2")
    assert base.cuts == {6}
    prepare(base, tmp_path)
    assert base.cuts == made.cuts == {3, 5, 6}
    policy = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    rollout = sample_rollout(policy, codec, prompts[:3], max_tokens=4, batch_size=3, seed=0, where=("x",))
    assert rollout.features.keys() == {3, 5, 6}


@pytest.mark.parametrize("layers", ["top:3", "all"])
def test_a_reward_that_reads_above_the_policys_cut_reads_the_base_not_the_policy(
    codec: Codec, prompts: list[Prompt], layers: str
) -> None:
    """Layers that the policy trains are its own: what leaves them is computed by the base's."""
    base = Backbone(model_of(), layers)
    part = base.at(DEPTH, "top:1")
    assert part.cut > base.cut
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    with torch.no_grad():
        for parameter in policy.top.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    rollout = sample_rollout(policy, codec, prompts[:4], max_tokens=6, batch_size=4, seed=0, where=("x",))
    found = Sequences.of(part, rollout, codec.pad_id).features
    alone = Sequences(part, rollout.prompt_ids, rollout.response_ids, codec.pad_id).features
    assert found is not None
    assert alone is not None
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
