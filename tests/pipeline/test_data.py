"""Imported labels, splits by prompt, and what the doctor sees of leaks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burnish.commands import doctor
from burnish.config.data import DataConfig
from burnish.config.evaluate import EvaluateConfig
from burnish.config.label import LabelConfig
from burnish.config.model import ModelConfig
from burnish.config.reward import RewardConfig
from burnish.data.prompts import PromptSplits
from burnish.data.store import LabelStore
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.generate import sample_rollout
from burnish.models.heads import new_reward_head, raw_scores
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, make_policy
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Data
from burnish.pipeline.evaluate import examiner_scores
from burnish.pipeline.label import label
from burnish.pipeline.reward import score_sd
from burnish.records import Message, Preference, Prompt
from burnish.reward.ensemble import RewardEnsemble


def test_rows_that_contradict_each_other_are_both_kept_and_counted(tmp_path: Path) -> None:
    """A beats B, B beats A, whichever side the hash puts first; a third question is undisputed."""
    pairs = []
    for i in range(20):
        pairs += [Preference(Prompt(f"p{i}"), "a", "b"), Preference(Prompt(f"p{i}"), "b", "a")]
    pairs.append(Preference(Prompt("q"), "a", "b", chosen_ended=False))
    rows: list[Any] = []
    with LabelStore(tmp_path / "l.sqlite") as store:
        data: Any = SimpleNamespace(imported=SimpleNamespace(pairs=pairs), store=store)
        run = SimpleNamespace(append=lambda name, row: rows.append(row))
        journal: Any = SimpleNamespace(run=run, path=tmp_path)
        label(data, journal, LabelConfig(source="imported"), seed=0)
        assert rows[0]["labels"] == 41
        assert (rows[0]["comparisons"], rows[0]["ties"], rows[0]["contradicted"]) == (21, 20, 20)
        assert {v.annotator for v in store.labels()} == {"import", "import-2"}
        (undisputed,) = store.preferences()
    assert (undisputed.chosen, undisputed.chosen_ended) == ("a", False)


def dialogue(first: str, *rest: str) -> Prompt:
    turns = [Message("user", first)]
    for text in rest:
        turns += [Message("assistant", "Yes?"), Message("user", text)]
    return Prompt.from_messages(turns)


def test_pairs_that_begin_as_a_held_out_dialogue_are_held_out(codec: Codec) -> None:
    held = [dialogue(f"question {i}") for i in range(30)]
    longer = [Preference(dialogue(f"Question {i}?", "go on"), "a", "b") for i in range(30)]
    others = [Preference(Prompt(f"other {i}"), "a", "b") for i in range(200)]
    plain = Codec(codec.tokenizer, codec.pad_id, codec.eos_id, codec.eos_ids, False)
    models: Any = SimpleNamespace(codec=plain, config=ModelConfig(max_prompt_tokens=200))
    nobody: Any = SimpleNamespace(path=Path("no run"))
    data = Data(DataConfig(), LabelConfig(), RewardConfig(), True, models, nobody, 0)
    data.__dict__["splits"] = PromptSplits([], held[:15], held[15:])
    data.__dict__["store"] = SimpleNamespace(preferences=lambda at: [*longer, *others])
    parts = data.parts
    assert {p.prompt.id for p in longer} <= {p.prompt.id for p in parts["examiner"]}
    for role in ("members", "watcher", "validation"):
        assert not {p.prompt.group for p in parts[role]} & {p.group for p in held}


@pytest.mark.parametrize(("held_pairs", "top_up"), [(60, False), (10, True)])
def test_the_examiner_takes_labels_of_held_out_prompts_first(
    codec: Codec, held_pairs: int, top_up: bool
) -> None:
    """A fifth of 200 pairs is 40: more than that from held-out prompts, and the members keep all the rest."""
    held = [Prompt(f"held {i}") for i in range(held_pairs)]
    pairs = [Preference(p, "a", "b") for p in held]
    pairs += [Preference(Prompt(f"other {i}"), "a", "b") for i in range(200 - held_pairs)]
    models: Any = SimpleNamespace(codec=codec, config=ModelConfig(max_prompt_tokens=200))
    nobody: Any = SimpleNamespace(path=Path("no run"))
    config = RewardConfig(examiner_share=0.2, watcher_share=0.2, validation_share=0.2)
    data = Data(DataConfig(), LabelConfig(), config, True, models, nobody, 0)
    data.__dict__["splits"] = PromptSplits([], held[:5], held[5:])
    data.__dict__["store"] = SimpleNamespace(preferences=lambda at: pairs)
    parts = data.parts
    own = len(parts["examiner"]) - held_pairs
    assert (own > 0) == top_up
    if top_up:
        assert 15 <= own <= 45, "30 are lacking"
    else:
        assert len(parts["members"]) + len(parts["watcher"]) + len(parts["validation"]) == 140


@pytest.mark.parametrize(("held", "ok"), [("What is 17 plus 4?", False), ("What is a plus?", True)])
def test_the_doctor_sees_near_copies_on_two_sides(held: str, ok: bool) -> None:
    train, other = [Prompt("What is 3 plus 5?"), Prompt("Who are you?")], Prompt("Where is Rome?")
    splits = PromptSplits(train, [Prompt(held)], [other])
    data: Any = SimpleNamespace(
        label=LabelConfig(), splits=splits, journal=SimpleNamespace(rejected=lambda name: [])
    )
    found = {f.check: f for f in doctor._data(data, EvaluateConfig())}
    assert found["leakage between splits"].ok is ok


def models_of(base: Backbone, codec: Codec) -> Any:
    return SimpleNamespace(
        base=base,
        codec=codec,
        config=ModelConfig(max_response_tokens=6),
        reference=lambda: make_policy(TrainableLayers(base, trainable=False), codec.pad_id),
    )


def test_the_examiner_reads_a_cut_off_answer_as_everybody_does(
    base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    models = models_of(base, codec)
    policy: Policy = models.reference()
    rollout = sample_rollout(policy, codec, prompts[:8], max_tokens=6, batch_size=8, seed=0, where=("cut",))
    assert not all(rollout.ended)
    model = new_reward_head(base, 0, "examiner", layers="all", dropout=0.0).eval()
    scores = examiner_scores(models, model, rollout)
    expected = raw_scores(model, Sequences.of(base, rollout, codec.pad_id))
    for prompt, text, value in zip(prompts[:8], rollout.texts, expected.tolist(), strict=True):
        assert scores[prompt.id, text] == pytest.approx(value, abs=1e-5)


class Planted(RewardEnsemble):
    """Members that agree on quality, two of them with opposite offsets for every prompt."""

    offset = 0.0
    part: Any = None

    @property
    def base(self) -> Backbone:
        found: Backbone = self.part
        return found

    def raw(self, sequences: Sequences) -> torch.Tensor:
        quality = torch.tensor([sum(r) % 13 * 1.0 for r in sequences.response_ids])
        offsets = torch.tensor([sum(p) % 11 - 5.0 for p in sequences.prompt_ids])
        return quality[:, None] + self.offset * torch.stack([offsets, -offsets, 0 * offsets], 1)


@pytest.mark.parametrize("how", ["min", "uwo"])
def test_the_scale_of_the_score_does_not_count_what_members_offset_a_prompt_by(
    how: Any, base: Backbone, codec: Codec, prompts: list[Prompt]
) -> None:
    """Comparing members across prompts would take offsets, which mean nothing, for disagreement."""
    models = models_of(base, codec)
    rollout = sample_rollout(
        models.reference(), codec, prompts, max_tokens=6, batch_size=64, seed=0, where=("reference",)
    )
    config = RewardConfig(reference_samples=32)
    found = []
    for offset in (0.0, 1.0):
        ensemble = Planted([], torch.zeros(3), torch.ones(3), how=how, uwo_lambda=1.0)
        ensemble.offset, ensemble.part = offset, base
        raw = ensemble.raw(Sequences.of(base, rollout, codec.pad_id))
        found.append(score_sd(models, ensemble, raw, prompts, config, EvaluateConfig(), 0))
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-4)
