"""Tasks of lm-eval, asked of a policy of a run: held against the harness's own way to ask a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burnish.config import RunConfig
from burnish.config.checks import check_config
from burnish.config.evaluate import EvaluateConfig, RegressionSet
from burnish.config.model import ModelConfig
from burnish.errors import ConfigError, DataError
from burnish.pipeline.context import Models
from burnish.pipeline.regression_sets import measured

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'burnish[lm-eval]'")

OPENINGS = ["Lily had a ball", "Tom saw a dog", "The sun was warm", "Mia ran home", "Once there was a cat"]
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{opening}}. She was"
doc_to_choice: ["happy", "was"]
doc_to_target: 0
metric_list: [{metric: acc, higher_is_better: true}]
"""
STORIES = """
output_type: generate_until
doc_to_text: "{{opening}} and"
doc_to_target: "{{first}}"
generation_kwargs: {until: ["."], max_gen_toks: 12}
metric_list: [{metric: exact_match, higher_is_better: true, ignore_case: true}]
"""
TEXTS = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{opening}} and they played all day. They were happy."
metric_list: [{metric: word_perplexity, higher_is_better: false}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks of one's own, and their questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"opening": f"{o} {n}", "first": "."} for o in OPENINGS for n in ("again", "too")]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choices", CHOICES), ("stories", STORIES), ("texts", TEXTS)):
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + text)
    return folder


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(ModelConfig(), None, 1.0)


def held(models: Models, given: RegressionSet) -> Any:
    sft, same = models.reference(0.7), models.new_policy()
    found = measured(models, sft, same, given, EvaluateConfig(), 1)
    assert sft.temperature == 0.7, "whoever is asked next is as it was"
    return found


@pytest.mark.slow("lm-eval")
def test_the_same_policy_loses_nothing_on_any_kind_of_task(models: Models, tasks: Path) -> None:
    for task, metric in (("choices", None), ("stories", "exact_match"), ("choices", "acc,none")):
        found = held(models, RegressionSet(task=task, include=str(tasks), metric=metric))
        assert found.name == task
        assert found.difference.n == 2 * len(OPENINGS)
        assert (found.difference.value, found.loses) == (0.0, False)
    assert held(models, RegressionSet(task="choices", include=str(tasks), limit=8)).difference.n == 8


def test_it_says_what_the_harness_says_of_the_plain_model(models: Models, tasks: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from burnish.pipeline.lm_eval import Answers

    lm, codec = models.base.lm, models.codec
    plain = HFLM(pretrained=lm, tokenizer=codec.tokenizer, batch_size=4, device="cpu")
    ours = Answers(models, models.reference(), EvaluateConfig())
    told = [
        lm_eval.simple_evaluate(
            model,
            tasks=["choices", "stories", "texts"],
            task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            verbosity="ERROR",
        )["samples"]
        for model in (ours, plain)
    ]
    for mine, theirs in zip(told[0]["choices"], told[1]["choices"], strict=True):
        for a, b in zip(mine["filtered_resps"], theirs["filtered_resps"], strict=True):
            assert a[0] == pytest.approx(b[0], abs=0.01)
            assert a[1] == b[1]
    for mine, theirs in zip(told[0]["texts"], told[1]["texts"], strict=True):
        assert mine["resps"][0][0] == pytest.approx(theirs["resps"][0][0], abs=0.05)
    same = [
        a["resps"][0][0].strip() == b["resps"][0][0].strip()
        for a, b in zip(told[0]["stories"], told[1]["stories"], strict=True)
    ]
    assert sum(same) >= len(same) - 1, "a tie may fall either way"
    texts = [row["resps"][0][0] for row in told[0]["stories"]]
    assert max(len(t.split()) for t in texts) > 2, texts
    assert not any("." in t for t in texts)


def test_long_texts_are_read_whole_in_windows(models: Models) -> None:
    """Every token counts once, whatever the window; a smaller window only shortens contexts."""
    from burnish.pipeline.lm_eval import Answers

    ours = Answers(models, models.reference(), EvaluateConfig())
    text = " ".join(OPENINGS)
    n = len(ours.tok_encode(text, add_special_tokens=False))
    counted: list[int] = []
    read = ours._loglikelihood_tokens

    def counting(requests: list[Any], **named: Any) -> list[tuple[float, bool]]:
        counted.append(sum(len(after) for _, _, after in requests))
        assert all(len(before) + len(after) <= ours.room for _, before, after in requests)
        return read(requests, **named)

    ours._loglikelihood_tokens = counting  # type: ignore[method-assign]
    for room in (7, 8, n + 5):
        ours.room = room
        (nats,) = ours.loglikelihood_rolling([SimpleNamespace(args=(text,))])
        assert nats < 0
    assert counted == [n, n, n]


def test_a_champion_that_has_unlearned_a_task_is_seen_to_lose(models: Models, tasks: Path) -> None:
    """Whatever SFT finds likely it finds unlikely."""
    sft = models.reference()
    head = torch.nn.Linear(*reversed(sft.head.weight.shape), bias=False)
    head.weight.data = -sft.head.weight.detach()
    champion = replace(sft, head=head)
    given = RegressionSet(task="choices", include=str(tasks))
    found = measured(models, models.reference(), champion, given, EvaluateConfig(), 1)
    assert found.baseline == 1.0
    assert found.champion == 0.0
    assert found.loses


@pytest.mark.slow("lm-eval")
def test_mistakes_are_told_in_words(models: Models, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="knows no task 'no_such'"):
        held(models, RegressionSet(task="no_such"))
    with pytest.raises(ConfigError, match="no figure for each question called 'f2'; it has acc"):
        held(models, RegressionSet(task="choices", include=str(tasks), metric="f2"))
    with pytest.raises(ConfigError, match="no figure for each question; it has word_perplexity"):
        held(models, RegressionSet(task="texts", include=str(tasks)))
    short = tasks / "rows.jsonl"
    kept = short.read_text()
    few = tasks / "few.yaml"
    (tasks / "few.jsonl").write_text("\n".join(kept.splitlines()[:3]) + "\n")
    few.write_text(
        (tasks / "choices.yaml").read_text().replace("task: choices", "task: few").replace("rows", "few")
    )
    with pytest.raises(DataError, match="has 3 questions, 8 are needed"):
        held(models, RegressionSet(task="few", include=str(tasks)))
    gone = tasks / "gone.yaml"
    gone.write_text(
        (tasks / "choices.yaml").read_text().replace("choices", "gone").replace("rows", "nowhere")
    )
    with pytest.raises(DataError, match="'gone' could not be run: Unable to find"):
        held(models, RegressionSet(task="gone", include=str(tasks)))
    for wrong in ({}, {"file": "a", "task": "b"}):
        with pytest.raises(ValueError, match="give one of the two"):
            RegressionSet(**wrong)
    with pytest.raises(ValueError, match="a file has `measure`"):
        RegressionSet(file="a", metric="acc")
    monkeypatch.setattr("burnish.config.evaluate.find_spec", lambda name: None)
    for given, words in (
        (RegressionSet(task="choices"), r"pip install 'burnish\[lm-eval\]'"),
        (RegressionSet(file="nowhere.jsonl"), r"nowhere\.jsonl, which does not exist"),
    ):
        with pytest.raises(ConfigError, match=words):
            held(models, given)
        with pytest.raises(ConfigError, match=words):  # said before a run, not after it
            check_config(RunConfig(evaluate=EvaluateConfig(regression_sets=(given,))))
