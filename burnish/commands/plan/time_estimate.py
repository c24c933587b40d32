"""Time of a run by stage: its responses times the seconds of one response.

Responses are sampled, read and learned from. Stages of judges and people have no estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from burnish.config import RunConfig
from burnish.config.model import TINY_MODEL
from burnish.models.optim import HELD_OUT, RUNGS, n_updates, trial_steps
from burnish.pipeline.gate import FIRST_PROMPTS, GATE_ANSWERS, GATE_PROMPTS
from burnish.pipeline.speed_estimate import Speed
from burnish.reward.probe import MOST_PROMPTS

CHANGES = 15  # changes of an answer that the gate's stress tests try
LABELLED = 1 / 900  # seconds per comparison of the simulated annotators
FALLBACK = "align (dpo), if PPO is given up"


@dataclass(frozen=True)
class Counts:
    """Numbers of pairs, their distinct answers and prompts, training prompts and demonstrations."""

    pairs: int
    answers: int
    asked: int
    train: int
    demonstrations: int = 0


@dataclass(frozen=True)
class Sharing:
    """Division of work over `world` processes.

    Work on rows is split, and takes `link` seconds a step to add up gradients. Whole jobs (reward
    models) are dealt out.
    """

    world: int = 1
    link: float = 0.0

    def rows(self, seconds: float) -> float:
        """Return the seconds of row-wise work when the processes share it."""
        return seconds / self.world

    def jobs(self, n: int) -> float:
        """Return the share of time that `n` equal jobs take when they are dealt to the processes."""
        return -(-n // self.world) / n


def time_by_stage(
    pace: Speed, counts: Counts, config: RunConfig, sharing: Sharing | None = None
) -> dict[str, float]:
    """Return the seconds of each stage, with DPO and distillation as entries of their own."""
    shared = sharing or Sharing()
    found: dict[str, float] = {}
    seen = pace.features + pace.reading  # a whole forward pass
    if counts.demonstrations:
        steps = n_updates(counts.demonstrations, config.sft.batch_size, config.sft.epochs)
        one = pace.policy + pace.features / config.sft.epochs
        learned = counts.demonstrations * config.sft.epochs * one
        trials = _trials(config.sft.learning_rate, steps) * (config.sft.batch_size * pace.policy)
        found["sft"] = shared.rows(learned + trials) + shared.link * steps
    if config.label.source != "imported" and config.collect.n_pairs:
        found["collect"] = shared.rows(2 * config.collect.n_pairs * pace.sampling)
        if config.label.source == "simulated":
            found["label"] = config.collect.n_pairs * LABELLED
    found["reward"] = _reward(pace, counts, config, shared)
    if config.ppo.updates:
        looked = min(config.evaluate.look_prompts, config.evaluate.n_selection)
        looks = -(-config.ppo.updates // config.looks_every) if config.looks_every else 0
        look = looked * (pace.sampling + (config.reward.members + 1) * pace.scoring + 2 * pace.reading)
        found["align"] = _ppo(pace, config, shared) + shared.rows(looks * look)
        if config.align.method == "auto":
            one = config.align.trial_updates * config.ppo.batch_size
            found["align"] += shared.rows(
                sum(one * pace.response_of(config, m) + 2 * look for m in config.align.compared)
            )
    if config.distill.when == "always":
        asked = min(config.distill.max_prompts, counts.train)
        sampled = (
            asked * config.distill.samples_per_prompt * (pace.sampling + config.reward.members * pace.scoring)
        )
        steps = n_updates(asked, config.distill.batch_size, config.distill.epochs)
        learned = asked * config.distill.epochs * pace.policy
        found["align (distill)"] = shared.rows(sampled + learned) + shared.link * steps
    if config.dpo.when != "never":
        name = "align (dpo)" if config.dpo.when == "always" else FALLBACK
        found[name] = _dpo(pace, counts, config, shared)
    examined = config.evaluate.n_selection + config.evaluate.n_test
    averaged = config.examines_average and config.ppo.averaged(whole=config.model.layers == "all") > 0
    others = (
        1
        + averaged
        + (config.looks_every > 0)
        + (config.dpo.when == "always")
        + (config.distill.when == "always")
    )
    answers = examined * (others * config.evaluate.answers + config.evaluate.sft_answers)
    kl = others * min(config.evaluate.kl_prompts, examined) * (seen + pace.reading)
    found["evaluate"] = shared.rows(answers * (pace.sampling + pace.scoring) + kl)
    return found


def _trials(rate: object, steps: int) -> int:
    """Return the number of updates that the search for a learning rate takes."""
    return RUNGS * trial_steps(steps) if rate == "auto" else 0


def _reward(pace: Speed, counts: Counts, config: RunConfig, shared: Sharing) -> float:
    reward = config.reward
    share = 1.0 - reward.validation_share - reward.watcher_share
    examiner = reward.examiner_share if config.evaluate.examiner == "reward_model" else 0.0
    learned = reward.epochs * pace.reward
    probed = min(1.0, MOST_PROMPTS / max(1, counts.asked)) * counts.answers if reward.depth == "auto" else 0.0
    prompts = counts.asked * (share - examiner)
    steps = n_updates(max(1, round(prompts)), reward.batch_size, reward.epochs)
    a_step = reward.batch_size * counts.answers / max(1, counts.asked)
    known = config.model.path == TINY_MODEL  # its learning rate is on record
    trials = 0 if known else _trials(reward.learning_rate, steps) * a_step * pace.reward
    trials += bool(trials) * RUNGS * HELD_OUT * pace.scoring
    references = min(counts.train, max(reward.reference_samples, config.ppo.updates * config.ppo.batch_size))
    members = counts.answers * (share - examiner) * learned * reward.members * shared.jobs(reward.members)
    single = counts.answers * (reward.watcher_share + examiner) * learned
    read = references * (pace.sampling + (reward.members + 2) * pace.scoring)
    return (
        probed * (pace.features + pace.reading)
        + trials
        + members
        + single
        + shared.rows(read + counts.answers * pace.features)
    )


def _ppo(pace: Speed, config: RunConfig, shared: Sharing) -> float:
    ppo = config.ppo
    # One answer to each of the other prompts: few changes are left open by the first look.
    gated = FIRST_PROMPTS * GATE_ANSWERS + (GATE_PROMPTS - FIRST_PROMPTS)
    gate = gated * (pace.sampling + (config.reward.members + 1) * pace.scoring)
    gate += FIRST_PROMPTS * CHANGES * config.reward.members * (pace.features + pace.scoring)
    first = ppo.batch_size * (pace.sampling + pace.policy) if ppo.learning_rate == "auto" else 0.0
    steps = ppo.updates * ppo.epochs * ppo.minibatches
    updates = ppo.updates * ppo.batch_size * pace.ppo_response(config)
    return shared.rows(gate * bool(config.ppo.ensemble_weight) + first + updates) + shared.link * steps


def _dpo(pace: Speed, counts: Counts, config: RunConfig, shared: Sharing) -> float:
    dpo = config.dpo
    own = dpo.pairs in ("auto", "on_policy", "both")
    asked = min(dpo.max_prompts, counts.train) if own else 0
    sampled = asked * dpo.samples_per_prompt * (pace.sampling + config.reward.members * pace.scoring)
    pairs = asked + (counts.pairs if dpo.pairs in ("labels", "both") else 0)
    steps = n_updates(max(1, pairs), dpo.batch_size, dpo.epochs)
    learned = 2 * pairs * (pace.reading + dpo.epochs * pace.policy)
    trials = _trials(dpo.learning_rate, steps) * 2 * dpo.batch_size * pace.policy
    trials += bool(trials) * RUNGS * 2 * HELD_OUT * pace.reading
    return shared.rows(sampled + learned + trials) + shared.link * steps
