"""The align stage: PPO under the guard, with DPO from SFT on the same preferences as fallback."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burnish.config.distill import DistillConfig
from burnish.config.dpo import DPOConfig
from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import PPOConfig, ShapingConfig
from burnish.errors import TrainingError
from burnish.evaluation.champion import AVERAGE, TRAINED
from burnish.models.artefacts import is_adapter, is_saved, load_reward_model, save_policy
from burnish.models.backbone import TrainableLayers
from burnish.models.heads import Pooling, ScalarHead
from burnish.models.memory import give_back
from burnish.models.optim import ladder
from burnish.pipeline.answers import OwnAnswers, sample_answers
from burnish.pipeline.concise import Instructed
from burnish.pipeline.context import Data, Journal, Models
from burnish.pipeline.distill import run_distill
from burnish.pipeline.dpo import HEALTHY, run_dpo
from burnish.pipeline.gate import barely_moved, pass_gate
from burnish.pipeline.guarded import Guarded, run_guarded
from burnish.pipeline.oversight import Oversight
from burnish.policy.kl_control import AdaptiveKLController, initial_coef
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import first_rate, self_check
from burnish.policy.rollouts import ScoreFn
from burnish.policy.shaping import Shaping
from burnish.randomness import derive_seed
from burnish.records import Decision, Prompt
from burnish.reward.ensemble import (
    EnsembleScorer,
    RewardEnsemble,
    SavedWatcher,
    load_anchor,
    load_ensemble,
    load_reference,
    load_watcher,
    prepare,
    scorers,
)
from burnish.reward.functions import SummedRewards, load_term
from burnish.runs.files import read_json, write_json

CHECK_PROMPTS = 16
SCALE_PROMPTS = 128
WITHIN_PROMPTS = 32  # answered twice
VALUE_SHARE = 1 / 3  # of the reward models' learning rate, as the value function starts as one of them


def align(
    models: Models,
    data: Data,
    journal: Journal,
    ppo: PPOConfig,
    guard: GuardConfig,
    dpo: DPOConfig,
    distill: DistillConfig,
    monitor: MonitorConfig,
    seed: int,
) -> list[str]:
    """Run PPO, distillation and DPO (as fallback or if asked for); write align.json and the models."""
    prepare(models.base, journal.path / "reward")
    found = journal.latest_checkpoint()
    state: dict[str, Any] = found.state if found else {"phase": "ppo"}
    outcome: dict[str, Any] = state.get("outcome", {})
    own = OwnAnswers(models, data, journal, ppo.batch_size, seed)
    if state["phase"] == "ppo":
        outcome = {"ppo": run_ppo(models, data, journal, ppo, guard, monitor, seed)}
        journal.checkpoint(state={"phase": "dpo", "outcome": outcome})
    if distill.when == "always" and "distill" not in outcome:
        outcome["distill"] = run_distill(models, own, journal, distill, seed)
        journal.checkpoint(state={"phase": "dpo", "outcome": outcome})
    given_up = outcome["ppo"]["state"] in ("given_up", "stopped")
    outcome["fallback"] = {
        "triggered": given_up and dpo.when != "never",
        "reason": outcome["ppo"]["reason"] if given_up else None,
    }
    if dpo.when == "always" or (given_up and dpo.when == "fallback"):
        outcome["dpo"] = run_dpo(models, data, own, journal, dpo, outcome, seed)
    write_json(journal.path / "align.json", outcome)
    return ["align.json", *(name for name in (*TRAINED, HEALTHY) if is_saved(journal.path / name))]


def run_ppo(
    models: Models,
    data: Data,
    journal: Journal,
    config: PPOConfig,
    guard: GuardConfig,
    monitor: MonitorConfig,
    seed: int,
) -> dict[str, Any]:
    """Run PPO to its last update or until the guard gives it up; return its entry of align.json."""
    if not config.updates:
        return {"state": "off", "reason": "ppo.updates is 0", "rollbacks": 0}
    watch = load_watcher(models.base, journal.path / "reward")
    found = journal.latest_checkpoint()
    if not found and config.ensemble_weight:
        stopped = pass_gate(models, data, journal, config, watch, seed)
        give_back()  # frees the memory of hundreds of sampled answers
        if stopped:
            return {"state": "stopped", "reason": stopped, "rollbacks": 0}
    ppo = build_ppo(models, data, journal.path / "reward", config, seed, fresh=found is None)
    return run_under_guard(ppo, watch, models, journal, guard, monitor, seed)


def run_under_guard(
    ppo: PPO,
    watch: SavedWatcher | None,
    models: Models,
    journal: Journal,
    guard: GuardConfig,
    monitor: MonitorConfig,
    seed: int,
) -> dict[str, Any]:
    """Run a built PPO under the guard, from the last checkpoint if there is one.

    Saves the policy, or that of the last healthy checkpoint if the optimiser failed. Returns the
    entry of align.json.
    """
    config, found = ppo.config, journal.latest_checkpoint()
    scorer = ensemble_of(ppo.score)
    oversight = Oversight.of(
        guard,
        monitor,
        kl_target=config.kl.target,
        responses=config.batch_size,
        armed=watch is not None and watch.armed,
        looks=config.looks,
        tightest=0 if scorer is None else scorer.given.tightest,
    )
    guarded = Guarded(ppo, oversight, watch, journal, scorer)
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
        if config.learning_rate == "auto":
            find_first_rate(ppo, ladder(models.base)[-1], journal)
        journal.decide(0, oversight.introduced())
        guarded.checkpoint(healthy=True, proven=True)
    reason = run_guarded(guarded, monitor.sample_every)
    state = "given_up" if reason else "finished"
    if state == "finished":
        save_policy(ppo.policy.top, journal.path / "ppo", models.codec.tokenizer)
        if ppo.average:
            with ppo.averaged():
                save_policy(ppo.policy.top, journal.path / AVERAGE, models.codec.tokenizer)
        done = f"{ppo.step} updates kept, {guarded.oversight.guard.rollbacks} roll-backs"
        journal.decide(ppo.step, Decision("finish", f"PPO finished: {done}", {"tick": ppo.tick}))
        little = barely_moved(journal.run.read_rows("metrics/ppo.jsonl"), ppo.attempt, config)
        if little is not None:
            journal.decide(ppo.step, little)
    elif guarded.cause == "optimiser" and guarded.oversight.healthy_tick:
        # The reward is still trusted, so the policy of the last healthy checkpoint is kept.
        ppo.load(journal.run.checkpoint_at("align", guarded.oversight.healthy).folder)
        save_policy(ppo.policy.top, journal.path / HEALTHY, models.codec.tokenizer)
    return {
        "state": state,
        "reason": reason,
        "cause": guarded.cause,
        "updates": ppo.step,
        "ticks": ppo.tick,
        "rollbacks": guarded.oversight.guard.rollbacks,
        "kl_raises": guarded.raises,
        "tightenings": guarded.oversight.guard.tightenings,
        "kl_target": config.kl.target,
        "kl_last": ppo.controller.smoothed,
        "kl_coef": ppo.controller.coef,
    }


def ensemble_of(score: ScoreFn) -> EnsembleScorer | None:
    """Return the ensemble that a score function contains, or None if it has none or no weight."""
    if isinstance(score, SummedRewards):
        return ensemble_of(score.ensemble) if score.weight else None
    return score if isinstance(score, EnsembleScorer) else None


def find_first_rate(ppo: PPO, otherwise: float, journal: Journal) -> None:
    """Set PPO's first rate so that its first update has the wanted KL, or to `otherwise`."""
    rate, kl = first_rate(ppo)
    if rate is None:
        text = f"ppo starts at {otherwise:.2g}: its first batch gives no usable gradient"
    else:
        text = f"ppo starts at {rate:.2g}, at which a first step moves it by {kl:.2g} nats"
    ppo.begin_at(otherwise if rate is None else rate)
    evidence = {"job": "ppo", "rate": ppo.learning_rate, "kl": kl}
    journal.decide(0, Decision("learning_rate", text, evidence))


