"""How fast this machine is with this model: what `doctor` estimates from, and what sizes PPO's batch on request."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from burnish.checkpoints import read_json, write_json
from burnish.config import RunConfig
from burnish.config.ppo import PPOConfig
from burnish.models.heads import new_reward_head
from burnish.models.logprobs import token_logprobs
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.pipeline.data import Data
from burnish.pipeline.models import Models
from burnish.runs import RunDirectory

PROBE = 32  # responses that are timed
TOGETHER = 4  # answers to a prompt that PPO may have to compare, whatever it begins with
SMALLEST, LARGEST = 16, 1024  # responses an update
BYTES = 4  # float32


@dataclass(frozen=True)
class Pace:
    """Seconds a response, once its frozen activations are there: to sample one, to read it with a policy, to learn from
    it with a policy and with a reward model. `features`: to compute those activations, sampling apart."""

    sampling: float
    features: float
    reading: float
    policy: float
    reward: float

    def ppo_response(self, config: RunConfig) -> float:
        """Of one response of a PPO update: sampled, scored, read by the reference, learned from by policy and value
        function in every inner epoch."""
        members = config.reward.members * self.reward / 3  # a pass forward, of forward and backward
        value = self.reward if config.ppo.advantage in ("auto", "gae") else 0.0
        return self.sampling + members + self.reading + config.ppo.epochs * (self.policy + value)


def measure(models: Models, data: Data, config: RunConfig) -> Pace:
    """Time a small batch of each."""
    prompts = data.splits.train[:PROBE]
    policy = models.new_policy()

    device = models.base.device

    def timed(began: float) -> float:
        if device.type == "cuda":  # which is told what to do and does it later
            torch.cuda.synchronize(device)
        return (perf_counter() - began) / len(prompts)

    began = perf_counter()
    rollout = sample_rollout(
        policy,
        models.codec,
        prompts,
        max_tokens=models.config.max_response_tokens,
        batch_size=len(prompts),
        seed=0,
        where=("doctor",),
    )
    sampling = timed(began)
    size = min(len(prompts), config.ppo.micro_batch)
    rows = Sequences(models.base, rollout.prompt_ids, rollout.response_ids, models.codec.pad_id)
    began = perf_counter()
    _ = rows.features
    features = timed(began)
    began = perf_counter()
    with torch.no_grad():
        for _, batch in rows.batches(size):
            token_logprobs(policy, batch)
    reading = timed(began)
    began = perf_counter()
    for _, batch in rows.batches(size):
        token_logprobs(policy, batch).sum().backward()
    learning = timed(began)
    part = models.base.at(models.base.depth, config.reward.layers)
    head = new_reward_head(part, 0, "pace", layers=part.layers, dropout=0.0)
    judged = Sequences(part, rollout.prompt_ids, rollout.response_ids, models.codec.pad_id)
    _ = judged.features
    began = perf_counter()
    for _, batch in judged.batches(size):
        head.score(batch).sum().backward()
    return Pace(sampling, features, reading, learning, timed(began))


def time_estimate(pace: Pace, data: Data, config: RunConfig) -> float:
    """Seconds for the whole run, DPO and distillation left out. Rounds: a later one samples candidates, and trains its
    rewards on all labels so far."""
    rounds = config.rounds
    sampled = config.label.source != "imported"  # collected by this run
    collected = 2 * config.collect.n_pairs * pace.sampling if sampled else 0.0
    if sampled:
        answers = 2 * config.collect.n_pairs
    else:
        pairs = data.imported.pairs
        answers = len({(p.prompt.id, text) for p in pairs for text in (p.chosen, p.rejected)})
    # A probe reads all layers; members learn on two thirds of the answers, watcher and examiner on the rest.
    passes = config.reward.epochs * (0.7 * config.reward.members + 0.3) * pace.reward
    rewards = answers * (2 * pace.features + passes)
    ppo = config.ppo.updates * config.ppo.batch_size * pace.ppo_response(config)
    examined = config.evaluate.n_selection + config.evaluate.n_test
    evaluation = examined * (pace.sampling + pace.features) * (1 + rounds + config.evaluate.best_of_n)
    collected *= (1 + config.select.candidates * (rounds - 1)) / rounds
    return collected + rewards * (rounds + 1) / 2 + ppo * rounds + evaluation


def memory_estimate(models: Models, config: RunConfig) -> int:
    """Bytes at the peak, roughly: the base, a policy and a value function with gradients and two moments, the frozen
    heads, activations that are kept below the cut, and one micro-batch of what the trained layers need. A figure to
    plan by, not a bound."""
    lm = models.base.lm
    total = sum(p.numel() for p in lm.parameters())
    trained = sum(p.numel() for p in models.new_policy().top.trained_parameters())
    heads = (config.reward.members + 2) * trained
    text = lm.config.get_text_config()
    tokens = models.config.max_prompt_tokens + models.config.max_response_tokens
    layers = text.num_hidden_layers - models.base.cut
    batch = config.ppo.micro_batch * tokens * text.hidden_size * 34 * layers
    kept = config.ppo.batch_size * row_bytes(models) if models.base.cut else 0
    return BYTES * (total + 2 * 4 * trained + heads + batch) + kept + (1 << 30)


def row_bytes(models: Models) -> int:
    """Of one response's activations below the cut, kept for policy and reward models."""
    tokens = models.config.max_prompt_tokens + models.config.max_response_tokens
    return 2 * BYTES * tokens * models.base.hidden_size


def settle_batch(run: RunDirectory, models: Models, data: Data) -> RunConfig:
    """The configuration with PPO's batch as large as `ppo.update_seconds` allows and activations fit `model.cache_gib`;
    once found it stays that of the run (batch.json). Measured on the model as it is given, before SFT."""
    config = run.config
    seconds = config.ppo.update_seconds
    if seconds is None:
        return config
    file, asked = run.path / "batch.json", math.lcm(config.ppo.answers, config.ppo.minibatches)
    kept = read_json(file) if file.exists() else {}
    if kept.get("update_seconds") == seconds and kept["batch_size"] % asked == 0:
        return with_batch(config, kept["batch_size"])
    run.freeze()  # a folder with a run in it, should it be stopped now
    models = replace(models, fine_tuned=None)
    data = replace(data, models=models)
    fits = int(config.model.cache_gib * 2**30) // row_bytes(models)
    wanted = seconds / measure(models, data, config).ppo_response(config)
    size = batch_of(min(wanted, fits), config.ppo)
    write_json(file, {"update_seconds": seconds, "batch_size": size})
    data.close()
    del models, data
    gc.collect()  # a base refers to itself: the model that was measured is to be gone before that of the run comes
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return with_batch(config, size)


def batch_of(responses: float, ppo: PPOConfig) -> int:
    """A batch of about so many responses that answers and minibatches divide."""
    step = math.lcm(ppo.answers, ppo.minibatches, TOGETHER)
    most, least = LARGEST // step, math.ceil(SMALLEST / step)
    return step * min(max(int(responses) // step, least), max(most, least))


def with_batch(config: RunConfig, size: int) -> RunConfig:
    return config.model_copy(update={"ppo": config.ppo.model_copy(update={"batch_size": size})})
