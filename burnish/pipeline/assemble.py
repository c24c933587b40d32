"""PPO put together from a run's models, rewards and settings, and the looks at its policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from burnish.config.evaluate import EvaluateConfig
from burnish.config.ppo import PPOConfig, ShapingConfig
from burnish.errors import TrainingError
from burnish.models.artefacts import is_adapter, load_reward_model
from burnish.models.backbone import TrainableLayers
from burnish.models.heads import Pooling, ScalarHead
from burnish.pipeline.answers import reference_answers, sample_answers
from burnish.pipeline.concise import Instructed
from burnish.pipeline.context import Data, Journal, Models
from burnish.pipeline.regression_sets import sets_of_looks
from burnish.policy.kl_control import AdaptiveKLController, initial_coef
from burnish.policy.looks import Looks
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import first_rate
from burnish.policy.rollouts import ScoreFn
from burnish.policy.shaping import Shaping
from burnish.randomness import derive_seed
from burnish.records import Decision, Prompt, Rollout
from burnish.reward.ensemble import (
    EnsembleScorer,
    RewardEnsemble,
    SavedWatcher,
    load_anchor,
    load_ensemble,
    load_reference,
    reference_scores,
    scorers,
)
from burnish.reward.functions import SummedRewards, load_term
from burnish.runs.files import read_json

LOOKS = "looks"  # folder of the weights of looks, until PPO has finished
SCALE_PROMPTS = 128
WITHIN_PROMPTS = 32  # answered twice
VALUE_SHARE = 1 / 3  # of the reward models' learning rate, as the value function starts as one of them


def build_ppo(
    models: Models,
    data: Data,
    rewards: Path,
    config: PPOConfig,
    seed: int,
    *,
    fresh: bool = True,
    method: str = "ppo",
) -> PPO:
    """Build PPO before its first update: policy, reference, value function, reward and controller.

    It trains on the prompts that have a reference response. With `fresh` False, the first KL
    coefficient is not measured, because a checkpoint restores it. `method` is a value of `align.method`
    besides auto, for which `config` is settled (see `of_method`).
    """
    ensemble = load_ensemble(models.base, rewards)
    reference, score_sd = load_reference(ensemble, rewards)
    prompts = data.splits.train[: len(reference)]
    anchor = load_anchor(ensemble, rewards) if config.shaping.bounded else None
    score: ScoreFn = EnsembleScorer(ensemble, models.codec.pad_id, prompts, reference, anchor)
    ensemble_sd, shaping = score_sd, None
    own_scale = bool(config.rewards) or config.ensemble_weight != 1
    if own_scale or config.shaping.active:
        functions = [(term, load_term(term, data.columns)) for term in config.rewards]
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
        models,
        score,
        prompts,
        config,
        seed,
        score_sd,
        shaping,
        value,
        reward_rate,
        fresh=fresh,
        method=method,
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
    method: str = "ppo",
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
    scorer = ensemble_of(score)
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
        prefixes=scorer.prefixes if config.credit == "prefix" and scorer is not None else None,
        method=method if method in ("distill", "online_dpo") else "ppo",
        average_updates=config.averaged(whole=models.base.layers == "all"),
        shaping=shaping,
        seed=derive_seed(seed, "ppo"),
    )


def ensemble_of(score: ScoreFn) -> EnsembleScorer | None:
    """Return the ensemble that a score function contains, or None if it has none or no weight."""
    if isinstance(score, SummedRewards):
        return ensemble_of(score.ensemble) if score.weight else None
    return score if isinstance(score, EnsembleScorer) else None


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


def find_first_rate(ppo: PPO, otherwise: float, journal: Journal) -> None:
    """Set PPO's first rate so that its first update has the wanted KL, or to `otherwise`."""
    rate, kl = first_rate(ppo)
    if rate is None:
        text = f"{ppo.method} starts at {otherwise:.2g}: its first batch gives no usable gradient"
    else:
        text = f"{ppo.method} starts at {rate:.2g}, at which a first step moves it by {kl:.2g} nats"
    ppo.begin_at(otherwise if rate is None else rate)
    evidence = {"job": ppo.method, "rate": ppo.learning_rate, "kl": kl}
    journal.decide(0, Decision("learning_rate", text, evidence))


def looks_of(
    ppo: PPO,
    watch: SavedWatcher | None,
    models: Models,
    data: Data,
    path: Path,
    every: int,
    evaluation: EvaluateConfig,
    seed: int,
) -> Looks | None:
    """Return the looks at PPO's policy on selection prompts; None if there are none.

    The judges are the sum of the rewards as the reward stage left them, without shaping, each of its terms,
    and the watcher. The watcher chooses the best checkpoint if it is armed and the ensemble is optimised.
    Regression sets that are files are measured too.
    """
    prompts, config = data.splits.selection[: EvaluateConfig.look_prompts], ppo.config
    if not prompts:
        return None
    own, pad_id = ensemble_of(ppo.score), models.codec.pad_id
    ensemble = load_ensemble(models.base, path / "reward") if own is None else own.given
    reference = reference_answers(models, ensemble, prompts, config.batch_size, seed, "look")
    known = reference_scores(ensemble, reference, pad_id)
    if known is None:  # the score does not depend on it
        known = torch.zeros(len(prompts), len(ensemble.members), device=models.base.device)
    score: ScoreFn = EnsembleScorer(ensemble, pad_id, prompts, known)
    if isinstance(ppo.score, SummedRewards):
        score = ppo.score.of(score)

    def measure(rollout: Rollout) -> dict[str, list[float]]:
        scores = score(rollout)
        found = {"score": scores.scores.tolist()}
        found |= {f"reward_{name}": term.tolist() for name, term in scores.terms.items()}
        return found if watch is None else found | {"watcher": watch.scores(rollout, pad_id).tolist()}

    asked, plain = prompts, None
    if config.concise is not None:
        instructed = Instructed.of(prompts, config.concise, models.codec, models.prompt_room)
        asked, plain = instructed.prompts, instructed.plain
    judge = "watcher" if watch is not None and watch.armed and own is not None else None
    sets = sets_of_looks(models, evaluation, seed)
    return Looks(asked, measure, judge, every, path / "align" / LOOKS, plain, sets)
