"""Burnish beside TRL on the labels, prompts, model and minutes of a finished run, by the run's held-out examiner.

usage: benchmarks/peers.sh current && python benchmarks/beside_trl.py RUN OUT [--methods rloo dpo] [--minutes 30]
TRL trains a reward model (a third of the minutes at most) and aligns with it, or trains DPO on the same pairs. Each
method runs with its documented learning rate, and with the best of three rates: short trials choose by the examiner on
the selection prompts, and their time does not count. All policies then answer the test prompts, several times each.
The minutes default to what the run took for its reward models and its alignment. A finished arm is kept in OUT, so the
command continues where it stopped. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from burnish.evaluation.paired import differences
from burnish.models.artefacts import save_plain_policy
from burnish.models.batches import Batch
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import repeated
from burnish.pipeline.candidates import Answers, sample, sample_all
from burnish.pipeline.context import Models, RunContext
from burnish.pipeline.evaluate import account, examine, mean_length
from burnish.pipeline.run import set_determinism
from burnish.records import Prompt, Rollout
from burnish.reward.ensemble import prepare
from burnish.runs.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
TRL = ROOT / ".cache" / "peers" / "trl-current" / "bin" / "python"
ARM = ROOT / "benchmarks" / "arms" / "trl_align.py"
RATES = {"rloo": (1e-6, 5e-6, 2.5e-5), "grpo": (1e-6, 5e-6, 2.5e-5), "dpo": (1e-6, 5e-6, 2.5e-5)}
"""Learning rates that are tried, TRL's default first."""
REWARD_SHARE = 1 / 3


def python_of(arm: Path) -> str:
    """Return the Python of an arm: TRL's environment for our own, else this one."""
    return str(TRL) if arm == ARM else sys.executable


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """Return a prompt as the messages of a conversation."""
    return [{"role": m.role, "content": m.content} for m in prompt.messages] or [
        {"role": "user", "content": prompt.text}
    ]


def export(place: RunContext, out: Path, arguments: dict[str, Any]) -> None:
    """Write the run's SFT model, and the pairs and prompts that its reward models and PPO had."""
    out.mkdir(parents=True, exist_ok=True)
    made_of = {"run": str(place.journal.path.resolve()), "arguments": arguments}
    known = out / "made_of.json"
    if known.exists():
        if json.loads(known.read_text()) != made_of:
            sys.exit(f"{out} holds arms of another run or other minutes ({known}); give another folder")
        return
    models, data = place.models, place.data
    save_plain_policy(models.reference().top, out / "sft", models.codec.tokenizer)
    with (out / "pairs.jsonl").open("w") as file:
        for role in ("members", "watcher", "validation"):
            for pair in data.parts[role]:
                sides = {
                    side: [{"role": "assistant", "content": text}]
                    for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
                }
                file.write(json.dumps({"prompt": messages(pair.prompt), **sides}) + "\n")
    with (out / "prompts.jsonl").open("w") as file:
        for prompt in data.splits.train:
            file.write(json.dumps({"prompt": messages(prompt)}) + "\n")
    known.write_text(json.dumps(made_of))


