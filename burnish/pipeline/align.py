"""The align stage: PPO under the guard; when PPO is given up, DPO from SFT on the same preferences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burnish.checkpoints import read_json, write_json
from burnish.errors import Diverged
from burnish.models.artefacts import save_policy
from burnish.models.heads import ScalarHead, raw_scores
from burnish.models.sequences import Sequences
from burnish.models.shared_base import Top
from burnish.monitor.hacking import WatcherMonitor
from burnish.monitor.health import HealthMonitor
from burnish.pipeline.context import Context
from burnish.pipeline.rewarding import load_ensemble, load_head, split_labels
from burnish.policy.dpo import DPO
from burnish.policy.guard import GuardState, guard_step
from burnish.policy.kl_control import AdaptiveKLController, initial_coef
from burnish.policy.ppo import PPO
from burnish.policy.self_check import self_check
from burnish.randomness import derive_seed
from burnish.records import Alert, Decision, Prompt, Scores, StepStats
from burnish.reward.ensemble import RewardEnsemble

CHECK_PROMPTS = 16


def align(ctx: Context) -> list[str]:
    """PPO, then DPO when it is the fallback that was needed (or asked for). Writes align.json and the models."""
    found = ctx.run.latest_checkpoint("align")
    state: dict[str, Any] = found.state if found else {"phase": "ppo"}
    outcome: dict[str, Any] = state.get("outcome", {})
    if state["phase"] == "ppo":
        outcome = run_ppo(ctx)
        ctx.run.checkpoint(
            "align", next_number(ctx), lambda folder: None, {"phase": "dpo", "outcome": outcome}
        )
    given_up = outcome["ppo"]["state"] == "given_up"
    when = ctx.config.dpo.when
    outcome["fallback"] = {
        "triggered": given_up and when != "never",
        "reason": outcome["ppo"]["reason"] if given_up else None,
    }
    if when == "always" or (given_up and when == "fallback"):
        outcome["dpo"] = run_dpo(ctx, outcome)
    write_json(ctx.run.path / "align.json", outcome)
    return ["align.json", *(name for name in ("ppo", "dpo") if name in outcome)]


def next_number(ctx: Context) -> int:
    found = ctx.run.latest_checkpoint("align")
    return found.step + 1 if found else 1


@dataclass
class Guarded:
    """A PPO run with its monitors and guard: everything a checkpoint must hold."""

    ppo: PPO
    health: HealthMonitor
    watcher: WatcherMonitor
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


def run_ppo(ctx: Context) -> dict[str, Any]:
    """PPO to its last update or until the guard gives it up; returns what align.json says of it."""
    if not ctx.config.ppo.updates:
        return {"ppo": {"state": "off", "reason": "ppo.updates is 0", "rollbacks": 0}}
    guarded = build_ppo(ctx)
    ppo = guarded.ppo
    found = ctx.run.latest_checkpoint("align")
    if found:
        guarded.restore(found.folder, found.state)
    else:
        check = self_check(
            ppo.policy,
            ppo.reference,
            ctx.codec,
            ppo.prompts[:CHECK_PROMPTS],
            max_tokens=ppo.max_tokens,
            seed=ctx.config.seed,
        )
        text = f"before the first update KL is {check['kl']:.2g} and log-probabilities agree"
        ctx.decide("align", 0, Decision("self_check", text, check))
        checkpoint(ctx, guarded, healthy=True)
    watch = load_watcher(ctx)
    reason = None
    while reason is None and ppo.step < ctx.config.ppo.updates:
        try:
            reason = run_attempt(ctx, guarded, watch)
        except Diverged as error:
            reason = diverged(ctx, guarded, str(error))
    state = "given_up" if reason else "finished"
    if state == "finished":
        save_policy(ppo.policy.top, ctx.run.path / "ppo", ctx.codec.tokenizer)
        done = f"{ppo.step} updates kept, {guarded.guard.rollbacks} roll-backs"
        ctx.decide("align", ppo.step, Decision("finish", f"PPO finished: {done}", {"tick": ppo.tick}))
    return {
        "ppo": {
            "state": state,
            "reason": reason,
            "updates": ppo.step,
            "ticks": ppo.tick,
            "rollbacks": guarded.guard.rollbacks,
            "kl_raises": guarded.raises,
            "kl_target": ctx.config.ppo.kl.target,
            "kl_last": ppo.controller.smoothed,
            "kl_coef": ppo.controller.coef,
        }
    }


def run_attempt(ctx: Context, guarded: Guarded, watch: ScalarHead | None) -> str | None:
    """Updates until PPO is done (None), rolled back (None, state restored) or given up (the reason)."""
    ppo, config = guarded.ppo, ctx.config
    for raw in ppo.updates():
        stats = watched(ctx, guarded, raw, watch)
        ctx.log("ppo", stats)
        ctx.run.append(
            "timing/ppo.jsonl", {"step": stats.step, "attempt": stats.attempt, "tick": ppo.tick, **ppo.timing}
        )
        ctx.view.progress(ppo.step, config.ppo.updates)
        ctx.view.update(stats.values)
        if (ppo.tick - 1) % config.monitor.sample_every == 0:
            keep_samples(ctx, ppo)
        alerts = [*guarded.health.observe(stats), *guarded.watcher.observe(stats)]
        for alert in alerts:
            ctx.alert("align", alert)
        verdict = guard_step(guarded.guard, stats, alerts, ppo.tick, config.guard)
        guarded.guard = verdict.state
        if verdict.decision:
            ctx.decide("align", stats.step, verdict.decision)
        if verdict.action == "raise_kl":
            ppo.controller.raise_coef(config.guard.raise_kl_factor)
            guarded.raises += 1
        elif verdict.action == "roll_back":
            roll_back(ctx, guarded)
            return None
        elif verdict.action == "give_up":
            assert verdict.decision is not None
            return verdict.decision.reason
        if ppo.step % config.ppo.checkpoint_every == 0 or ppo.step == config.ppo.updates:
            checkpoint(ctx, guarded, healthy=verdict.healthy)
    return None


def diverged(ctx: Context, guarded: Guarded, message: str) -> str | None:
    """An update that could not even be sampled or scored: critical, so the guard acts at once."""
    ppo = guarded.ppo
    ppo.tick += 1
    alert = Alert("diverged", "critical", message, ppo.step, 1.0, 0.0, {"attempt": ppo.attempt})
    ctx.alert("align", alert)
    stats = StepStats(ppo.step, ppo.attempt, {})
    verdict = guard_step(guarded.guard, stats, [alert], ppo.tick, ctx.config.guard)
    guarded.guard = verdict.state
    if verdict.decision is None:
        raise Diverged(f"{message} (guard.enabled is false)")
    ctx.decide("align", ppo.step, verdict.decision)
    if verdict.action == "roll_back":
        roll_back(ctx, guarded)
        return None
    return verdict.decision.reason


def roll_back(ctx: Context, guarded: Guarded) -> None:
    """Back to the last healthy checkpoint (weights, optimiser, controller, monitors); the new attempt draws new
    randomness and takes smaller steps. What was decided so far (guard, counters) is kept."""
    ppo, guard, raises, tick = guarded.ppo, guarded.guard, guarded.raises, guarded.ppo.tick
    coef = ppo.controller.coef
    attempt = ppo.attempt + 1
    saved = ctx.run.checkpoint_at("align", guarded.healthy)
    guarded.restore(saved.folder, saved.state)
    guarded.guard, guarded.raises = guard, raises
    ppo.tick = tick
    # A penalty that had to grow is not taken back with the weights.
    ppo.controller.raise_coef(max(1.0, coef / ppo.controller.coef))
    # Each roll-back takes smaller steps than the one before, also when it returns to the same checkpoint.
    factor = ctx.config.guard.learning_rate_factor ** (attempt - ppo.attempt)
    ppo.restart(factor, attempt)
    guarded.health.restart()
    checkpoint(ctx, guarded, healthy=True)


def checkpoint(ctx: Context, guarded: Guarded, *, healthy: bool) -> None:
    """Save everything; older checkpoints go, but for the last healthy one."""
    number = next_number(ctx)
    if healthy:
        guarded.healthy = number
    ctx.run.checkpoint("align", number, guarded.ppo.save, guarded.state(), keep={guarded.healthy})


def build_ppo(ctx: Context) -> Guarded:
    """Policy, reference, value function, reward and controller, before the first update."""
    config = ctx.config.ppo
    ensemble = load_ensemble(ctx)
    rows = read_json(ctx.run.path / "reward" / "reference.json")
    raw = torch.tensor([row["raw"] for row in rows])  # (N, K)
    normalised = (raw - ensemble.mean) / ensemble.sd
    reference = {row["prompt_id"]: scores for row, scores in zip(rows, normalised, strict=True)}
    prompts = [p for p in ctx.splits.train if p.id in reference]
    score_sd = read_json(ctx.run.path / "reward" / "ensemble.json")["score_sd"]

    def score(sequences: Sequences, batch: Sequence[Prompt]) -> Scores:
        return ensemble.score(sequences, torch.stack([reference[p.id] for p in batch]))

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
    ppo = PPO(
        policy=ctx.new_policy(),
        reference=ctx.reference(),
        value=new_value(ctx, ensemble),
        codec=ctx.codec,
        score=score,
        prompts=prompts,
        config=config,
        controller=controller,
        max_tokens=ctx.config.model.max_response_tokens,
        learning_rate=ctx.rate("ppo", config.learning_rate),
        value_learning_rate=ctx.rate("value", config.value_learning_rate),
        seed=derive_seed(ctx.config.seed, "ppo"),
    )
    examination = read_json(ctx.run.path / "reward" / "examination.json")
    armed = bool(examination["watcher"] and examination["watcher"]["armed"])
    return Guarded(ppo, HealthMonitor(ctx.config.monitor, kl.target), WatcherMonitor(armed))


def new_value(ctx: Context, ensemble: RewardEnsemble) -> ScalarHead:
    """A value function: the first reward member with its score normalised, or a zero head on a fresh top."""
    how = ctx.config.ppo.value_init
    if how == "auto":
        how = "zero" if ctx.config.model.layers.startswith("lora") else "reward_model"
    head = nn.Linear(ctx.base.hidden_size, 1)
    if how == "reward_model":
        member = load_head(ctx, "member-0", trainable=True)
        top = member.top
        with torch.no_grad():
            head.weight.copy_(member.head.weight / ensemble.sd[0])
            head.bias.fill_(-float(ensemble.mean[0] / ensemble.sd[0]))
    else:
        top = Top(ctx.base)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    if ctx.config.ppo.value_layers is not None and ctx.base.fast:
        top.train_only(ctx.config.ppo.value_layers)
    return ScalarHead(top, head).eval()


def load_watcher(ctx: Context) -> ScalarHead | None:
    if not ctx.config.reward.watcher_share:
        return None
    return load_head(ctx, "watcher")


def watched(ctx: Context, guarded: Guarded, stats: StepStats, watch: ScalarHead | None) -> StepStats:
    """The figures with the watcher's mean score and its standard error added, on the updates it looks at."""
    if watch is None or (stats.step > 1 and stats.step % ctx.config.ppo.watch_every):
        return stats
    experience = guarded.ppo.experience
    assert experience is not None
    saved = read_json(ctx.run.path / "reward" / "ensemble.json")["watcher"]
    scores = (raw_scores(watch, experience.sequences, 64) - saved["mean"]) / saved["sd"]
    extra = {
        "watcher": float(scores.mean()),
        "watcher_se": float(scores.std(unbiased=True)) / math.sqrt(len(scores)),
    }
    return replace(stats, values={**stats.values, **extra})


