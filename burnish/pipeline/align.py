"""The align stage: PPO under the guard; when PPO is given up, DPO from SFT on the same preferences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burnish.checkpoints import read_json, write_json
from burnish.config.dpo import DPOConfig
from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import PPOConfig
from burnish.errors import Diverged
from burnish.models.artefacts import save_policy
from burnish.models.heads import ScalarHead
from burnish.models.shared_base import Top
from burnish.monitor.hacking import WatcherMonitor
from burnish.monitor.health import HealthMonitor
from burnish.pipeline.data import Data
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.policy.dpo import DPO
from burnish.policy.guard import GuardState, guard_step
from burnish.policy.kl_control import AdaptiveKLController, initial_coef
from burnish.policy.ppo import PPO
from burnish.policy.self_check import self_check
from burnish.randomness import derive_seed
from burnish.records import Alert, Decision, Preference, StepStats
from burnish.reward.ensemble import EnsembleScorer, RewardEnsemble
from burnish.reward.saved import SavedWatcher, load_ensemble, load_head, load_reference

CHECK_PROMPTS = 16
SAMPLES_KEPT = 8


def align(
    models: Models,
    data: Data,
    journal: Journal,
    ppo: PPOConfig,
    guard: GuardConfig,
    dpo: DPOConfig,
    monitor: MonitorConfig,
    seed: int,
) -> list[str]:
    """PPO, then DPO when it is the fallback that was needed (or asked for). Writes align.json and the models."""
    found = journal.latest_checkpoint()
    state: dict[str, Any] = found.state if found else {"phase": "ppo"}
    outcome: dict[str, Any] = state.get("outcome", {})
    if state["phase"] == "ppo":
        outcome = {"ppo": run_ppo(models, data, journal, ppo, guard, monitor, seed)}
        journal.checkpoint(state={"phase": "dpo", "outcome": outcome})
    given_up = outcome["ppo"]["state"] == "given_up"
    outcome["fallback"] = {
        "triggered": given_up and dpo.when != "never",
        "reason": outcome["ppo"]["reason"] if given_up else None,
    }
    if dpo.when == "always" or (given_up and dpo.when == "fallback"):
        outcome["dpo"] = run_dpo(models, data.parts["members"], journal, dpo, outcome, seed)
    write_json(journal.path / "align.json", outcome)
    return ["align.json", *(name for name in ("ppo", "dpo") if name in outcome)]


@dataclass
class Guarded:
    """A PPO run with its monitors, its watcher and its guard: everything a checkpoint must hold, and where it goes."""

    ppo: PPO
    health: HealthMonitor
    watcher: WatcherMonitor
    watch: SavedWatcher | None
    config: GuardConfig
    journal: Journal
    guard: GuardState = field(default_factory=GuardState)
    healthy: int = 0  # number of the last healthy checkpoint
    raises: int = 0  # KL raises over all attempts

    def state(self) -> dict[str, Any]:
        return {
            "phase": "ppo",
            "ppo": self.ppo.state_dict(),
            "health": self.health.state_dict(),
            "watcher": self.watcher.state_dict(),
            "guard": self.guard.state_dict(),
            "healthy": self.healthy,
            "raises": self.raises,
        }

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.ppo.load(folder)
        self.ppo.load_state_dict(state["ppo"])
        self.health.load_state_dict(state["health"])
        self.watcher.load_state_dict(state["watcher"])
        self.guard = GuardState(**state["guard"])
        self.healthy = state["healthy"]
        self.raises = state["raises"]

    def checkpoint(self, *, healthy: bool) -> None:
        """Save everything; older checkpoints go, but for the last healthy one."""
        if healthy:
            found = self.journal.latest_checkpoint()
            self.healthy = found.step + 1 if found else 1
        self.journal.checkpoint(self.ppo.save, self.state(), keep=frozenset({self.healthy}))


def run_ppo(
    models: Models,
    data: Data,
    journal: Journal,
    config: PPOConfig,
    guard: GuardConfig,
    monitor: MonitorConfig,
    seed: int,
) -> dict[str, Any]:
    """PPO to its last update or until the guard gives it up; returns what align.json says of it."""
    if not config.updates:
        return {"state": "off", "reason": "ppo.updates is 0", "rollbacks": 0}
    ppo = build_ppo(models, data, journal.path / "reward", config, seed)
    watch = load_watcher(models, journal.path / "reward")
    armed = watch is not None and watch.armed
    health, watcher = HealthMonitor(monitor, config.kl.target), WatcherMonitor(armed)
    guarded = Guarded(ppo, health, watcher, watch, guard, journal)
    found = journal.latest_checkpoint()
    if found:
        guarded.restore(found.folder, found.state)
    else:
        check = self_check(
            ppo.policy,
            ppo.reference,
            models.codec,
            ppo.prompts[:CHECK_PROMPTS],
            max_tokens=ppo.max_tokens,
            seed=seed,
        )
        text = f"before the first update KL is {check['kl']:.2g} and log-probabilities agree"
        journal.decide(0, Decision("self_check", text, check))
        guarded.checkpoint(healthy=True)
    reason = None
    while reason is None and ppo.step < config.updates:
        try:
            reason = run_attempt(guarded, monitor.sample_every)
        except Diverged as error:
            reason = diverged(guarded, str(error))
    state = "given_up" if reason else "finished"
    if state == "finished":
        save_policy(ppo.policy.top, journal.path / "ppo", models.codec.tokenizer)
        done = f"{ppo.step} updates kept, {guarded.guard.rollbacks} roll-backs"
        journal.decide(ppo.step, Decision("finish", f"PPO finished: {done}", {"tick": ppo.tick}))
    return {
        "state": state,
        "reason": reason,
        "updates": ppo.step,
        "ticks": ppo.tick,
        "rollbacks": guarded.guard.rollbacks,
        "kl_raises": guarded.raises,
        "kl_target": config.kl.target,
        "kl_last": ppo.controller.smoothed,
        "kl_coef": ppo.controller.coef,
    }


def run_attempt(guarded: Guarded, sample_every: int) -> str | None:
    """Updates until PPO is done (None), rolled back (None, state restored) or given up (the reason)."""
    ppo, journal = guarded.ppo, guarded.journal
    for raw in ppo.updates():
        stats = watched(ppo, raw, guarded.watch)
        journal.log("ppo", stats)
        timing = {"step": stats.step, "attempt": stats.attempt, "tick": ppo.tick, **ppo.timing}
        journal.run.append("timing/ppo.jsonl", timing)
        journal.view.progress(ppo.step, ppo.config.updates)
        journal.view.update(stats.values)
        if (ppo.tick - 1) % sample_every == 0:
            keep_samples(journal, ppo)
        alerts = [*guarded.health.observe(stats), *guarded.watcher.observe(stats)]
        for alert in alerts:
            journal.alert(alert)
        verdict = guard_step(guarded.guard, stats, alerts, ppo.tick, guarded.config)
        guarded.guard = verdict.state
        if verdict.decision:
            journal.decide(stats.step, verdict.decision)
        if verdict.action == "raise_kl":
            ppo.controller.raise_coef(guarded.config.raise_kl_factor)
            guarded.raises += 1
        elif verdict.action == "roll_back":
            roll_back(guarded)
            return None
        elif verdict.action == "give_up":
            assert verdict.decision is not None
            return verdict.decision.reason
        if ppo.step % ppo.config.checkpoint_every == 0 or ppo.step == ppo.config.updates:
            guarded.checkpoint(healthy=verdict.healthy)
    return None


def diverged(guarded: Guarded, message: str) -> str | None:
    """An update that could not even be sampled or scored: critical, so the guard acts at once."""
    ppo, journal = guarded.ppo, guarded.journal
    ppo.tick += 1
    alert = Alert("diverged", "critical", message, ppo.step, 1.0, 0.0, {"attempt": ppo.attempt})
    journal.alert(alert)
    stats = StepStats(ppo.step, ppo.attempt, {})
    verdict = guard_step(guarded.guard, stats, [alert], ppo.tick, guarded.config)
    guarded.guard = verdict.state
    if verdict.decision is None:
        raise Diverged(f"{message} (guard.enabled is false)")
    journal.decide(ppo.step, verdict.decision)
    if verdict.action == "roll_back":
        roll_back(guarded)
        return None
    return verdict.decision.reason


def roll_back(guarded: Guarded) -> None:
    """Back to the last healthy checkpoint (weights, optimiser, controller, monitors); the new attempt draws new
    randomness and takes smaller steps. What was decided so far (guard, counters) is kept."""
    ppo, guard, raises, tick = guarded.ppo, guarded.guard, guarded.raises, guarded.ppo.tick
    coef = ppo.controller.coef
    attempt = ppo.attempt + 1
    saved = guarded.journal.run.checkpoint_at("align", guarded.healthy)
    guarded.restore(saved.folder, saved.state)
    guarded.guard, guarded.raises = guard, raises
    ppo.tick = tick
    # A penalty that had to grow is not taken back with the weights.
    ppo.controller.raise_coef(max(1.0, coef / ppo.controller.coef))
    # Each roll-back takes smaller steps than the one before, also when it returns to the same checkpoint.
    factor = guarded.config.learning_rate_factor ** (attempt - ppo.attempt)
    ppo.restart(factor, attempt)
    guarded.health.restart()
    guarded.checkpoint(healthy=True)


def build_ppo(models: Models, data: Data, rewards: Path, config: PPOConfig, seed: int) -> PPO:
    """Policy, reference, value function, reward and controller, before the first update. Prompts are those that have
    a reference response."""
    ensemble = load_ensemble(models.base, rewards)
    reference = load_reference(ensemble, rewards)
    prompts = data.splits.train[: len(reference)]
    score_sd = read_json(rewards / "ensemble.json")["score_sd"]
    kl = config.kl
    episodes = config.updates * config.batch_size
    controller = AdaptiveKLController(
        coef=initial_coef(score_sd, kl.target) if kl.init_coef is None else kl.init_coef,
        target=kl.target,
        horizon=max(config.batch_size, episodes // 10) if kl.horizon is None else kl.horizon,
        smoothing=kl.smoothing,
        min_coef=kl.min_coef * score_sd,
        max_coef=kl.max_coef * score_sd,
    )
    return PPO(
        policy=models.new_policy(),
        reference=models.reference(),
        value=new_value(models, ensemble, rewards, config),
        codec=models.codec,
        score=EnsembleScorer(ensemble, models.base, models.codec.pad_id, prompts, reference),
        prompts=prompts,
        config=config,
        controller=controller,
        max_tokens=models.config.max_response_tokens,
        learning_rate=models.rate("ppo", config.learning_rate),
        value_learning_rate=models.rate("value", config.value_learning_rate),
        seed=derive_seed(seed, "ppo"),
    )


def new_value(models: Models, ensemble: RewardEnsemble, rewards: Path, config: PPOConfig) -> ScalarHead:
    """A value function: the first reward member with its score normalised, or a zero head on a fresh top."""
    how = config.value_init
    if how == "auto":
        how = "zero" if models.config.layers.startswith("lora") else "reward_model"
    head = nn.Linear(models.base.hidden_size, 1)
    if how == "reward_model":
        member = load_head(models.base, rewards / "member-0", trainable=True)
        top = member.top
        with torch.no_grad():
            head.weight.copy_(member.head.weight / ensemble.sd[0])
            head.bias.fill_(-float(ensemble.mean[0] / ensemble.sd[0]))
    else:
        top = Top(models.base)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    if config.value_layers is not None and models.base.fast:
        top.train_only(config.value_layers)
    return ScalarHead(top, head).eval()


def load_watcher(models: Models, rewards: Path) -> SavedWatcher | None:
    """The watcher, when the run has one."""
    return SavedWatcher(models.base, rewards) if (rewards / "watcher").exists() else None


def watched(ppo: PPO, stats: StepStats, watch: SavedWatcher | None) -> StepStats:
    """The figures with the watcher's mean score and its standard error added, on the updates it looks at."""
    if watch is None or (stats.step > 1 and stats.step % ppo.config.watch_every):
        return stats
    assert ppo.experience is not None
    scores = watch.scores(ppo.experience.sequences)
    extra = {
        "watcher": float(scores.mean()),
        "watcher_se": float(scores.std(unbiased=True)) / math.sqrt(len(scores)),
    }
    return replace(stats, values={**stats.values, **extra})


