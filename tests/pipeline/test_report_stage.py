"""What is shipped when nothing trained wins."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burnish.config.model import ModelConfig
from burnish.models.generate import sample_rollout
from burnish.models.load import load_model
from burnish.models.sequences import Sequences
from burnish.pipeline.context import RunContext
from burnish.pipeline.report import export_champion, report
from burnish.reward.ensemble import load_ensemble
from burnish.reward.length import How, fit_correction
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json, write_json
from tests.command import burnish
from tests.standalone import without_burnish


@pytest.mark.parametrize("fine_tuned", [True, False])
def test_sft_ships_the_model_that_was_sampled(tmp_path: Path, fine_tuned: bool) -> None:
    if fine_tuned:
        (tmp_path / "sft").mkdir()
        (tmp_path / "sft" / "config.json").write_text('{"mark": "fine-tuned"}')
    models: Any = SimpleNamespace(config=ModelConfig())
    export_champion(models, tmp_path, {"champion": "sft"}, "card")
    shipped = json.loads((tmp_path / "champion" / "config.json").read_text())
    assert ("mark" in shipped) == fine_tuned
    if not fine_tuned:
        assert shipped["num_hidden_layers"] == load_model(ModelConfig())[0].config.num_hidden_layers
    assert (tmp_path / "champion" / "README.md").read_text() == "card"


@pytest.mark.parametrize(
    ("aggregate", "length"), [("mean", None), ("min", "regress"), ("uwo", "sqrt"), ("mean_std", None)]
)
def test_best_of_n_ships_policy_ensemble_and_a_program_that_needs_nothing_of_ours(
    run_copy: Path, aggregate: str, length: How | None
) -> None:
    """Where burnish cannot be imported it scores as the run did, and answers with the best it sampled."""
    fit = (
        length
        and fit_correction(
            length, torch.linspace(-2, 2, 40) ** 3 + torch.linspace(0, 40, 40).sin(), list(range(5, 45))
        ).as_json()
    )
    changes = {
        "evaluation": {"champion": "best_of_2"},
        "reward/ensemble": {"aggregate": aggregate, "length": fit},
    }
    for file, change in changes.items():
        write_json(run_copy / f"{file}.json", read_json(run_copy / f"{file}.json") | change)
    place = RunContext.alone(RunDirectory.open(run_copy))
    report(place.models, run_copy, "short", place.config.evaluate, 0)
    prompts = list(place.data.splits.test[:1]) * 4  # the last answer is the reference
    rollout = sample_rollout(
        place.models.reference(),
        place.models.codec,
        prompts,
        max_tokens=56,
        batch_size=4,
        seed=0,
        where=("t",),
    )
    ensemble = load_ensemble(place.models.base, run_copy / "reward")
    sequences = Sequences.of(ensemble.base, rollout, place.models.codec.pad_id)
    anchor = ensemble.normalised(sequences)[3:].expand(4, -1)
    expected = ensemble.score(sequences, anchor).scores.tolist()[:3]
    with without_burnish(run_copy / "champion"):
        with pytest.raises(ImportError):
            importlib.import_module("burnish")
        generate = importlib.import_module("generate")
        best = generate.BestOf()
        torch.manual_seed(0)
        ids = best.encode(prompts[0].text)
        with torch.no_grad():
            scores = best.scores(ids, rollout.response_ids[:3], rollout.response_ids[3])
        answers = best.answers(prompts[0].text)
    assert ids == rollout.prompt_ids[0]
    assert scores == pytest.approx(expected, abs=1e-4)
    assert len(answers) == 2
    assert answers[0][0] >= answers[1][0]
    assert all(text.strip() for _, text in answers)
    assert "generate.py" in (run_copy / "champion" / "README.md").read_text()
    said = json.loads(burnish("chat", str(run_copy), "--json", stdin=f"{prompts[0].text}\n").stdout)
    assert said.keys() == {"sft", "best_of_2"}
