"""What is shipped when nothing trained wins."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.config.model import ModelConfig
from burnish.models.load import load_model
from burnish.pipeline.report import export_champion


@pytest.mark.parametrize(
    ("fine_tuned", "champion"), [(True, "best_of_4"), (True, "sft"), (False, "best_of_4")]
)
def test_best_of_n_ships_the_sft_model_that_was_sampled(
    tmp_path: Path, fine_tuned: bool, champion: str
) -> None:
    if fine_tuned:
        (tmp_path / "sft").mkdir()
        (tmp_path / "sft" / "config.json").write_text('{"mark": "fine-tuned"}')
    models: Any = SimpleNamespace(config=ModelConfig())
    export_champion(models, tmp_path, {"champion": champion}, "card")
    shipped = json.loads((tmp_path / "champion" / "config.json").read_text())
    assert ("mark" in shipped) == fine_tuned
    if not fine_tuned:
        assert shipped["num_hidden_layers"] == load_model(ModelConfig())[0].config.num_hidden_layers
    assert (tmp_path / "champion" / "README.md").read_text() == "card"
