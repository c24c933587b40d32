"""Looks at held-out prompts during PPO: their figures, the checkpoint that is chosen, and their restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from burnish.policy.looks import Looks
from burnish.policy.ppo import PPO
from burnish.records import Prompt, Rollout
from burnish.report.charts import look_charts
from burnish.stats import earliest_near_best
from tests.toys import VOCABULARY, make_ppo, toy


def looked(tmp_path: Path, **config: object) -> tuple[PPO, Looks]:
    base, codec = toy()
    ppo = make_ppo(base, codec, updates=6, batch_size=32, epochs=1, rate=0.05, **config)

    def measure(rollout: Rollout) -> dict[str, list[float]]:
        hit = [float(VOCABULARY["a"] in r) for r in rollout.response_ids]
        return {"score": hit, "watcher": hit}

    prompts = [Prompt(" ".join(["p"] * n)) for n in range(1, 6)]
    return ppo, Looks(prompts, measure, "watcher", 2, tmp_path / "looks")


def test_the_first_look_within_one_error_of_the_best() -> None:
    groups = ["a", "b", "c", "d"]
    base = [0.0, 1.0, 2.0, 3.0]
    better = [v + 3.0 for v in base]
    noisy = [v + d for v, d in zip(better, [2.0, -2.0, 2.0, -1.6], strict=True)]  # 0.1 better, error near 1
    assert earliest_near_best([base, better, noisy], groups) == 1
    assert earliest_near_best([base, better], groups) == 1
    assert earliest_near_best([base, base], groups) == 0
    with pytest.raises(ValueError, match="0 looks"):
        earliest_near_best([], groups)


def test_items_of_one_group_count_as_one() -> None:
    """The same differences have a larger error if they come from two groups and not from eight."""
    best = [2.0] * 4 + [-0.5] * 4
    early = [0.0] * 8
    assert earliest_near_best([early, best], list(range(8))) == 1
    assert earliest_near_best([early, best], [0] * 4 + [1] * 4) == 0


def test_looks_measure_the_policy_and_keep_its_weights(tmp_path: Path) -> None:
    ppo, looks = looked(tmp_path)
    weights = {}
    for _ in ppo.updates():
        if looks.due(ppo):
            stats = looks.look(ppo)
            assert stats.step == ppo.step
            assert stats["score"] == stats["watcher"]
            assert stats["kl"] > 0
            assert stats["watcher_se"] >= 0
            assert 0 <= stats["truncated"] <= 1
            weights[ppo.step] = ppo.policy.top.trained_state()
    assert [row["step"] for row in looks.seen] == [2, 4, 6] == list(weights)
    for row in looks.seen:
        kept = looks.weights(row)
        assert all(torch.equal(kept[name], value) for name, value in weights[row["step"]].items())
    best = looks.best()
    assert best is not None
    text = looks.chosen(best)
    assert f"after update {best['step']}" in text.reason


def test_two_looks_at_one_policy_are_the_same_and_draw_nothing_from_training(tmp_path: Path) -> None:
    ppo, looks = looked(tmp_path)
    plain, _ = looked(tmp_path)
    for _, _ in zip(ppo.updates(), plain.updates(), strict=True):
        assert looks.look(ppo).values == looks.look(ppo).values
    for a, b in zip(ppo.policy_parameters, plain.policy_parameters, strict=True):
        assert torch.equal(a, b)


def test_figures_of_other_prompts_are_in_the_looks_and_in_a_chart(tmp_path: Path) -> None:
    ppo, looks = looked(tmp_path)
    looks.sets = lambda policy: {"regression_facts": float(policy is ppo.policy)}
    stats = looks.look(ppo)
    assert stats["regression_facts"] == 1.0
    assert next(title for title, *_ in look_charts([stats.as_row()])) == "Regression sets"


def test_without_a_judge_nothing_is_kept_and_nothing_is_chosen(tmp_path: Path) -> None:
    ppo, looks = looked(tmp_path)
    looks.judge = None
    stats = looks.look(ppo)
    assert "watcher_se" not in stats.values
    assert looks.seen == []
    assert looks.best() is None
    assert not looks.folder.exists()


def test_other_weights_last_for_a_block(tmp_path: Path) -> None:
    ppo, looks = looked(tmp_path)
    looks.look(ppo)
    before = ppo.policy.top.trained_state()
    for _ in ppo.updates():
        pass
    after = ppo.policy.top.trained_state()
    with ppo.with_weights(looks.weights(looks.seen[0])):
        now = ppo.policy.top.trained_state()
        assert all(torch.equal(now[name], before[name]) for name in before)
    now = ppo.policy.top.trained_state()
    assert all(torch.equal(now[name], after[name]) for name in after)