def keep_samples(ctx: Context, ppo: PPO, n: int = 8) -> None:
    """A few prompts and responses of this update, with scores and KL."""
    experience = ppo.experience
    assert experience is not None
    rollout = experience.rollout
    for i in range(min(n, len(rollout))):
        ctx.run.append(
            f"samples/ppo-{ppo.tick:06d}.jsonl",
            {
                "prompt": rollout.prompts[i].text,
                "response": rollout.texts[i],
                "score": float(experience.scores.scores[i]),
                "kl": float(experience.kl[i]),
                "length": rollout.lengths[i],
            },
        )


def run_dpo(ctx: Context, outcome: dict[str, Any]) -> dict[str, Any]:
    """DPO from SFT on the pairs the reward ensemble learned from."""
    config = ctx.config.dpo
    dpo = DPO(
        policy=ctx.new_policy(),
        reference=ctx.reference(),
        codec=ctx.codec,
        pairs=split_labels(ctx)["members"],
        config=config,
        learning_rate=ctx.rate("dpo", config.learning_rate),
        seed=derive_seed(ctx.config.seed, "dpo"),
    )
    dpo.policy.temperature = dpo.reference.temperature = 1.0
    found = ctx.run.latest_checkpoint("align")
    if found and found.state.get("dpo_step"):
        dpo.load(found.folder, found.state["dpo_step"])
    for stats in dpo.updates():
        ctx.log("dpo", stats)
        ctx.view.progress(dpo.step, dpo.steps)
        if dpo.step % config.checkpoint_every == 0:
            state = {"phase": "dpo", "outcome": outcome, "dpo_step": dpo.step}
            ctx.run.checkpoint("align", next_number(ctx), dpo.save, state)
    save_policy(dpo.policy.top, ctx.run.path / "dpo", ctx.codec.tokenizer)
    return {"updates": dpo.step, "pairs": len(dpo.pairs)}