def build_ppo(
    models: Models, data: Data, rewards: Path, config: PPOConfig, seed: int, *, fresh: bool = True
) -> PPO:
    """Build PPO before its first update: policy, reference, value function, reward and controller.

    It trains on the prompts that have a reference response. With `fresh` False, the first KL
    coefficient is not measured, because a checkpoint restores it.
    """
    ensemble = load_ensemble(models.base, rewards)
    reference, score_sd = load_reference(ensemble, rewards)
    prompts = data.splits.train[: len(reference)]
    anchor = load_anchor(ensemble, rewards) if config.shaping.bounded else None
    score: ScoreFn = EnsembleScorer(ensemble, models.codec.pad_id, prompts, reference, anchor)
    ensemble_sd, shaping = score_sd, None
    own_scale = bool(config.rewards) or config.ensemble_weight != 1
    if own_scale or config.shaping.active:
        functions = [(term, load_term(term)) for term in config.rewards]
        score = summed = SummedRewards(score, config.ensemble_weight, functions)
        shaping = measured_shaping(
            models, summed, prompts[:SCALE_PROMPTS], config.shaping.given(own_scale), seed
        )
        score_sd = shaping.unit
    if config.concise is not None:  # the held-out prompts, which evaluation samples with it, must fit too
        held_out = (*data.splits.selection, *data.splits.test)
        Instructed.of(held_out, config.concise, models.codec, models.prompt_room)
    reward_rate = read_json(rewards / "readings.json")["learning_rate"]
    value = None
    if config.advantage in ("auto", "gae"):
        value = new_value(models, config, (ensemble, rewards), score_sd / ensemble_sd)
    return assemble_ppo(
        models, score, prompts, config, seed, score_sd, shaping, value, reward_rate, fresh=fresh
    )


