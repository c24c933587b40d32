"""Every example and every command of the README is real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from burnish.cli import app
from burnish.config.loading import load_config
from burnish.docs import cli_page
from burnish.pipeline.order import check_config

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda p: p.name)
def test_examples_load_and_can_be_carried_out(file: Path) -> None:
    check_config(load_config(file))


def test_readme_names_only_commands_and_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^(?:\.venv/bin/)?burnish ([a-z]+)", text, flags=re.M))
    assert used
    assert used <= commands
    for target in re.findall(r"^make ([a-z]+)", text, flags=re.M):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:examples|benchmarks)/[\w.]+", text):
        assert (ROOT / path).exists(), path


def test_the_command_line_page_is_fresh() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == cli_page()
