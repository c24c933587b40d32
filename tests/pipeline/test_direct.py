"""What DPO learns from, by why PPO failed; and how sure it takes labels to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.config.dpo import DPOConfig
from burnish.data.store import LabelStore
from burnish.pipeline.direct import MOST, UNKNOWN, pairs_after, smoothing_of
from burnish.pipeline.own_answers import Judged
from burnish.records import Comparison, Label, Prompt, Response, Rollout


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


def test_smoothing_is_the_share_of_labels_that_are_expected_to_be_wrong(tmp_path: Path) -> None:
    several = labelled(tmp_path, wrong=5, each=5)
    smoothing, why = smoothing_of(several, DPOConfig())  # type: ignore[arg-type]
    assert smoothing == pytest.approx(0.2, abs=0.05)
    assert "are expected to be wrong" in why
    assert smoothing_of(several, DPOConfig(label_smoothing=0.3))[0] == 0.3  # type: ignore[arg-type]
    assert smoothing_of(several, DPOConfig(loss="ipo"))[0] == 0.0  # type: ignore[arg-type]
    assert smoothing <= MOST


def test_where_nobody_was_asked_twice_it_says_that_it_does_not_know(tmp_path: Path) -> None:
    smoothing, why = smoothing_of(labelled(tmp_path, wrong=5, each=1), DPOConfig())  # type: ignore[arg-type]
    assert smoothing == UNKNOWN
    assert "is not known" in why


def round_of(texts: list[str]) -> Rollout:
    nothing = torch.zeros(0)
    n = len(texts)
    prompts = [Prompt(f"p{i}") for i in range(n)]
    return Rollout(prompts, [[2]] * n, [[3]] * n, texts, [True] * n, nothing, nothing, nothing.bool())


def test_a_pair_counts_only_where_the_watcher_says_the_same() -> None:
    rounds = [round_of(["good", "good", "same"]), round_of(["bad", "bad", "same"])]
    judged = Judged(rounds, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert [p.prompt.text for p in judged.pairs()] == ["p0", "p1"]

    def watch(rollout: Rollout) -> torch.Tensor:
        worth = {"good": [1.0, -1.0, 0.0], "bad": [0.0, 0.0, 0.0], "same": [0.0] * 3}
        return torch.tensor([worth[t][i] for i, t in enumerate(rollout.texts)])

    assert [p.prompt.text for p in judged.pairs(watch)] == ["p0"]