def keep_samples(journal: Journal, ppo: PPO) -> None:
    """A few prompts and responses of this update, with scores and KL."""
    experience = ppo.experience
    assert experience is not None
    rollout = experience.rollout
    for i in range(min(SAMPLES_KEPT, len(rollout))):
        journal.run.append(
            f"samples/ppo-{ppo.tick:06d}.jsonl",
            {
                "prompt": rollout.prompts[i].text,
                "response": rollout.texts[i],
                "score": float(experience.scores.scores[i]),
                "kl": float(experience.kl[i]),
                "length": rollout.lengths[i],
            },
        )


def run_dpo(
    models: Models,
    pairs: list[Preference],
    journal: Journal,
    config: DPOConfig,
    outcome: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """DPO from SFT on the pairs the reward ensemble learned from."""
    dpo = DPO(
        policy=models.new_policy(),
        reference=models.reference(),
        codec=models.codec,
        pairs=pairs,
        config=config,
        learning_rate=models.rate("dpo", config.learning_rate),
        seed=derive_seed(seed, "dpo"),
    )
    dpo.policy.temperature = dpo.reference.temperature = 1.0
    found = journal.latest_checkpoint()
    if found and found.state.get("dpo_step"):
        dpo.load(found.folder, found.state["dpo_step"])
    for stats in dpo.updates():
        journal.log("dpo", stats)
        journal.view.progress(dpo.step, dpo.steps)
        if dpo.step % config.checkpoint_every == 0:
            state = {"phase": "dpo", "outcome": outcome, "dpo_step": dpo.step}
            journal.checkpoint(dpo.save, state)
    save_policy(dpo.policy.top, journal.path / "dpo", models.codec.tokenizer)
    return {"updates": dpo.step, "pairs": len(dpo.pairs)}
