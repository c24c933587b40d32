"""What a run made, in a place of its own: labelled pairs, the champion, the reward models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from burnish.checkpoints import atomic_folder, read_json
from burnish.data.preferences import write_preferences
from burnish.data.store import LabelStore
from burnish.errors import RunError
from burnish.runs import RunDirectory


def export_pairs(run: Path, path: Path, *, conversational: bool) -> dict[str, Any]:
    """Labelled pairs with a winner as Hugging Face preference data; ties are counted."""
    file = run / "labels.sqlite"
    RunDirectory.open(run)
    if not file.exists():
        raise RunError(f"{run} has no labels yet; carry it out with `burnish run --until label`")
    with LabelStore(file) as store:
        pairs, counts = store.preferences(), store.consensus_report()
    write_preferences(pairs, path, conversational=conversational)
    return {"path": str(path), "pairs": len(pairs), **counts}


def export_policy(run: Path, path: Path) -> dict[str, Any]:
    """The champion's folder, with its card."""
    RunDirectory.open(run)
    if not (run / "champion").exists():
        raise RunError(f"{run} has no champion yet; carry it out to its end with `burnish run`")
    _must_be_new(path)
    with atomic_folder(path) as folder:
        shutil.copytree(run / "champion", folder, dirs_exist_ok=True)
    return {"path": str(path), "champion": read_json(run / "evaluation.json")["champion"]}


CARD = """# Reward models of {name}

{members} members, each a plain `AutoModelForSequenceClassification(num_labels=1)` that gives raw scores of a prompt
with its response. Together, in standard deviations of the policy they were normalised on (`ensemble.json`):

```python
score = sum((raw - mean) / sd for raw, mean, sd in zip(raws, ensemble["mean"], ensemble["sd"])) / {members}
```

Aggregation in the run was `{aggregate}`. Held-out accuracy {value:.3f} [{ci_low:.3f}, {ci_high:.3f}], {n} prompts; the
rest of their examination is in `examination.json`.
"""


def export_reward(run: Path, path: Path) -> dict[str, Any]:
    """The members of the reward ensemble, how their scores become one, their examination, and a card."""
    name = RunDirectory.open(run).config.name
    source = run / "reward"
    if not (source / "ensemble.json").exists():
        raise RunError(f"{run} has no reward ensemble yet; carry it out with `burnish run --until reward`")
    _must_be_new(path)
    ensemble, examined = (read_json(source / f"{n}.json") for n in ("ensemble", "examination"))
    members = sorted(source.glob("member-*"))
    with atomic_folder(path) as folder:
        for member in members:
            shutil.copytree(member, folder / member.name)
        for file in ("ensemble.json", "examination.json"):
            shutil.copy2(source / file, folder / file)
        card = CARD.format(
            name=name, members=len(members), aggregate=ensemble["aggregate"], **examined["accuracy"]
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {"path": str(path), "members": len(members)}


def _must_be_new(path: Path) -> None:
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise RunError(f"{path} is there already and not empty; choose another place")
