"""What DPO learns from, by why PPO failed; and how sure it takes labels to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from burnish.config.dpo import DPOConfig
from burnish.data.store import LabelStore
from burnish.labels.consensus import Votes, Weighed
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.load import Codec
from burnish.models.logprobs import make_policy
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.answers import ScoredSamples
from burnish.pipeline.dpo import MOST, UNKNOWN, clearest, pairs_after, smoothing_of
from burnish.policy.dpo import DPO
from burnish.records import Comparison, Label, Preference, Prompt, Response, Rollout


@pytest.mark.parametrize(
    ("ppo", "learned"),
    [
        ({"state": "finished", "cause": None}, "labels"),
        ({"state": "stopped"}, "labels"),
        ({"state": "given_up", "cause": "reward"}, "labels"),
        ({"state": "given_up", "cause": "optimiser"}, "both"),
    ],
)
def test_after_a_failed_reward_only_the_labels_after_a_failed_optimiser_what_it_prefers_too(
    ppo: dict[str, Any], learned: str
) -> None:
    assert pairs_after(ppo, DPOConfig()) == learned
    assert pairs_after(ppo, DPOConfig(pairs="on_policy")) == "on_policy", "what was asked for is done"


@dataclass
class Stored:
    """What is read of a run's data here."""

    store: LabelStore
    snapshot: None = None


def labelled(path: Path, wrong: int, each: int) -> Stored:
    """Thirty comparisons whose first answer is the better one, `each` of seven annotators asked, of whom every
    `wrong`-th label says the other."""
    store = LabelStore(path / "labels.sqlite")
    labels = []
    for i in range(30):
        c = Comparison(Prompt(f"question {i}"), Response(f"good {i}"), Response(f"bad {i}"))
        store.add_comparisons([c])
        for k in range(each):
            says = 0.0 if (i * each + k) % wrong == 0 else 1.0
            labels.append(Label(c.id, f"a{(i + k) % 7}", says, "human"))
    store.add_labels(labels)
    return Stored(store)


def smoothed(data: Stored, **config: Any) -> tuple[float, str]:
    return smoothing_of(data, data.store.preferences(), DPOConfig(**config))  # type: ignore[arg-type]


def test_smoothing_is_the_share_of_pairs_that_are_expected_to_be_wrong(tmp_path: Path) -> None:
    """One label in five is wrong, and one of each pair's five: a majority is hardly ever wrong."""
    several = labelled(tmp_path, wrong=5, each=5)
    smoothing, why = smoothed(several)
    assert 0 < smoothing < 0.05
    assert "of the pairs are expected to name the worse answer" in why
    assert smoothed(several, label_smoothing=0.3)[0] == 0.3
    assert smoothed(several, loss="ipo")[0] == 0.0
    assert smoothing <= MOST


