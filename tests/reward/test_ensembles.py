"""Ensembles of several kinds, and what trains their members: each by figures that are known, none by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from burnish.config.reward import RewardConfig
from burnish.errors import TrainingError
from burnish.models.artefacts import load_reward_model, save_reward_model
from burnish.models.backbone import Backbone
from burnish.models.heads import averaged, new_reward_head, raw_scores
from burnish.models.load import Codec
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.objectives import bradley_terry_loss, odin_loss
from burnish.records import Preference, Prompt
from burnish.reward.ensemble import RewardEnsemble, aggregate, scores_of_samples
from burnish.reward.train import kept_apart, pairs_gradient, train_reward_model
from burnish.stats import pearson

MEMBERS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
REFERENCE = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def test_mean_std_subtracts_the_spread_of_differences() -> None:
    scores, spread = aggregate(MEMBERS, REFERENCE, "mean_std", std_lambda=0.5, reference_variance=4.0)
    assert scores.tolist() == pytest.approx([2 - 0.5 * (2 / 3) ** 0.5 / 2, 1 - 0.5 * 2**0.5 / 2])
    assert spread.tolist() == pytest.approx([(2 / 3) ** 0.5, 2**0.5])


def test_odin_by_hand() -> None:
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0])
    flat, up = torch.tensor([1.0, -1.0, -1.0, 1.0]), torch.tensor([2.0, 4.0, 6.0, 8.0])
    q, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert float(odin_loss(flat, up, tokens, q, w)) == pytest.approx(-1.0), "the best there is"
    assert float(odin_loss(-up, flat, tokens, q, q)) == pytest.approx(2.0), "either sign of the first counts"
    assert float(odin_loss(flat, up, torch.ones(4), q, w)) == pytest.approx(0.0), "one length says nothing"


def test_margins_follow_how_sure_a_label_is() -> None:
    chosen, rejected = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])
    sure = torch.tensor([1.0, 0.5])
    losses = bradley_terry_loss(chosen, rejected, margin=0.7 * (2 * sure - 1))
    assert losses.tolist() == pytest.approx(
        [-torch.log(torch.sigmoid(torch.tensor(x))).item() for x in (0.3, 1.0)]
    )


@pytest.mark.parametrize(("strength", "margin"), [(None, 2.0), (1.0, 2.0), (0.25, 0.5)])
def test_margins_are_in_proportion_to_the_grade(
    strength: float | None, margin: float, base: Backbone, codec: Codec
) -> None:
    pair = Preference(Prompt("Once"), " she sang.", " it fell.", strength=strength)
    pairs = EncodedPairs(base, codec, [pair])
    model = new_reward_head(base, 0, "m", layers=base.layers, dropout=0.0)
    config = RewardConfig(margin=2.0, label_smoothing=0.0, center_coef=0.0, dropout=0.0)
    chosen, rejected = pairs.sides(raw_scores(model, pairs.sequences))
    wanted = bradley_terry_loss(chosen, rejected, margin=margin)
    assert pairs_gradient(model, pairs, {0: 1}, config, 2)["loss"] == pytest.approx(float(wanted), rel=1e-4)


def answers(prompts: list[Prompt], n: int, longer: bool = False) -> list[Preference]:
    more = " And then it went on and on and on." * longer
    return [
        Preference(p, f" {p.text.split()[0]} was happy.{more}", " It was sad and full of pain.", 1.0, str(i))
        for i, p in enumerate(prompts[:n])
    ]


def trained(base: Backbone, pairs: EncodedPairs, name: str = "member-0", **settings: object):  # type: ignore[no-untyped-def]
    config = RewardConfig(dropout=0.0, label_smoothing=0.0, batch_size=8, **settings)  # type: ignore[arg-type]
    head_of = "member-0" if config.shared_head else None
    model = new_reward_head(
        base, 0, name, layers=base.layers, dropout=0.0, head_of=head_of, length_head=config.length == "odin"
    )
    stats = list(train_reward_model(model, pairs, config, learning_rate=2e-3, seed=0, member=name))
    return model, stats


def test_members_that_share_a_head_are_averaged_and_saved(
    base: Backbone, codec: Codec, prompts: list[Prompt], tmp_path: Path
) -> None:
    pairs = EncodedPairs(base, codec, answers(prompts, 32))
    models = [trained(base, pairs, f"member-{k}", shared_head=True)[0] for k in range(2)]
    one = averaged(models)
    for name, value in one.state().items():
        assert torch.allclose(value, (models[0].state()[name] + models[1].state()[name]) / 2)
    assert not torch.equal(models[0].state()["head.weight"], models[1].state()["head.weight"])
    chosen, rejected = pairs.sides(raw_scores(one, pairs.sequences))
    assert (chosen > rejected).all(), "weights in between know what both ends know"
    save_reward_model(one, tmp_path / "average", codec.tokenizer)
    again = load_reward_model(base, tmp_path / "average")
    assert torch.allclose(raw_scores(again, pairs.sequences), raw_scores(one, pairs.sequences), atol=1e-5)


def test_heads_differ_unless_they_are_shared(base: Backbone) -> None:
    def weight(name: str, head_of: str | None) -> torch.Tensor:
        return new_reward_head(base, 0, name, layers=base.layers, dropout=0.0, head_of=head_of).head.weight

    assert torch.equal(weight("a", "a"), weight("b", "a"))
    assert not torch.equal(weight("a", None), weight("b", None))


def test_odin_learns_the_length_in_a_head_that_is_left_out(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    """The longer answer always wins: plainly trained, the score is the length; with ODIN much less so."""
    mixed = [
        pair
        for i, (a, b) in enumerate(zip(answers(prompts, 64, longer=True), prompts[1:65], strict=False))
        for pair in [
            a,
            Preference(
                b,
                f" {b.text.split()[0]} was glad." + " It rained." * (i % 4 + 1),
                " It rained.",
                1.0,
                f"x{i}",
            ),
        ]
    ]
    pairs = EncodedPairs(base, codec, mixed)
    lengths = [float(n) for n in pairs.sequences.response_lengths]

    def link(how: str) -> float:
        model, _ = trained(base, pairs, length=how, epochs=3, bootstrap=False)
        return abs(pearson(raw_scores(model, pairs.sequences).tolist(), lengths) or 0.0)

    assert link("odin") < link("none") - 0.2


def test_bsr_draws_batches_to_zero(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    pairs = EncodedPairs(base, codec, answers(prompts, 16))
    model = new_reward_head(base, 0, "member-0", layers=base.layers, dropout=0.0)
    copies = dict.fromkeys(range(16), 1)
    plain = RewardConfig(label_smoothing=0.0, center_coef=0.0)
    with torch.no_grad():
        mean = torch.cat(pairs.each(model.score, range(16))).mean()
    losses = [
        pairs_gradient(model, pairs, copies, plain.model_copy(update={"bsr_coef": c}), 64)["loss"]
        for c in (0.0, 10.0)
    ]
    assert losses[1] - losses[0] == pytest.approx(10 * float(mean) ** 2, rel=1e-3)


def test_early_stopping_keeps_the_best_weights(base: Backbone, codec: Codec, prompts: list[Prompt]) -> None:
    """Labels of a coin: what is learned is noise, and the first look is better than the last."""
    pairs = EncodedPairs(
        base,
        codec,
        [
            p if i % 2 else Preference(p.prompt, p.rejected, p.chosen, 1.0, p.comparison_id)
            for i, p in enumerate(answers(prompts, 64))
        ],
    )
    model, stats = trained(base, pairs, early_stopping=0.25, epochs=4)
    seen = [s["unseen_loss"] for s in stats if "unseen_loss" in s.values]
    assert len(seen) == 8
    config = RewardConfig()
    _, unseen = kept_apart(pairs, 0.25, 0, "member-0")
    chosen, rejected = unseen.sides(raw_scores(model, pairs.sequences))
    now = float(bradley_terry_loss(chosen, rejected).mean())
    assert now == pytest.approx(min(seen), abs=1e-4)
    assert config.early_stopping == 0


def test_who_learns_and_who_looks_share_no_prompt(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    pairs = EncodedPairs(base, codec, answers(prompts, 20) + answers(prompts, 20, longer=True))
    learned, unseen = kept_apart(pairs, 0.3, 0, "member-0")
    assert not set(learned.groups) & set(unseen.groups)
    assert len(learned) + len(unseen) == 40
    assert len(set(unseen.groups)) == 6
    with pytest.raises(TrainingError, match="leaves no pairs"):
        kept_apart(pairs.only([0]), 0.3, 0, "member-0")


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="shared_head: true"):
        RewardConfig(aggregate="weights")
    with pytest.raises(ValidationError, match="several members"):
        RewardConfig(shared_head=True, members=1)


class Noise(RewardEnsemble):
    """Members that are independent noise about answers, which a rollout holds as its log-probabilities (N, K)."""

    @property
    def base(self) -> Backbone:
        return None  # type: ignore[return-value]

    def normalised(self, sequences: Sequences) -> torch.Tensor:
        return sequences  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["mean", "min", "mean_std", "uwo"])
def test_every_candidate_is_as_likely_to_be_picked(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 prompts, four answers to each and an independent reference: a share of 1/4 each, 0.02 being three standard
    errors. With the first answer as reference `min` picks it in about half of all cases."""
    monkeypatch.setattr(Sequences, "of", lambda base, rollout, pad_id: rollout)
    ensemble = Noise([], torch.zeros(3), torch.ones(3), how, uwo_lambda=0.5)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    *samples, reference = (torch.randn(4000, 3, generator=rng) for _ in range(5))
    scores = scores_of_samples(ensemble, samples, reference if ensemble.relative else None, 0)  # type: ignore[arg-type]
    shares = torch.bincount(scores.argmax(0), minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.021)
    among = scores_of_samples(ensemble, samples, samples[0], 0)  # type: ignore[arg-type]
    picked = float((among.argmax(0) == 0).float().mean())
    assert picked == pytest.approx(0.25, abs=0.021) if how == "mean" else picked > 0.3


def test_a_relative_score_is_refused_without_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sequences, "of", lambda base, rollout, pad_id: rollout)
    ensemble = Noise([], torch.zeros(3), torch.ones(3), "min")
    with pytest.raises(AssertionError):
        scores_of_samples(ensemble, [torch.zeros(2, 3)], None, 0)  # type: ignore[list-item]
