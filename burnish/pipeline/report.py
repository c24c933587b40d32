"""The report stage: the champion as a plain model folder with its card, summary.json and report.html."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from burnish.checkpoints import atomic_folder, read_json, write_json
from burnish.models.artefacts import is_adapter, is_saved, save_plain_policy
from burnish.models.load import load_model
from burnish.pipeline.models import Models
from burnish.report.page import render_report
from burnish.report.summary import build_summary


def report(models: Models, path: Path, name: str, seed: int) -> list[str]:
    """Publish what the run in `path` found."""
    evaluation = read_json(path / "evaluation.json")
    export_champion(models, path, evaluation, model_card(models, name, seed, evaluation))
    render_report(path, completing="report")
    write_json(path / "summary.json", build_summary(path, completing="report"))
    return ["champion", "summary.json", "report.html"]


def export_champion(models: Models, path: Path, evaluation: dict[str, Any], card: str) -> None:
    """The champion in champion/, a whole model, with its card; best-of-n ships the SFT model, the card says how to use
    it."""
    folders = (path / name for name in (evaluation["champion"], "sft"))
    source = next((f for f in folders if is_saved(f)), None)
    with atomic_folder(path / "champion") as folder:
        if source is not None and is_adapter(source):
            save_plain_policy(models.saved_policy(source).top, folder, models.codec.tokenizer)
        elif source is not None:
            for file in source.iterdir():
                if file.is_file():
                    shutil.copy2(file, folder / file.name)
        else:
            lm, codec = load_model(models.config)
            lm.save_pretrained(folder)
            codec.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


def model_card(models: Models, name: str, seed: int, evaluation: dict[str, Any]) -> str:
    """What the model is, what it was compared with, on how many prompts, and who judged."""
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
    if champion.startswith("best_of"):
        n = champion.rsplit("_", 1)[1]
        lines.append(f"- Use: sample {n} responses, keep the one the reward ensemble scores highest.")
    return "\n".join([*lines, ""])
