"""What a run made, in a place of its own: labelled pairs, the champion, the reward models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from burnish.checkpoints import atomic_folder, read_json, write_json
from burnish.data.preferences import write_preferences
from burnish.errors import RunError
from burnish.models.artefacts import is_adapter, saved_reading
from burnish.models.load import resolve_path
from burnish.pipeline.order import Workplace
from burnish.pipeline.report import copy_whole_reward_model
from burnish.pipeline.rounds import policy_folder
from burnish.reward.saved import scorers
from burnish.runs import RunDirectory, project_of


def export_pairs(run: Path, path: Path, *, conversational: bool) -> dict[str, Any]:
    """Labelled pairs with a winner as Hugging Face preference data; ties are counted."""
    place = Workplace.alone(RunDirectory.open(run))
    if place.config.label.store is None and not (project_of(run) / "labels.sqlite").exists():
        raise RunError(f"{run} has no labels yet; carry it out with `burnish run --until label`")
    try:
        store = place.data.store
        pairs, counts = store.preferences(place.data.snapshot), store.consensus_report()
    finally:
        place.data.close()
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


ADAPTER_CARD = """# {name}: {champion_name}, an adapter

A PEFT adapter of {of}:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{path}")
```

{decision}
"""


def export_adapter(run: Path, path: Path) -> dict[str, Any]:
    """The champion's adapter, with a card; in base/ the model it adapts, when that is the run's own (SFT)."""
    config = RunDirectory.open(run).config
    if not (run / "evaluation.json").exists():
        raise RunError(f"{run} has no champion yet; carry it out to its end with `burnish run`")
    evaluation = read_json(run / "evaluation.json")
    champion = evaluation["champion"]
    source = policy_folder(run, champion)
    if not is_adapter(source):
        raise RunError(
            f"the champion of {run} is {champion}, which is no adapter (model.layers={config.model.layers!r}); "
            "export it whole with --as policy"
        )
    _must_be_new(path)
    own_base = (run / "sft").exists()
    base = str(path / "base") if own_base else resolve_path(config.model.path)
    with atomic_folder(path) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        if own_base:
            shutil.copytree(run / "sft", folder / "base")
        settings = read_json(folder / "adapter_config.json") | {"base_model_name_or_path": base}
        write_json(folder / "adapter_config.json", settings)
        card = ADAPTER_CARD.format(
            name=config.name,
            champion_name=champion.upper(),
            of="the run's SFT model, which lies in `base/`" if own_base else f"`{config.model.path}`",
            base=base,
            path=path,
            decision=evaluation["reason"],
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {"path": str(path), "champion": champion}


EACH = {
    "last": "each a plain `AutoModelForSequenceClassification(num_labels=1)`",
    "mean": "each an `AutoModel` with its head in a file of its own, loaded as its README says,",
}
CARD = """# Reward models of {name}

{members} members, {each} that gives raw scores of a prompt with its
response. Together, in standard deviations of the policy they were normalised on (`ensemble.json`):

```python
score = sum((raw - mean) / sd for raw, mean, sd in zip(raws, ensemble["mean"], ensemble["sd"])) / {members}
```

Aggregation in the run was `{aggregate}`. Held-out accuracy {value:.3f} [{ci_low:.3f}, {ci_high:.3f}], {n} prompts; the
rest of their examination is in `examination.json`.
"""


def export_reward(run: Path, path: Path) -> dict[str, Any]:
    """The members of the reward ensemble, whole models, how their scores become one, their examination, and a card."""
    place = Workplace.alone(RunDirectory.open(run))
    source = run / "reward"
    if not (source / "ensemble.json").exists():
        raise RunError(f"{run} has no reward ensemble yet; carry it out with `burnish run --until reward`")
    _must_be_new(path)
    ensemble, examined = (read_json(source / f"{n}.json") for n in ("ensemble", "examination"))
    members = [source / name for name in scorers(source)]
    with atomic_folder(path) as folder:
        for member in members:
            copy_whole_reward_model(place.models, member, folder / member.name)
        for file in ("ensemble.json", "examination.json"):
            shutil.copy2(source / file, folder / file)
        card = CARD.format(
            name=place.config.name,
            each=EACH[reading.pooling if (reading := saved_reading(members[0])) else "last"],
            members=len(members),
            aggregate=ensemble["aggregate"],
            **examined["accuracy"],
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {"path": str(path), "members": len(members)}


def _must_be_new(path: Path) -> None:
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise RunError(f"{path} is there already and not empty; choose another place")
