"""Reward models: aggregation by hand, an ensemble that learns, an honest examination."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, permutations
from pathlib import Path

import pytest
import torch

from burnish.config.reward import RewardConfig
from burnish.distributed.threads import side_by_side
from burnish.errors import RunError, TrainingError
from burnish.models.backbone import Backbone
from burnish.models.heads import ScalarHead, new_reward_head, raw_scores
from burnish.models.load import Codec
from burnish.models.optim import trial_rows, try_rates
from burnish.models.pairs import EncodedPairs
from burnish.randomness import generator
from burnish.records import Preference, Prompt, StepStats
from burnish.reward.ensemble import (
    RewardEnsemble,
    aggregate,
    load_reference,
    normalisation,
    pair_spread,
    save_ensemble,
)
from burnish.reward.examine import error_correlation, errors, examine, watcher_verdict
from burnish.reward.train import pair_order, pairs_gradient, train_reward_model, trial_loss

MEMBERS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
REFERENCE = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def test_mean() -> None:
    scores, spread = aggregate(MEMBERS, REFERENCE, "mean")
    assert scores.tolist() == [2.0, 1.0]
    # d = (1, 2, 3): variance 2/3; d = (-1, -1, 2): mean 0, variance 2
    assert spread.tolist() == pytest.approx([(2 / 3) ** 0.5, 2**0.5])


def test_min_is_the_worst_difference_on_the_mean_reference() -> None:
    assert aggregate(MEMBERS, REFERENCE, "min")[0].tolist() == [1.0, 0.0]  # 1 + 0; -1 + 1


def test_uwo_subtracts_variance_per_reference_variance() -> None:
    scores, _ = aggregate(MEMBERS, REFERENCE, "uwo", uwo_lambda=0.5, reference_variance=2.0)
    assert scores.tolist() == pytest.approx([2 - 0.5 * (2 / 3) / 2, 1 - 0.5 * 2 / 2])


@pytest.mark.parametrize("how", ["min", "uwo"])
def test_a_members_offset_per_prompt_does_not_count_as_disagreement(how: str) -> None:
    offset = torch.tensor([[5.0, -5.0, 0.0], [0.0, 0.0, 0.0]])
    plain, spread = aggregate(MEMBERS, REFERENCE, how)
    moved, spread_again = aggregate(MEMBERS + offset, REFERENCE + offset, how)
    assert torch.allclose(plain, moved)
    assert torch.allclose(spread, spread_again)


def test_normalisation_and_a_constant_member() -> None:
    mean, sd = normalisation(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert mean.tolist() == [1.0, 3.0]
    assert sd.tolist() == [1.0, 2.0]
    with pytest.raises(TrainingError, match="member 1"):
        normalisation(torch.tensor([[0.0, 4.0], [2.0, 4.0]]))


def test_pair_spread() -> None:
    # pair 1: d = (1, 3) variance 1; pair 2: d = (2, 2) variance 0
    assert pair_spread(torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]])) == 0.5


def pairs_of(prompts: list[Prompt], n: int) -> list[Preference]:
    return [
        Preference(p, f" {p.text.split()[0]} was happy.", " It was sad and full of pain.", 1.0, str(i))
        for i, p in enumerate(prompts[:n])
    ]


def flat(elements: list[list[int]]) -> list[int]:
    return [i for element in elements for i in element]


GROUPS = [f"prompt {i // 3}" for i in range(60)]


def test_members_differ_in_head_order_and_bootstrap() -> None:
    config = RewardConfig()
    assert pair_order(GROUPS, config, 0, "member-0") != pair_order(GROUPS, config, 0, "member-1")
    assert pair_order(GROUPS, config, 0, "member-0") == pair_order(GROUPS, config, 0, "member-0")
    assert len(set(flat(pair_order(GROUPS, config, 0, "member-0")))) < 60
    plain = config.model_copy(update={"bootstrap": False})
    assert sorted(flat(pair_order(GROUPS, plain, 0, "member-0"))) == list(range(60))


def test_a_bootstrap_resample_draws_prompts_with_all_their_pairs() -> None:
    times = Counter(flat(pair_order(GROUPS, RewardConfig(), 0, "member-0")))
    for prompt in range(20):
        assert len({times[3 * prompt + i] for i in range(3)}) == 1
    assert sum(times.values()) == 60, "as many draws as there are prompts, three pairs each"
    assert len({times[3 * prompt] for prompt in range(20)}) > 2


def test_what_is_drawn_twice_stands_together_in_every_epoch() -> None:
    order = [tuple(element) for element in pair_order(GROUPS, RewardConfig(epochs=2), 0, "member-0")]
    assert len(order) == 40
    assert Counter(order[:20]) == Counter(order[20:])
    assert order[:20] != order[20:]
    for epoch in (order[:20], order[20:]):
        assert len([i for i, _ in groupby(epoch)]) == len(set(epoch))


def test_a_cut_off_answer_is_read_without_an_end(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    """In reward training and in DPO, which would teach the end in mid-sentence."""
    cut = Preference(prompts[0], " She was", " He wept.", chosen_ended=False)
    whole = Preference(prompts[1], " She sang.", " He", rejected_ended=False)
    encoded = EncodedPairs(base, codec, [cut, whole])
    ends = [ids[-1] == codec.eos_id for ids in encoded.sequences.response_ids]
    assert [ends[i] for i in (*encoded.chosen, *encoded.rejected)] == [False, True, True, False]


def test_an_answer_is_encoded_once_however_many_pairs_it_is_in(
    base: Backbone, codec: Codec, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three answers ranked make three pairs: three sequences, read once an update, and the gradient of six."""
    texts = [" She sang.", " She sat.", " He wept and wept."]
    ranked = [Preference(p, texts[i], texts[j]) for p in prompts[:3] for i, j in ((0, 1), (0, 2), (1, 2))]
    pairs = EncodedPairs(base, codec, ranked)
    assert len(pairs.sequences) == 9
    assert [sorted(set(e)) for e in pair_order(pairs.groups, RewardConfig(bootstrap=False), 0, "m")] in [
        [[3 * i, 3 * i + 1, 3 * i + 2] for i in order] for order in permutations(range(3))
    ]
    assert list(pairs.parted(range(9), 6)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert list(pairs.parted(range(9), 2)) == [[i] for i in range(9)]
    model = new_reward_head(base, 0, "member-0", layers="all", dropout=0.0)
    read = []
    own = ScalarHead.score
    monkeypatch.setattr(ScalarHead, "score", lambda m, batch: read.append(len(batch)) or own(m, batch))
    pairs_gradient(model, pairs, dict.fromkeys(range(9), 1), RewardConfig(), 32)
    assert sum(read) == 9
    together = [p.grad.clone() for p in model.trained() if p.grad is not None]
    model.zero_grad()
    for i in range(9):
        pairs_gradient(model, pairs, {i: 1}, RewardConfig(), 2)
    for a, b in zip(together, [p.grad for p in model.trained() if p.grad is not None], strict=True):
        assert torch.allclose(a, b / 9, atol=1e-4 * float(a.abs().max()), rtol=1e-3)


def test_a_pair_drawn_twice_counts_twice(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    """Pairs 0, 0, 1 by a list that holds pair 0 twice, and by copies: the same figures and gradients."""
    pairs = pairs_of(prompts, 2)
    model = new_reward_head(base, 0, "member-0", layers="all", dropout=0.0)
    found = []
    for listed, copies in (([pairs[0], pairs[0], pairs[1]], {0: 1, 1: 1, 2: 1}), (pairs, {0: 2, 1: 1})):
        model.zero_grad()
        figures = pairs_gradient(model, EncodedPairs(base, codec, listed), copies, RewardConfig(), 32)
        found.append(
            (figures, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    (listed_figures, listed_grads), (copied_figures, copied_grads) = found
    assert listed_figures == pytest.approx(copied_figures, rel=1e-4)
    assert listed_grads.keys() == copied_grads.keys()
    for name, gradient in listed_grads.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(gradient, copied_grads[name], atol=1e-4 * scale, rtol=1e-4), name
    assert max(float(g.abs().max()) for g in listed_grads.values()) > 1e-3


def test_micro_batches_of_pairs_change_nothing_but_rounding(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    pairs = EncodedPairs(base, codec, pairs_of(prompts, 7))
    model = new_reward_head(base, 0, "member-0", layers="all", dropout=0.0)
    copies = {i: 1 + i % 2 for i in range(7)}
    found = []
    for size in (32, 6, 2):
        model.zero_grad()
        figures = pairs_gradient(model, pairs, copies, RewardConfig(), size)
        found.append((figures, [p.grad.clone() for p in model.trained() if p.grad is not None]))
    for figures, gradients in found[1:]:
        assert figures == pytest.approx(found[0][0], rel=1e-4)
        for ours, whole in zip(gradients, found[0][1], strict=True):
            assert torch.allclose(ours, whole, atol=1e-4 * float(whole.abs().max()), rtol=1e-4)


def test_members_side_by_side_are_what_they_are_alone(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    data, config = EncodedPairs(base, codec, pairs_of(prompts, 24)), RewardConfig(batch_size=8)

    def member(name: str) -> tuple[ScalarHead, Iterator[StepStats]]:
        model = new_reward_head(base, 0, name, layers="all", dropout=0.1)
        return model, train_reward_model(model, data, config, learning_rate=1e-3, seed=0, member=name)

    alone = [member(f"member-{k}") for k in range(3)]
    for _, loop in alone:
        list(loop)
    together = [member(f"member-{k}") for k in range(3)]
    assert [n for n, _ in side_by_side([loop for _, loop in together])] == [0, 1, 2] * 3
    for (one, _), (other, _) in zip(alone, together, strict=True):
        for name, tensor in one.state().items():
            assert torch.equal(tensor, other.state()[name]), name


def test_a_reward_model_learns_what_is_preferred(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    data = EncodedPairs(base, codec, pairs_of(prompts, 48))
    model = new_reward_head(base, 0, "member-0", layers="all", dropout=0.1)
    config = RewardConfig(batch_size=8, epochs=2)
    stats = list(train_reward_model(model, data, config, learning_rate=2e-3, seed=0, member="member-0"))
    assert len(stats) == 12
    assert not model.training
    chosen, rejected = data.sides(raw_scores(model, data.sequences))
    assert (chosen > rejected).float().mean() > 0.95
    assert abs(float((chosen + rejected).mean())) < 2.0


def test_examination_by_hand() -> None:
    prompt = Prompt("p")
    pairs = [
        Preference(prompt, "a b c", "a", 1.0, "x"),
        Preference(prompt, "a", "a b", 1.0, "y"),
        Preference(prompt, "a b", "a c", 1.0, "z"),
    ]
    chosen = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    raw = torch.cat([chosen, torch.zeros(3, 2)])
    report = examine(pairs, raw, torch.ones(2), {"x": "a b c", "y": "a b", "z": "a c"})
    assert report["accuracy"]["value"] == pytest.approx(1 / 3)  # margins 1, 0, -1: a tie is not right
    assert [m["accuracy"]["value"] for m in report["members"]] == pytest.approx([2 / 3, 1 / 3])
    assert report["baselines"] == pytest.approx({"longer": 0.5, "shorter": 0.5, "first": 1 / 3})
    assert (report["accuracy"]["n"], report["accuracy"]["pairs"]) == (1, 3)  # one prompt
    # Mean probabilities: sigmoid(1) right; one half, not right; sigmoid(1) wrong: one bin each side of 0.6.
    sure = 1 / (1 + math.exp(-1))
    assert report["calibration"]["ece"] == pytest.approx(1 / 3 * 0.5 + 2 / 3 * abs(0.5 - sure))


def test_a_calibrated_ensemble_reads_as_calibrated_whatever_its_scale() -> None:
    """Labels drawn from the members' own Bradley-Terry probabilities. Scores divided by their standard deviation, as
    PPO is given them, would be far too unsure."""
    rng = torch.Generator().manual_seed(0)
    n = 6000
    margin = torch.randn(n, generator=rng) * 2
    wins = torch.rand(n, generator=rng) < torch.sigmoid(margin)
    signed = torch.where(wins, margin, -margin)
    raw = torch.cat([signed, torch.zeros(n)])[:, None].expand(-1, 3)
    pairs = [Preference(Prompt(f"p{i}"), "a", "b") for i in range(n)]
    report = examine(pairs, raw, torch.full((3,), 4.0), {})
    assert report["calibration"]["ece"] < 0.02


def test_error_correlation() -> None:
    same = torch.tensor([[True, True], [False, False], [True, True], [False, False]])
    assert error_correlation(same) == pytest.approx(1.0)
    assert error_correlation(same[:, :1]) is None
    assert error_correlation(torch.zeros(4, 2, dtype=torch.bool)) is None


def test_a_watcher_is_armed_only_when_it_beats_every_baseline() -> None:
    report = {"accuracy": {"ci_low": 0.58}}
    assert watcher_verdict(report, {"longer": 0.55, "first": 0.5})["armed"]
    out = watcher_verdict(report, {"longer": 0.62, "first": 0.5})
    assert not out["armed"]
    assert "longer" in out["reason"]


def test_what_an_older_version_left_is_no_riddle(tmp_path: Path) -> None:
    """The reference samples of old runs stood in a JSON file; what is there says how to go on."""
    ensemble = RewardEnsemble([], torch.zeros(3), torch.ones(3))
    raw = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]])
    save_ensemble(ensemble, tmp_path / "new", raw, [3] * len(raw), {"score_sd": 0.5})
    scores, sd = load_reference(ensemble, tmp_path / "new")
    assert (scores.tolist(), sd) == (raw.tolist(), 0.5)
    (tmp_path / "new" / "reference.safetensors").unlink()
    with pytest.raises(RunError, match="--redo"):
        load_reference(ensemble, tmp_path / "new")


def test_errors_of_the_mean_over_models() -> None:
    scores = torch.tensor(
        [[2.0, -1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    )  # chosen, chosen, rejected, rejected
    assert errors(scores).tolist() == [True, True]
    assert errors(scores[:, :1]).tolist() == [False, True]


def test_a_rate_is_found_by_what_it_comes_to_on_pairs_it_has_not_seen(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    """Far too small learns nothing in a trial, far too large breaks the model."""
    glad, sad = [" She was happy and sang.", " They were glad."], [" He wept.", " It was sad and cold."]
    pairs = [Preference(p, glad[i % 2], sad[(i + k) % 2]) for i, p in enumerate(prompts) for k in range(2)]
    encoded = EncodedPairs(base.at(base.depth, "top:2"), codec, pairs)
    learned, unseen = trial_rows(encoded.groups, 24 * 16, generator(0))
    found = try_rates(
        "reward",
        [1e-7, 2e-3, 30.0],
        lambda rate: trial_loss(encoded, learned, unseen, RewardConfig(), "mean", rate, 0),
    )
    assert found[0].rate == 2e-3
    assert found[0].loss < 0.5
    losses = {t.rate: t.loss for t in found}
    assert losses[1e-7] > 0.6
    assert losses[30.0] > losses[2e-3] + 0.1


def test_part_of_the_pairs_keeps_their_sequences(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    pairs = EncodedPairs(base, codec, pairs_of(prompts, 4))
    part = pairs.only([3, 1])
    assert part.sequences is pairs.sequences
    assert [p.prompt for p in part.pairs] == [prompts[3], prompts[1]]
    assert len(pairs) == 4
    scores = torch.arange(len(pairs.sequences)).float()
    assert part.sides(scores)[0].tolist() == [pairs.chosen[3], pairs.chosen[1]]