def assemble_ppo(
    models: Models,
    score: ScoreFn,
    prompts: Sequence[Prompt],
    config: PPOConfig,
    seed: int,
    score_sd: float,
    shaping: Shaping | None,
    value: ScalarHead | None,
    reward_rate: float,
    *,
    fresh: bool = True,
) -> PPO:
    """Join a score function, a value function and the policies of `models` to a PPO run.

    `score_sd` is the standard deviation of PPO's reward on reference responses. It sets the first KL
    coefficient, with the variance within prompts that is measured here unless a checkpoint has it.
    `reward_rate` is the learning rate of the reward models.
    """
    instructed = None
    if config.concise is not None:
        instructed = Instructed.of(prompts, config.concise, models.codec, models.prompt_room)
    kl, within = config.kl, 0.0
    if fresh and kl.init_coef is None:
        within = spread_within(models, score, shaping, prompts, seed)
    episodes = config.updates * config.batch_size
    controller = AdaptiveKLController(
        coef=kl.init_coef or initial_coef(within or score_sd, kl.target),
        target=kl.target,
        horizon=max(config.batch_size, episodes // 20) if kl.horizon is None else kl.horizon,
        smoothing=kl.smoothing,
        lead=kl.lead,
        min_coef=kl.min_coef * score_sd,
        max_coef=kl.max_coef * score_sd,
    )
    return PPO(
        policy=models.new_policy(),
        reference=models.reference(),
        value=value,
        codec=models.codec,
        score=score,
        prompts=prompts if instructed is None else instructed.prompts,
        plain=None if instructed is None else instructed.plain,
        config=config,
        controller=controller,
        max_tokens=models.config.max_response_tokens,
        learning_rate=0.0 if config.learning_rate == "auto" else config.learning_rate,
        value_learning_rate=VALUE_SHARE * reward_rate
        if config.value_learning_rate == "auto"
        else config.value_learning_rate,
        average_updates=config.averaged(whole=models.base.layers == "all"),
        shaping=shaping,
        seed=derive_seed(seed, "ppo"),
    )


def spread_within(
    models: Models, score: ScoreFn, shaping: Shaping | None, prompts: Sequence[Prompt], seed: int
) -> float:
    """Return the sd of PPO's reward among responses of the reference policy to one prompt.

    Half the mean squared difference of two responses to each of some prompts is the variance within a
    prompt. The result is 0 if no two rewards differ, as with a reward that few responses earn.
    """
    some = prompts[:WITHIN_PROMPTS]
    paid = []
    for turn in range(2):
        scores = score(sample_answers(models, some, len(some), seed, "spread within", turn))
        paid.append(scores.scores if shaping is None else shaping(scores))
    return math.sqrt(float((paid[0] - paid[1]).square().mean()) / 2)


def measured_shaping(
    models: Models, score: SummedRewards, prompts: Sequence[Prompt], config: ShapingConfig, seed: int
) -> Shaping:
    """Centre a reward on responses of the reference policy; return its shaping, measured on them.

    The sd after shaping sets the initial KL coefficient. Raises TrainingError for a constant reward.
    """
    rollout = sample_answers(models, prompts, len(prompts), seed, "scale")
    sd = score.center(rollout)
    if not sd > 0:
        raise TrainingError(
            f"the summed reward is the same for all of {len(prompts)} reference responses: there is nothing to learn "
            "from it; look at ppo.rewards and ppo.ensemble_weight"
        )
    shaping = Shaping(config, sd)
    shaping.measure(score(rollout))
    return shaping


def new_value(
    models: Models, config: PPOConfig, rewards: tuple[RewardEnsemble, Path] | None = None, scale: float = 1.0
) -> ScalarHead:
    """Build the value function: the first reward member, scaled to PPO's reward, or a new zero head.

    `rewards` are the ensemble and its folder; without them the head is zero.
    """
    how = config.value_init
    if how == "auto":
        # A reward model cannot predict a reward that leaves the ensemble out, and adapters give no value function.
        adapters = models.base.layers.startswith("lora") or (
            rewards is not None and is_adapter(rewards[1] / scorers(rewards[1])[0])
        )
        unfit = adapters or not config.ensemble_weight
        how = "zero" if unfit else "reward_model"
    head = nn.Linear(models.base.hidden_size, 1, device=models.base.device)
    pooling: Pooling = "last"
    if how == "reward_model" and rewards is not None:
        ensemble, folder = rewards
        member = load_reward_model(models.base, folder / scorers(folder)[0], trainable=True)
        top, pooling = member.top, member.pooling
        with torch.no_grad():
            head.weight.copy_(member.head.weight / ensemble.sd[0] * scale)
            head.bias.fill_(-float(ensemble.mean[0] / ensemble.sd[0]) * scale)
    else:
        top = TrainableLayers(models.base)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    if config.value_layers is not None and models.base.fast:
        top.train_only(config.value_layers)
    return ScalarHead(top, head, pooling=pooling).eval()