def train(
    arm: Path, out: Path, name: str, what: str, minutes: float, rate: float | None, tokens: int
) -> dict[str, Any]:
    """Run one arm of TRL unless it is done; return its figures."""
    folder = out / name
    result = folder / "result.json"
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        data = out / ("prompts.jsonl" if what in ("rloo", "grpo") else "pairs.jsonl")
        call = [python_of(arm), str(arm), what, str(out / "sft"), str(data), str(folder)]
        call += [
            "--minutes",
            str(minutes),
            "--tokens",
            str(tokens),
            "--threads",
            str(torch.get_num_threads()),
        ]
        call += [] if rate is None else ["--rate", str(rate)]
        call += ["--reward", str(out / "reward" / "model")] if what in ("rloo", "grpo") else []
        print(f"{name}: {what}, {minutes:g} minutes", file=sys.stderr, flush=True)
        done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(call)} failed:\n{done.stderr[-3000:]}")
        result.write_text(done.stdout.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def policy_of(place: RunContext, folder: Path) -> tuple[Models, Policy]:
    """Load a model that TRL saved; it has the run's tokenizer and settings."""
    config = place.config.model.model_copy(update={"path": str(folder), "gguf_file": None})
    models = Models(config, None, place.models.temperature)
    return models, models.reference(place.config.evaluate.temperature)


def answers_of(place: RunContext, folder: Path, prompts: Sequence[Prompt], name: str) -> Answers:
    """Sample a saved model's responses to the prompts, as evaluation samples those of the run."""
    settings, seed = place.config.evaluate, place.config.seed
    models, policy = policy_of(place, folder)
    samples = [
        sample(models, policy, prompts, settings, seed, name, turn) for turn in range(settings.answers)
    ]
    for rollout in samples:  # the activations are those of another model
        rollout.features.clear()
    kl = kl_of(policy, place.models.reference(settings.temperature), samples[0], models.codec.pad_id)
    return Answers.of(samples, {"kl": kl})


def kl_of(policy: Policy, reference: Policy, rollout: Rollout, pad_id: int) -> float:
    """Return the mean of log(policy / reference) over the policy's own responses, in nats (k1)."""

    def logprobs(of: Policy) -> torch.Tensor:
        def read(batch: Batch) -> torch.Tensor:
            return token_logprobs(of, batch).sum(1)

        sequences = Sequences(of.top.base, rollout.prompt_ids, rollout.response_ids, pad_id)
        return sequences.read(read, 16, range(len(rollout)), "kl")

    return float((logprobs(policy) - logprobs(reference)).mean())


def best_rate(
    place: RunContext, arm: Path, out: Path, method: str, rates: Sequence[float], minutes: float
) -> tuple[float, dict[str, float]]:
    """Try each rate, and return the one that wins most on the selection prompts, with the win rates of all."""
    settings, tokens = place.config.evaluate, place.config.model.max_response_tokens
    prompts = list(place.data.splits.selection[: settings.n_selection])
    answers = {"sft": sft_answers(place, prompts)}
    for rate in rates:
        name = f"{method}-trial-{rate:g}"
        train(arm, out, name, method, minutes, rate, tokens)
        answers[name] = answers_of(place, out / name / "model", prompts, name)
    asked = repeated(prompts, settings.answers)
    found = examine(
        place.models, place.data, place.journal.of("evaluate"), settings, answers, asked, place.config.seed
    )
    wins = {
        rate: fmean(v for v in found.verdicts[f"{method}-trial-{rate:g}"] if v is not None) for rate in rates
    }
    return max(wins, key=lambda rate: wins[rate]), {f"{rate:g}": win for rate, win in wins.items()}


def sft_answers(place: RunContext, prompts: Sequence[Prompt]) -> Answers:
    """Sample SFT's responses as evaluation does."""
    settings, models = place.config.evaluate, place.models
    reference = models.reference(settings.temperature)
    turns = range(settings.answers)
    return Answers.of(
        [sample(models, reference, prompts, settings, place.config.seed, "sft", turn) for turn in turns]
    )


def minutes_of(run: RunDirectory) -> float:
    """Return the minutes of the run's reward and align stages."""
    stages = run.manifest()["stages"]
    return float(sum(stages[stage]["seconds"] for stage in ("reward", "align"))) / 60


def table(place: RunContext, trained: dict[str, Path]) -> list[str]:
    """Judge the run's policies and those of TRL on the test prompts; return the table's lines."""
    settings, seed, data = place.config.evaluate, place.config.seed, place.data
    selection = list(data.splits.selection[: settings.n_selection])
    prompts = [*selection, *data.splits.test[: settings.n_test]]
    answers = sample_all(place.models, place.journal.run, prompts, settings, seed)
    for name, folder in trained.items():
        answers[name] = answers_of(place, folder, prompts, name)
    asked, n_selection = repeated(prompts, settings.answers), len(selection) * settings.answers
    found = examine(place.models, data, place.journal.of("evaluate"), settings, answers, asked, seed)
    lines = [
        f"judged by {found.examiner}: {len(prompts) - len(selection)} prompts, {settings.answers} responses to each",
        "KL of TRL's policies: mean log-ratio of their responses; of the run's: exact over the vocabulary.",
        "| policy | against SFT [95 %] | length-controlled | tokens | KL |",
        "|---|---|---|---|---|",
    ]
    sft = answers.pop("sft")
    for name, answer in answers.items():
        figures, _ = account(name, asked, n_selection, answer, sft, found, settings, seed)
        cells = [interval(figures["test"]), interval(figures["length_controlled"])]
        kl = f"{figures['kl']:.2f}" if "kl" in figures else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {mean_length(answer, n_selection):.0f} | {kl} |")
    lines += ["", "| pair | difference of win rates, paired by prompt [95 %] |", "|---|---|"]
    verdicts = {name: found.verdicts[name][n_selection:] for name in answers}
    groups = [p.group for p in asked[n_selection:]]
    pairs = differences(verdicts, groups, seed=seed, draws=settings.bootstrap, confidence=settings.confidence)
    for (first, second), row in pairs.items():
        if (first in trained) != (second in trained) and row is not None:
            cell = f"{row['value']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
            lines.append(f"| {first} - {second} | {cell} |")
    return lines


def interval(figures: dict[str, Any]) -> str:
    """Return a win rate with its interval as text."""
    return f"{figures['win_rate']:.3f} [{figures['ci_low']:.3f}, {figures['ci_high']:.3f}]"


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="*", choices=[*RATES], default=["rloo", "dpo"])
    parser.add_argument("--minutes", type=float, help="of TRL's rewards and alignment together")
    parser.add_argument("--trial-minutes", type=float, default=8.0, help="0: documented rates alone")
    parser.add_argument("--arm", type=Path, default=ARM, help="script that trains an arm")
    a = parser.parse_args()
    run = RunDirectory.open(a.run)
    place = RunContext.alone(run)
    set_determinism(place.config)
    prepare(place.models.base, a.run / "reward")
    if place.models.base.device.type != "cpu":
        sys.exit(f"the arms of TRL run on the CPU, and {a.run} on {place.models.base.device}")
    torch.set_num_threads(place.config.threads or 1)
    tokens = place.config.model.max_response_tokens
    minutes = a.minutes or minutes_of(run)
    export(place, a.out, {"minutes": minutes, "trial": a.trial_minutes, "arm": str(a.arm)})
    spent = 0.0
    if set(a.methods) & {"rloo", "grpo"}:
        spent = train(a.arm, a.out, "reward", "reward", minutes * REWARD_SHARE, None, tokens)["seconds"] / 60
    trained, notes = {}, [f"{minutes:.1f} minutes, of which TRL's reward model took {spent:.1f}"]
    for method in a.methods:
        left = minutes if method == "dpo" else minutes - spent
        default, *_ = rates = RATES[method]
        wanted = {"default": default}
        if a.trial_minutes:
            chosen, wins = best_rate(place, a.arm, a.out, method, rates, a.trial_minutes)
            notes.append(f"{method}: win rates of the trials on selection prompts by rate: {wins}")
            if chosen != default:
                wanted["best"] = chosen
        for which, rate in wanted.items():
            name = f"trl-{method}-{which}"
            figures = train(a.arm, a.out, name, method, left, rate, tokens)
            trained[name] = a.out / name / "model"
            notes.append(
                f"{name}: rate {rate:g}, {figures['steps']} steps of {figures['batch']}, "
                f"{figures['seconds'] / 60:.1f} minutes, {figures['autocast']}"
            )
    lines = [*notes, "", *table(place, trained)]
    print("\n".join(lines))
    place.data.close()


if __name__ == "__main__":
    main()
