"""Other ways to use the same labels, trained from a finished run and judged beside its own policies.

usage: python benchmarks/candidates.py RUN [--arms dpo_labels dpo_on_policy dpo_both distill] [--set KEY=VALUE ...]
Every arm starts from the run's SFT and its reward ensemble; the table says how long each took. The run stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from burnish.config.loading import load_config
from burnish.pipeline.answers import OwnAnswers, repeated
from burnish.pipeline.candidates import sample_all, sample_policy
from burnish.pipeline.context import RunContext
from burnish.pipeline.distill import run_distill
from burnish.pipeline.dpo import ON_POLICY, run_dpo
from burnish.pipeline.evaluate import account, examine, gold_account, mean_length
from burnish.pipeline.run import set_determinism
from burnish.reward.ensemble import prepare
from burnish.runs.directory import RunDirectory

ARMS = ("dpo_labels", "dpo_on_policy", "dpo_both", "distill")
KEPT = ("run.yaml", "device.json", "manifest.json", "labels.sqlite", "reward", "sft", ON_POLICY)


def train(source: Path, arm: str, room: Path, sets: list[str]) -> float:
    """Train an arm in a folder of its own with what it starts from; seconds."""
    folder = room / arm
    folder.mkdir()
    for name in KEPT:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        elif (source / name).exists():
            shutil.copy2(source / name, folder / name)
    file = folder / "run.yaml"
    kind, _, pairs = arm.partition("_")
    config = load_config(file, [*sets, *([f"dpo.pairs={pairs}"] if pairs else [])])
    run = RunDirectory(folder, config)
    place = RunContext.alone(run)
    set_determinism(config)
    journal, models = place.journal.of("align"), place.models
    prepare(models.base, folder / "reward")
    own = OwnAnswers(models, place.data, journal, config.ppo.batch_size, config.seed)
    began = perf_counter()
    with run.lock():
        if kind == "dpo":
            run_dpo(models, place.data, own, journal, config.dpo, {"ppo": {}}, config.seed)
        else:
            run_distill(models, own, journal, config.distill, config.seed)
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--set", dest="sets", action="append", default=[])
    asked = parser.parse_args()
    place = RunContext.alone(RunDirectory.open(asked.run))
    config, models = place.config, place.models
    set_determinism(config)
    prepare(models.base, asked.run / "reward")
    data, settings = place.data, config.evaluate
    selection = list(data.splits.selection[: settings.n_selection])
    prompts = [*selection, *data.splits.test[: settings.n_test]]
    rows, n_selection = repeated(prompts, settings.answers), len(selection) * settings.answers
    with tempfile.TemporaryDirectory() as room:
        seconds = {arm: train(asked.run, arm, Path(room), asked.sets) for arm in asked.arms}
        answers = sample_all(models, place.journal.run, prompts, settings, config.seed)
        reference = models.reference(settings.temperature)
        for arm in asked.arms:
            policy = models.saved_policy(Path(room) / arm / arm.partition("_")[0])
            policy.temperature = reference.temperature
            answers[arm] = sample_policy(models, policy, prompts, settings, config.seed, arm)
    found = examine(models, data, place.journal.of("evaluate"), settings, answers, rows, config.seed)
    gold: dict[str, Any] = {}
    if data.gold:
        gold = gold_account(data.gold, rows, answers, n_selection, settings, config.seed)
    print(f"judged by {found.examiner}, {len(prompts) - len(selection)} test prompts")
    print("| policy | against SFT [95 %] | length-controlled | true preference | tokens | KL | s |")
    print("|---|---|---|---|---|---|---|")
    sft = answers.pop("sft")
    for name, answer in answers.items():
        figures, _ = account(name, rows, n_selection, answer, sft, found, settings, config.seed)
        cells = [interval(figures["test"]), interval(figures["length_controlled"]), interval(gold.get(name))]
        kl = f"{figures['kl']:.2f}" if "kl" in figures else ""
        took = f"{seconds[name]:.0f}" if name in seconds else ""
        print(f"| {name} | {' | '.join(cells)} | {mean_length(answer, n_selection):.0f} | {kl} | {took} |")
    print(f"| sft | | | | {mean_length(sft, n_selection):.0f} | | |")


def interval(figures: dict[str, Any] | None) -> str:
    if figures is None or figures["win_rate"] is None:
        return ""
    return f"{figures['win_rate']:.3f} [{figures['ci_low']:.3f}, {figures['ci_high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
