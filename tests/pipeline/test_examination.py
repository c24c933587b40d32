"""Several responses to a prompt in the evaluate stage: who is compared with whom, lengths, kinds, best of n."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from burnish.config.checks import check_config
from burnish.config.evaluate import EvaluateConfig
from burnish.config.loading import load_config
from burnish.data.preferences import read_kinds_of_pairs
from burnish.data.prompts import read_kinds
from burnish.errors import ConfigError
from burnish.evaluation.champion import AVERAGE
from burnish.pipeline.candidates import Answers, examined_policies, sample_all
from burnish.pipeline.context import RunContext
from burnish.pipeline.evaluate import compared, length_deltas, turned
from burnish.records import Prompt
from burnish.report.page import kinds_worse
from burnish.runs.directory import RunDirectory


def test_responses_to_a_prompt_are_rotated_within_their_row() -> None:
    assert turned(["a", "b", "c", "x", "y", "z"], 3, 1) == ["b", "c", "a", "y", "z", "x"]
    assert turned(["a", "b"], 1, 0) == ["a", "b"]


def test_each_response_meets_all_of_the_baseline_unless_it_was_chosen_from_them() -> None:
    """Longer wins. Ours have 1 and 3 letters, theirs 2 and 2 to the first prompt, 0 and 4 to the second."""
    asked = [Prompt("p"), Prompt("p"), Prompt("q"), Prompt("q")]

    def judge(prompt: Prompt, first: str, second: str) -> float:
        return 0.5 + 0.5 * ((len(first) > len(second)) - (len(first) < len(second)))

    ours = Answers(["a", "bbb", "a", "bbb"], [1, 3, 1, 3])
    theirs = Answers(["cc", "dd", "", "dddd"], [2, 2, 0, 4])
    assert compared(judge, asked, ours, theirs, 2) == [0.0, 1.0, 0.5, 0.5]
    ours.independent = False
    assert compared(judge, asked, ours, theirs, 2) == [0.0, 1.0, 1.0, 0.0]
    assert length_deltas(ours, theirs, 1) == [-1.0, 1.0, 1.0, -1.0]
    assert length_deltas(ours, theirs, 2) == [-1.0, 1.0, -1.0, 1.0]


def test_how_many_responses_each_examiner_sees() -> None:
    assert EvaluateConfig(examiner="reward_model").answers == 4
    assert [EvaluateConfig(examiner=e).answers for e in ("panel", "judge", "people")] == [1, 1, 1]
    assert EvaluateConfig(examiner="people", samples=3).answers == 3
    assert EvaluateConfig(examiner="reward_model", best_of_n=4).sft_answers == 5
    assert EvaluateConfig(examiner="reward_model", best_of_n=2).sft_answers == 4
    assert EvaluateConfig(best_of_n=1).sft_answers == 1


def test_best_of_n_never_chooses_the_response_that_it_is_compared_with(short_run: Path) -> None:
    place = RunContext.alone(RunDirectory.open(short_run))
    prompts = place.data.splits.test[:6]
    settings = EvaluateConfig(samples=3, best_of_n=2, kl_prompts=4)
    answers = sample_all(place.models, place.journal.run, prompts, settings, 5)
    place.data.close()
    sft, best = answers["sft"], answers["best_of_2"]
    assert len(sft.texts) == len(best.texts) == 18
    assert not best.independent
    for row in range(6):
        own = sft.texts[3 * row : 3 * row + 3]
        for k, text in enumerate(best.texts[3 * row : 3 * row + 3]):
            assert text in [t for i, t in enumerate(own) if i != k]
    trained = next(a for name, a in answers.items() if name not in ("sft", "best_of_2"))
    assert len(trained.texts) == 18
    assert trained.kl is not None
    assert trained.kl["kl_n"] == 4, "KL is measured on one response to each prompt"


def test_responses_of_a_model_without_kept_activations(short_run: Path) -> None:
    """KL reads the first rollout, and thereby keeps activations that the others do not have."""
    place = RunContext.alone(RunDirectory.open(short_run))
    models, prompts = place.models, place.data.splits.test[:4]
    settings = EvaluateConfig(samples=2, best_of_n=1, kl_prompts=4)
    models.base.__dict__["_fast"] = False
    answers = sample_all(models, place.journal.run, prompts, settings, 5)
    place.data.close()
    assert all(len(a.texts) == 8 for a in answers.values())


def test_averaged_weights_are_no_unasked_question_to_a_paid_examiner(run_copy: Path) -> None:
    run = RunDirectory.open(run_copy)
    shutil.copytree(run_copy / "ppo", run_copy / AVERAGE, dirs_exist_ok=True)
    assert AVERAGE in examined_policies(run)
    for examiner, asked, there in (("judge", None, False), ("people", 3, True), ("reward_model", None, True)):
        config = run.config.model_copy(
            update={
                "evaluate": run.config.evaluate.model_copy(update={"examiner": examiner}),
                "ppo": run.config.ppo.model_copy(update={"average_updates": asked}),
            }
        )
        assert (AVERAGE in examined_policies(RunDirectory(run_copy, config))) == there


def test_kinds_are_read_from_a_column(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "Write a loop", "kind": "code"},
        {"prompt": "Say hello", "kind": " chat "},
        {"prompt": "No kind"},
        {"prompt": "A number", "kind": 3},
        {"prompt": "Write a loop", "kind": "later"},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read_kinds(file, "kind") == {
        Prompt("Write a loop").id: "code",
        Prompt("Say hello").id: "chat",
        Prompt("A number").id: "3",
    }
    pairs = tmp_path / "pairs.jsonl"
    dialogue = "\n\nHuman: Write a loop\n\nAssistant: "
    own = [
        {"prompt": "Say hello", "chosen": "Hi", "rejected": "No", "kind": "chat"},
        {"chosen": dialogue + "for", "rejected": dialogue + "while", "kind": "code"},
        {"prompt": "Rank", "responses": ["a", "b"], "ranking": [[0], [1]], "kind": "ranked"},
        {"prompt": "Broken", "chosen": 3, "rejected": "No", "kind": "lost"},
    ]
    pairs.write_text("".join(json.dumps(r) + "\n" for r in own))
    known = read_kinds_of_pairs(pairs, "train", "kind", None, {})
    assert sorted(known.values()) == ["chat", "code", "ranked"]
    assert known[Prompt("Say hello").id] == "chat"
    with pytest.raises(ConfigError, match="have no columns"):
        check_config(load_config(None, ["evaluate.kinds=kind"]))


def test_a_report_names_the_kinds_that_got_worse() -> None:
    row = {"kind": "code", "win_rate": 0.2, "worse": True}
    assert kinds_worse({"kinds": {"policies": {"ppo": [row]}}}) == "Worse than SFT: ppo on code (0.20)."
    fine = kinds_worse({"kinds": {"policies": {"ppo": [row | {"worse": False}]}}})
    assert fine == "No policy is surely worse than SFT on a kind."
    assert kinds_worse({"policies": {}}) is None, "an older run"
    assert kinds_worse({"kinds": {"policies": {"ppo": []}}}) is None


def test_pairs_and_kinds_are_in_the_evaluation_of_a_run(short_run: Path) -> None:
    found = json.loads((short_run / "evaluation.json").read_text())
    assert found["answers"] == 1
    names = [name for name in found["policies"] if name != "sft"]
    assert len(found["pairs"]) == len(names) * (len(names) - 1) // 2
    for pair in found["pairs"]:
        rates = [found["policies"][pair[side]]["test"]["win_rate"] for side in ("first", "second")]
        assert pair["difference"]["value"] == pytest.approx(rates[0] - rates[1])
        assert 0 <= pair["win_rate"]["win_rate"] <= 1
    assert found["kinds"]["from"] == "clusters of prompts"
    assert "Candidates compared with one another" in (short_run / "report.html").read_text()
