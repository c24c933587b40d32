"""Every example and every command of the README is real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from typer.main import get_command

from burnish.cli.docs import cli_page, pages
from burnish.cli.main import app
from burnish.config.loading import known_keys, load_config
from burnish.data.store import LabelStore
from burnish.pipeline.run import run_pipeline

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def marked(file: Path) -> Any:
    """Mark an example of a real model, which must be fetched."""
    real = "gguf_file:" in file.read_text(encoding="utf-8")
    return pytest.param(file, id=file.name, marks=pytest.mark.realdata if real else ())


@pytest.mark.parametrize("file", [marked(file) for file in EXAMPLES])
def test_examples_run_up_to_their_labels(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as labelled pairs, with few of them; whole runs are made of short.yaml and unstable.yaml elsewhere."""
    monkeypatch.chdir(ROOT)
    config = load_config(
        file, ["threads=1", "collect.n_pairs=8", "data.n_prompts=300", "label.max_pairs=300"]
    )
    for needed in (config.label.preferences, config.model.path if config.model.gguf_file else None):
        if needed is not None and not Path(needed).exists():
            pytest.skip(f"{file.name} needs {needed}, which is not here")
    run = run_pipeline(config, tmp_path / "r", until="label")
    with LabelStore(run.path / "labels.sqlite") as store:
        assert store.count()["labels"] > 5


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.* pairs are left out")
@pytest.mark.parametrize("page", ["README.md", "docs/guides/python.md"])
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks run in order and share their names; each of them prints or saves something."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    assert blocks
    names = {"__name__": "__main__"}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 12, "an example is short"
        exec(block, names)
        assert capsys.readouterr().out.strip() or ".save(" in block, block


GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


@pytest.mark.parametrize("page", [ROOT / "README.md", *GUIDES], ids=lambda page: page.name)
def test_readme_and_guides_name_only_commands_and_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = re.findall(r"^(?:\.venv/bin/)?burnish ([a-z]+)(?: ([a-z]+))?", text, flags=re.M)
    assert {command for command, _ in used} <= commands
    for command, inner in used:
        group = getattr(get_command(app).commands[command], "commands", None)  # type: ignore[attr-defined]
        assert group is None or inner in group, f"burnish {command} {inner}"
    assert used or "make label" in text or page.name == "python.md"
    for target in re.findall(r"^make ([a-z]+)", text, flags=re.M):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / path).exists(), path
    for path in re.findall(r"(?:examples|benchmarks)/[\w.]+", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", pages())
def test_generated_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == pages()[name]


def test_the_configuration_page_has_every_key() -> None:
    page = pages()["configuration.md"]
    for key in known_keys():
        assert f"| `{key.rpartition('.')[2]}` |" in page or f" `{key}`" in page, key
    assert "| `accuracy` |" not in page
    assert "| `target` | number | `4.0` | above 0 | KL to the SFT model" in page


def test_what_the_checklist_names_is_there() -> None:
    """Every test by its name, every command by its words."""
    text = (ROOT / "docs" / "reference" / "checklist.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    for file, test in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"
    page = cli_page()
    for command in re.findall(r"`burnish ((?:label|reward) \w+|[a-z]+)", text):
        assert f"## `burnish {command}`" in page, command
    for script in re.findall(r"`python ((?:benchmarks|experiments)/\w+\.py)", text):
        assert (ROOT / script).exists(), script


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["quickstart", "rewards"])
def test_notebooks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells run as in a kernel, in order; notebooks are kept without outputs."""
    import nbformat

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(ROOT / "examples" / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 4
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = "".join(o.get("text", "") for cell in cells for o in cell.outputs)
    assert {"quickstart": "win rate", "rewards": "happy words"}[name] in shown