def test_smoothing_of_pairs_that_are_trained_on_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posteriors 0.9 and 0.4 of two labels each, one label alone (as often wrong as a label is), one pair that is not
    trained on."""
    store = LabelStore(tmp_path / "labels.sqlite")
    compared = [
        Comparison(Prompt(f"question {i}"), Response(f"good {i}"), Response(f"bad {i}")) for i in range(4)
    ]
    store.add_comparisons(compared)
    given = [
        (0, "a", 1.0),
        (0, "b", 1.0),
        (1, "a", 1.0),
        (1, "b", 0.0),
        (2, "a", 1.0),
        (3, "a", 1.0),
        (3, "b", 1.0),
    ]
    store.add_labels([Label(compared[i].id, who, says, "human") for i, who, says in given])
    posterior = {0: 0.9, 1: 0.4, 2: 1.0, 3: 0.5}

    def weighed(votes: Votes, how: str) -> Weighed:
        of = {compared[i].id: p for i, p in posterior.items()}
        return Weighed(np.array([of[i] for i in votes.ids]), None, 0.75)

    monkeypatch.setattr("burnish.pipeline.dpo.weigh", weighed)
    pairs = [Preference(c.prompt, "good", "bad", comparison_id=c.id) for c in compared[:3]]
    own = [Preference(Prompt("own"), "x", "y")]
    smoothing, _ = smoothing_of(Stored(store), pairs + own, DPOConfig())  # type: ignore[arg-type]
    label_wrong = (0.1 + 0.1 + 0.6 + 0.4 + 0.5 + 0.5) / 6
    assert smoothing == pytest.approx((0.1 + 0.4 + label_wrong) / 3)


def test_the_clearest_pairs_of_a_ranking_are_its_best_against_its_worst() -> None:
    ranked = [Prompt("a"), Prompt("b")]
    pairs = [
        Preference(prompt, better, worse)
        for prompt in ranked
        for better, worse in ("12", "13", "14", "23", "34")
    ]
    found = clearest(pairs, 1)
    assert [(p.prompt.text, p.chosen, p.rejected) for p in found] == [("a", "1", "4"), ("b", "1", "4")]
    assert [(p.chosen, p.rejected) for p in clearest(pairs[:5], 2)] == [("1", "3"), ("1", "4")]
    assert clearest(pairs, None) == pairs
    assert clearest(pairs, 9) == pairs
    assert clearest(pairs[:1], 1) == pairs[:1]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_dpo_learns_pairs_as_far_as_their_labels_agree(loss: str, base: Backbone, codec: Codec) -> None:
    """Half of the labels for each side: the policy does not move; all for one side: it does."""

    def gradient(confidence: float, soft: bool = True) -> float:
        pairs = [Preference(Prompt("Once upon a time"), "the cat ran.", "a dog sat.", confidence)]
        dpo = DPO(
            policy=make_policy(TrainableLayers(base), codec.pad_id),
            reference=make_policy(TrainableLayers(base, trainable=False), codec.pad_id),
            pairs=EncodedPairs(base, codec, pairs),
            config=DPOConfig(loss=loss, soft_labels=soft),  # type: ignore[arg-type]
            learning_rate=0.0,
            seed=0,
        )
        dpo.gradient([0], dpo.cache_reference(), 2, 1)
        return sum(float(p.grad.abs().sum()) for p in dpo.parameters if p.grad is not None)

    sure = gradient(1.0)
    assert sure > 0
    assert gradient(0.5) < 1e-4 * sure
    assert gradient(0.75) == pytest.approx(sure / 2, rel=0.01), (
        "at the reference the gradient goes with 2 q - 1"
    )
    assert gradient(0.5, soft=False) == pytest.approx(sure)


def test_where_nobody_was_asked_twice_it_says_that_it_does_not_know(tmp_path: Path) -> None:
    smoothing, why = smoothed(labelled(tmp_path, wrong=5, each=1))
    assert smoothing == UNKNOWN
    assert "is unknown" in why


def round_of(texts: list[str]) -> Rollout:
    nothing = torch.zeros(0)
    n = len(texts)
    prompts = [Prompt(f"p{i}") for i in range(n)]
    return Rollout(prompts, [[2]] * n, [[3]] * n, texts, [True] * n, nothing, nothing, nothing.bool())


def test_a_pair_counts_only_where_the_watcher_says_the_same() -> None:
    rounds = [round_of(["good", "good", "same"]), round_of(["bad", "bad", "same"])]
    judged = ScoredSamples(rounds, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert [p.prompt.text for p in judged.pairs()] == ["p0", "p1"]

    def watch(rollout: Rollout) -> torch.Tensor:
        worth = {"good": [1.0, -1.0, 0.0], "bad": [0.0, 0.0, 0.0], "same": [0.0] * 3}
        return torch.tensor([worth[t][i] for i, t in enumerate(rollout.texts)])

    assert [p.prompt.text for p in judged.pairs(watch)] == ["p0"]
