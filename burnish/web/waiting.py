"""Projects of runs that wait for people: pairs to label, and answers to examine."""

from __future__ import annotations

from pathlib import Path

from burnish.data.store import is_url
from burnish.errors import BurnishError
from burnish.labels.served import ASKED, EXAMINATION
from burnish.labels.tasks import Rules
from burnish.runs.directory import RunDirectory, project_of
from burnish.runs.files import read_json
from burnish.web.projects import Project

ENDING = ".examination"  # suffix of the name of an examination project


def waiting_in(runs: Path) -> list[str]:
    """Return the names of the projects that runs wait for."""
    found = []
    for path in runs.iterdir():
        try:
            name = waits_for(path) if (path / "manifest.json").is_file() else None
        except (
            BurnishError,
            OSError,
            ValueError,
            KeyError,
        ):  # unreadable run; the list of runs shows the error
            continue
        if name is not None:
            found.append(name)
    return found


def waits_for(path: Path) -> str | None:
    """Return the name of the project that a run waits for, or None."""
    run = RunDirectory.open(path)
    waiting = next((s for s in run.stages() if run.stage_state(s) == "waiting"), None)
    if waiting is None:
        return None
    return f"{path.name}{ENDING}" if waiting == "evaluate" else path.name


def project_for(runs: Path, name: str) -> Project | None:
    """Open the project of a run, named after the run, or with `.examination` after that name.

    Returns None if nothing of the run waits for people; use `burnish label serve` for such stores.
    """
    path = next((p for p in runs.iterdir() if p.name == name.removesuffix(ENDING)), None)
    if path is None or not (path / "manifest.json").is_file():
        return None
    config = RunDirectory.open(path).config
    if name.endswith(ENDING):
        place, each = path / EXAMINATION, config.evaluate.labels_per_pair
        if not (path / ASKED).exists():
            return None
        rules = Rules(each=each, practice=0, gold_share=0.0)
        return Project.open(
            name, place, rules, config.label.guidelines, read_json(path / ASKED), examines=True
        )
    if config.label.source != "people":
        return None
    where = config.label.store or str(project_of(path) / "labels.sqlite")
    if not is_url(where) and not Path(where).exists():
        return None
    rules = Rules(each=config.label.labels_per_pair)
    return Project.open(name, where if is_url(where) else Path(where), rules, config.label.guidelines)
