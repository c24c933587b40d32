"""Before PPO the gate, after it a plain word where nothing came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from burnish.checkpoints import read_json, write_json
from burnish.config.ppo import PPOConfig
from burnish.pipeline.answers import reference_answers, sample_rounds
from burnish.pipeline.data import Data
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.pipeline.stressing import stress_ensemble
from burnish.records import Decision, Interval, Prompt, Rollout
from burnish.reward.ensemble import RewardEnsemble, best_of
from burnish.reward.gate import GRAVE, gate
from burnish.reward.saved import SavedWatcher, load_ensemble, load_reference
from burnish.stats import mean_interval

GATE_PROMPTS = 64
GATE_ANSWERS = 8
FEWEST = 16
STRESSED = "stress.json"


def pass_gate(
    models: Models, data: Data, journal: Journal, config: PPOConfig, watch: SavedWatcher | None, seed: int
) -> str | None:
    """Decide on record whether PPO is worth trying; why not, or None. What the stress tests said is in stress.json."""
    rewards = journal.path / "reward"
    examined = read_json(rewards / "examination.json")
    ensemble, prompts, lift = load_ensemble(models.base, rewards), unlearned(data), None
    journal.view.note(f"align: {GATE_ANSWERS} answers of SFT to {len(prompts)} prompts, for the gate")
    size = max(config.batch_size, GATE_PROMPTS)
    rounds = sample_rounds(models, prompts, GATE_ANSWERS, size, seed, "gate")
    reference = reference_answers(models, ensemble, prompts, size, seed, "gate")
    if watch is not None and watch.armed and len(prompts) > 1:
        lift = watchers_lift(ensemble, watch, rounds, reference, models.codec.pad_id)
    sd = load_reference(ensemble, rewards)[1]
    stressed = stress_ensemble(
        models,
        ensemble,
        sd,
        rounds[0],
        rounds,
        references=(reference, reference),
        kl_target=config.kl.target,
        missing_eos_penalty=config.missing_eos_penalty,
        seed=seed,
    )
    write_json(journal.path / STRESSED, stressed)
    hacks = stressed["reasons"]["stop"]
    journal.decide(0, stress_decision(stressed))
    outcome, decision = gate(*held_out_figures(examined), sum(examined["pairs"].values()), lift, hacks)
    ignored = outcome == "stop" and config.gate == "ignored"
    if ignored:
        decision = replace(
            decision, reason=f"{decision.reason}; PPO is tried all the same (ppo.gate: ignored)"
        )
    journal.decide(0, decision)
    return decision.reason if outcome == "stop" and not ignored else None


def held_out_figures(examined: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, float]]:
    """The accuracy that the gate decides on, and the trivial rules it is held against. Where length is corrected for,
    that of the corrected score, which PPO is given; what labelers gave for length is then no rule to be beaten, for it
    is what was to be taken out."""
    length = examined.get("length") or {"how": "none"}
    if length["how"] == "none":
        return examined["accuracy"], dict(examined["baselines"])
    found = length.get("corrected_accuracy") or examined["accuracy"]  # odin: corrected while training
    return found, {k: v for k, v in examined["baselines"].items() if k not in ("longer", "shorter")}


def unlearned(data: Data) -> list[Prompt]:
    """Training prompts that neither members nor watcher learned from; any, where there are too few of these."""
    learned = {p.prompt.group for role in ("members", "watcher") for p in data.parts[role]}
    fresh = [p for p in data.splits.train if p.group not in learned]
    return (fresh if len(fresh) >= FEWEST else data.splits.train)[:GATE_PROMPTS]


def stress_decision(stressed: Mapping[str, Any]) -> Decision:
    """The outcome of stress tests, in words."""
    outcome, reasons = stressed["outcome"], [r for kind in GRAVE for r in stressed["reasons"][kind]]
    tried = sum(row["outcome"] != "too few" for row in stressed["changes"])
    told = "; ".join(reasons) or f"{tried} of {len(stressed['changes'])} changes tried, none of them liked"
    evidence = {row["name"]: row["rise"] and row["rise"]["value"] for row in stressed["changes"]}
    return Decision(f"stress_{outcome.replace(' ', '_')}", f"stress tests: {outcome}: {told}", evidence)


def watchers_lift(
    ensemble: RewardEnsemble,
    watch: SavedWatcher,
    rounds: Sequence[Rollout],
    reference: Rollout | None,
    pad_id: int,
) -> Interval:
    """How far the watcher's score of the ensemble's pick among several SFT answers lies above their mean, by prompts
    that the members did not learn from."""
    picked = best_of(ensemble, rounds, reference, pad_id)
    usual = torch.stack([watch.scores(r, pad_id) for r in rounds]).mean(0)
    return mean_interval((watch.scores(picked, pad_id) - usual).tolist())


def barely_moved(rows: Sequence[Mapping[str, Any]], attempt: int, config: PPOConfig) -> Decision | None:
    """What to tell of a PPO that ended a long way from its KL target, or whose score did not rise."""
    rows = [row for row in rows if row["attempt"] == attempt]
    few = max(1, min(5, len(rows) // 3))
    first, last = ([row for row in part if "score" in row] for part in (rows[:few], rows[-few:]))
    if not (first and last and len(rows) >= 3):
        return None
    kl = sum(row["kl"] for row in last) / len(last)
    rise = sum(r["score"] for r in last) / len(last) - sum(r["score"] for r in first) / len(first)
    target = last[-1].get("kl_target", config.kl.target)  # as the guard may have lowered it
    evidence = {"kl": kl, "score_rise": rise, "kl_target": target}
    if kl < target / 10:
        text = (
            f"PPO hardly moved: {kl:.2f} nats of a target of {target:g}. Its steps are too small or too few: "
            "raise ppo.learning_rate or ppo.updates, or leave ppo.adaptive_rate on"
        )
        return Decision("hardly_moved", text, evidence)
    if rise <= 0:
        text = (
            f"PPO moved {kl:.2f} nats and its score did not rise ({rise:+.2f}): what it learned from is noise. Take "
            "more answers an update (ppo.batch_size, ppo.answers), or a smaller ppo.kl.target"
        )
        return Decision("score_did_not_rise", text, evidence)
    return None
