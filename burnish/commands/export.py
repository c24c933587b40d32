"""Export of a run's labelled pairs, champion and reward models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.config import RunConfig
from burnish.data.preferences import write_preferences
from burnish.errors import RunError
from burnish.models.artefacts import is_adapter, saved_reading
from burnish.models.load import resolve_path
from burnish.pipeline.context import RunContext
from burnish.pipeline.report import copy_whole_reward_model
from burnish.pipeline.rounds import policy_folder
from burnish.reward.ensemble import scorers
from burnish.runs.directory import RunDirectory, project_of
from burnish.runs.files import atomic_folder, read_json, write_json


def export_pairs(run: Path, path: Path, *, conversational: bool) -> dict[str, Any]:
    """Export labelled pairs with a winner as Hugging Face preference data, and count ties."""
    place = RunContext.alone(RunDirectory.open(run))
    if place.config.label.store is None and not (project_of(run) / "labels.sqlite").exists():
        raise RunError(f"{run} has no labels yet; run `burnish run --until label`")
    try:
        store = place.data.store
        pairs, counts = place.data.preferences(), store.consensus_report()
    finally:
        place.data.close()
    write_preferences(pairs, path, conversational=conversational)
    return {"path": str(path), "pairs": len(pairs), **counts}


def export_policy(run: Path, path: Path) -> dict[str, Any]:
    """Export the champion's folder, with its model card."""
    RunDirectory.open(run)
    if not (run / "champion").exists():
        raise RunError(f"{run} has no champion yet; finish it with `burnish run`")
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
    """Export the champion's adapter with a card; base/ holds the run's own SFT model, if any."""
    config = RunDirectory.open(run).config
    if not (run / "evaluation.json").exists():
        raise RunError(f"{run} has no champion yet; finish it with `burnish run`")
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
    "mixed": "some plain classifiers with one label, the others loaded as their README says,",
    "mean": "each an `AutoModel` with its head in a file of its own, loaded as its README says,",
}
CARD = """# Reward models of {name}

{members} members, {each} that gives raw scores of a prompt with its
response. Together, in standard deviations of the policy they were normalised on (`ensemble.json`):

```python
score = sum((raw - mean) / sd for raw, mean, sd in zip(raws, ensemble["mean"], ensemble["sd"])) / {members}
```

Aggregation in the run was `{aggregate}`{length}.

## Data

{pairs} labelled pairs ({source}) of prompts from `{prompts}`: {learned} taught the members, {held} were held out, the
rest is a watcher's and an examiner's. The model they were made from is `{model}`; prompts of up to {prompt_tokens} and
responses of up to {response_tokens} tokens.

## Figures

- Held-out accuracy {value:.3f} [{ci_low:.3f}, {ci_high:.3f}], {n} prompts; {rules}.
- Expected calibration error of raw scores {ece:.3f}; errors of the members correlate at {errors}.
- Score and length correlate at {link}.
{stress}
The rest is in `examination.json`{more}.

## Limits

Scores compare answers to the same prompt; between prompts they say little. They were trained on one policy's answers
and normalised on them. They were not measured on other models' answers, in other languages, or past the lengths
above.
{limits}"""


def export_reward(run: Path, path: Path) -> dict[str, Any]:
    """Export the reward ensemble: whole members, ensemble.json, examinations and a card."""
    place = RunContext.alone(RunDirectory.open(run))
    source = run / "reward"
    if not (source / "ensemble.json").exists():
        raise RunError(f"{run} has no reward ensemble yet; run `burnish run --until reward`")
    _must_be_new(path)
    ensemble, examined = (read_json(source / f"{n}.json") for n in ("ensemble", "examination"))
    members = [source / name for name in scorers(source)]
    with atomic_folder(path) as folder:
        for member in members:
            copy_whole_reward_model(place.models, member, folder / member.name)
        for file in ("ensemble.json", "examination.json"):
            shutil.copy2(source / file, folder / file)
        stress = next(
            (run / name for name in ("stressed.json", "stress.json") if (run / name).exists()), None
        )
        for found in (stress, run / "examined.json"):
            if found is not None and found.exists():
                shutil.copy2(found, folder / found.name)
        card = reward_card(
            place.config, members, ensemble, examined, None if stress is None else read_json(stress)
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {"path": str(path), "members": len(members)}


def reward_card(
    config: RunConfig,
    members: Sequence[Path],
    ensemble: Mapping[str, Any],
    examined: Mapping[str, Any],
    stressed: Mapping[str, Any] | None,
) -> str:
    """Return the card of the reward models: use, training data, figures and limits."""

    def known(value: float | None) -> str:
        return "(unknown)" if value is None else f"{value:.2f}"

    reasons = [] if stressed is None else [*stressed["reasons"]["stop"], *stressed["reasons"]["warn"]]
    poolings = {reading.pooling if (reading := saved_reading(member)) else "last" for member in members}
    return CARD.format(
        name=config.name,
        each=EACH["mixed" if len(poolings) > 1 else poolings.pop()],
        members=len(members),
        aggregate=ensemble["aggregate"],
        length="" if config.reward.length == "none" else f", length corrected by `{config.reward.length}`",
        pairs=sum(examined["pairs"].values()),
        source=config.label.source,
        prompts=config.data.prompts,
        learned=examined["pairs"]["members"],
        held=examined["pairs"]["validation"],
        model=config.model.path,
        prompt_tokens=config.model.max_prompt_tokens,
        response_tokens=config.model.max_response_tokens,
        rules=", ".join(f"'{rule} wins' has {value:.3f}" for rule, value in examined["baselines"].items()),
        ece=examined["calibration"]["ece"],
        errors=known(examined["error_correlation"]),
        link=known(examined["length_correlation"]),
        stress="" if stressed is None else f"- Stress tests: {stressed['outcome']}.\n",
        more="" if stressed is None else ", that of the stress tests in `stress.json` or `stressed.json`",
        limits="".join(f"- {reason}\n" for reason in reasons),
        **{name: examined["accuracy"][name] for name in ("value", "ci_low", "ci_high", "n")},
    )


def _must_be_new(path: Path) -> None:
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise RunError(f"{path} exists already and is not empty; choose another place")
