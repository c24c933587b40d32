"""The report stage: the champion as a plain model folder with a card, and the run's reports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from burnish.config.evaluate import EvaluateConfig
from burnish.evaluation.champion import BEST_OF
from burnish.models import standalone
from burnish.models.artefacts import (
    is_adapter,
    is_saved,
    load_reward_model,
    save_plain_policy,
    save_plain_reward_model,
)
from burnish.models.load import load_model
from burnish.pipeline.context import Models
from burnish.pipeline.rounds import policy_folder
from burnish.report.page import write_reports
from burnish.reward.ensemble import scorers
from burnish.runs.files import atomic_folder, read_json, write_json


def report(models: Models, path: Path, name: str, config: EvaluateConfig, seed: int) -> list[str]:
    """Write the champion, summary.json and report.html; `config` has the sampling temperature."""
    evaluation = read_json(path / "evaluation.json")
    card = model_card(models, name, seed, evaluation)
    export_champion(models, path, evaluation, card, config.temperature)
    write_reports(path, completing="report")
    return ["champion", "summary.json", "report.html"]


def export_champion(
    models: Models, path: Path, evaluation: dict[str, Any], card: str, temperature: float | None = None
) -> None:
    """Write the champion to champion/ as a whole model with its card.

    Best-of-n is the SFT model with the reward ensemble and a program that uses both.
    """
    folders = (policy_folder(path, name) for name in (evaluation["champion"], "sft"))
    source = next((f for f in folders if is_saved(f)), None)
    with atomic_folder(path / "champion") as folder:
        if source is not None and is_adapter(source):
            save_plain_policy(models.saved_policy(source).top, folder, models.codec.tokenizer)
        elif source is not None:
            for file in source.iterdir():
                if file.is_file():
                    shutil.copy2(file, folder / file.name)
        else:
            lm, codec = load_model(models.config.model_copy(update={"device": "cpu"}))
            lm.save_pretrained(folder)
            codec.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if evaluation["champion"].startswith(BEST_OF):
            n = int(evaluation["champion"].removeprefix(BEST_OF))
            add_reranker(models, path / "reward", folder, n, temperature or models.temperature)


def add_reranker(models: Models, rewards: Path, folder: Path, n: int, temperature: float) -> None:
    """Add the reward ensemble, the standalone `generate.py` and its settings to a policy's folder."""
    names = scorers(rewards)
    for name in names:
        copy_whole_reward_model(models, rewards / name, folder / "reward" / name)
    write_json(folder / "reward" / "ensemble.json", read_json(rewards / "ensemble.json") | {"folders": names})
    settings = {
        "n": n,
        "temperature": temperature,
        "max_new_tokens": models.config.max_response_tokens,
        "use_chat_template": models.config.use_chat_template,
        "eos_ids": sorted(models.codec.eos_ids),
    }
    write_json(folder / "best_of.json", settings)
    shutil.copy2(standalone.__file__, folder / "generate.py")


def copy_whole_reward_model(models: Models, source: Path, to: Path) -> None:
    """Copy a saved reward model as a whole model, with its adapters merged."""
    if is_adapter(source):
        model = load_reward_model(models.base, source)
        save_plain_reward_model(model, to, models.codec.tokenizer)
    else:
        shutil.copytree(source, to)


def model_card(models: Models, name: str, seed: int, evaluation: dict[str, Any]) -> str:
    """Return the model card: decision, examiner, win rate, number of prompts and KL."""
    champion = evaluation["champion"]
    figures = evaluation["policies"][champion]
    lines = [
        "---",
        "library_name: transformers",
        "tags: [burnish, rlhf]",
        "---",
        "",
        f"# {name}: {champion.upper()}",
        "",
        f"Aligned from `{models.config.path}` with Burnish, seed {seed}.",
        "",
        f"- Decision: {evaluation['reason']}",
        f"- Examiner: {evaluation['examiner']}" + (" (provisional)" if evaluation["provisional"] else ""),
    ]
    test = figures.get("test")
    if test:
        lines.append(
            f"- Win rate against SFT: {test['win_rate']:.3f} "
            f"(95 % interval {test['ci_low']:.3f} to {test['ci_high']:.3f}, n = {test['n']})"
        )
    if "kl" in figures:
        lines.append(f"- KL to SFT: {figures['kl']:.2f} ± {figures['kl_se']:.2f} nats per response")
    if champion.startswith(BEST_OF):
        n = champion.removeprefix(BEST_OF)
        lines += [
            f"- Use: sample {n} responses, keep the one that the reward ensemble in `reward/` scores highest. That is",
            '  what `python generate.py "a prompt"` does; it needs only numpy, torch, transformers and safetensors.',
        ]
    return "\n".join([*lines, ""])
