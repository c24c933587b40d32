"""A first configuration from a model and a file of preferences."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.commands.init import limit
from burnish.config.loading import load_config
from burnish.data.preferences import write_preferences
from burnish.models.load import load_model, resolve_path
from burnish.records import Preference
from burnish.rehearse.grammar import prompts
from tests.command import burnish


def test_a_limit_lets_in_nineteen_of_twenty() -> None:
    assert limit([*range(1, 20), 500]) == 32
    assert limit([16]) == 16
    assert limit([*[10] * 18, 100, 100]) == 112


def written(tmp_path: Path, n: int) -> Path:
    file = tmp_path / "pairs.jsonl"
    answers = [" She was happy and sang.", " He wept." + " It was cold and sad." * 3]
    write_preferences([Preference(p, *answers) for p in prompts(n, 3)], file)
    return file


def test_what_it_writes_fits_the_data_and_runs(tmp_path: Path) -> None:
    file = written(tmp_path, 90)
    model = resolve_path("embedded")
    done = burnish(
        *("init", "mine.yaml", "--kind", "real", "--model", model, "--preferences", str(file)), cwd=tmp_path
    )
    assert "burnish doctor mine.yaml" in done.stdout
    config = load_config(tmp_path / "mine.yaml")
    codec = load_model(config.model)[1]
    lengths = [len(codec.encode_prompt(p)) for p in prompts(90, 3)]
    assert config.model.max_prompt_tokens == limit(lengths) >= sorted(lengths)[85]
    assert config.model.max_response_tokens % 16 == 0
    assert config.model.use_chat_template is False
    assert 8 <= config.evaluate.n_selection < config.evaluate.n_test <= 27
    burnish("run", "mine.yaml", "--until", "label", "--set", "threads=1", cwd=tmp_path)
    assert (tmp_path / "runs" / "align" / "labels.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--kind", "real", "--model", "embedded"], 3, "belong together"),
        (["--model", "embedded", "--preferences", "pairs.jsonl"], 3, "--kind real"),
        (
            ["--kind", "real", "--model", "embedded", "--preferences", "pairs.jsonl"],
            4,
            "20 different prompts",
        ),
        (["--kind", "real", "--model", "embedded", "--preferences", "none.jsonl"], 4, "none.jsonl"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    written(tmp_path, 20)
    done = burnish("init", "mine.yaml", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert not (tmp_path / "mine.yaml").exists()
