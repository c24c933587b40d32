"""Speed of a machine with a model, in seconds per response, and the PPO batch that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from burnish.config import RunConfig
from burnish.config.align import of_method
from burnish.config.ppo import PPOConfig
from burnish.distributed import collectives
from burnish.models.device import synchronize
from burnish.models.generate import sample_rollout
from burnish.models.heads import new_reward_head
from burnish.models.logprobs import token_logprobs
from burnish.models.memory import give_back
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Data, Models
from burnish.records import Prompt
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json, write_json

PROBE = 32  # responses that are timed
TOGETHER = 4  # so that PPO can switch to RLOO, which compares answers to a prompt
SMALLEST, LARGEST = 16, 1024  # responses an update
BYTES = 4  # float32


@dataclass(frozen=True)
class Speed:
    """Seconds per response of each operation, once its frozen activations are computed.

    `sampling`: sample it. `features`: compute those activations, sampling apart. `reading`: read it
    with a policy. `policy` and `reward`: learn from it with a policy and with a reward model.
    """

    sampling: float
    features: float
    reading: float
    policy: float
    reward: float

    @property
    def scoring(self) -> float:
        """Seconds to score a response by one reward model: a third of a forward and a backward pass."""
        return self.reward / 3

    def ppo_response(self, config: RunConfig) -> float:
        """Return the seconds per response of an update of `align.method`; for auto, as of ppo."""
        return self.response_of(config, config.align.method)

    def response_of(self, config: RunConfig, method: str) -> float:
        """Return the seconds per response of an update of a method.

        Each is sampled, scored, and read by the reference. Policy and value train in every epoch, on the
        responses that the method learns from.
        """
        ppo = of_method(config.ppo, method)
        members = config.reward.members * self.scoring
        value = self.reward if ppo.advantage in ("auto", "gae") else 0.0
        once = self.sampling + members + self.reading
        if method in ("distill", "online_dpo"):
            learned = (1 if method == "distill" else 2) / ppo.samples_per_prompt
            return once + ppo.epochs * learned * self.policy
        prefixes = members if ppo.credit == "prefix" and not value else 0.0
        reference = self.reading if ppo.kl.where == "loss" else 0.0
        return once + prefixes + ppo.epochs * (self.policy + value + reference)

    def scaled(self, sampled: float, read: float) -> Speed:
        """Return the speed for responses `sampled` times as long and sequences `read` times as long."""
        return Speed(
            self.sampling * sampled,
            *(read * x for x in (self.features, self.reading, self.policy, self.reward)),
        )


def measure(models: Models, prompts: Sequence[Prompt], config: RunConfig) -> Speed:
    """Time a small batch of each operation on these prompts; an accelerator is warmed up by a first one."""
    if models.base.device.type != "cpu":
        _measure(models, prompts, config)
    return _measure(models, prompts, config)


def _measure(models: Models, prompts: Sequence[Prompt], config: RunConfig) -> Speed:
    policy, device = models.new_policy(), models.base.device

    def timed(began: float) -> float:
        synchronize(device)
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
    return Speed(sampling, features, reading, learning, timed(began))


def row_bytes(models: Models) -> int:
    """Return the bytes of one response's frozen activations, kept for policy and reward models."""
    tokens = models.config.max_prompt_tokens + models.config.max_response_tokens
    return 2 * BYTES * tokens * models.base.hidden_size


def settle_batch(run: RunDirectory, models: Models, data: Data) -> RunConfig:
    """Return the configuration with PPO's batch size chosen by `ppo.update_seconds`.

    The batch is the largest that this time allows and whose activations fit `model.cache_gib` of
    every process of the run. It is measured on the model before SFT and kept in batch.json.
    """
    config = run.config
    seconds = config.ppo.update_seconds
    if seconds is None:
        return config
    file, asked = (
        run.path / "batch.json",
        math.lcm(config.training.samples_per_prompt, config.ppo.minibatches),
    )
    kept = read_json(file) if file.exists() else {}
    if kept.get("update_seconds") == seconds and kept["batch_size"] % asked == 0:
        return with_batch(config, kept["batch_size"])
    run.freeze()  # makes the folder a run, in case it is stopped now
    models = replace(models, fine_tuned=None)
    data = replace(data, models=models)
    sharing = collectives.processes()
    fits = sharing * int(config.model.cache_gib * 2**30) // row_bytes(models)
    wanted = sharing * seconds / measure(models, data.splits.train[:PROBE], config).ppo_response(config)
    size = batch_of(min(wanted, fits), config.training)
    write_json(file, {"update_seconds": seconds, "batch_size": size})
    data.close()
    del models, data
    give_back()  # frees the measured model before the run loads its own
    return with_batch(config, size)


def batch_of(responses: float, ppo: PPOConfig) -> int:
    """Return a batch size of about `responses` that answers and minibatches divide."""
    step = math.lcm(ppo.samples_per_prompt, ppo.minibatches, TOGETHER)
    most, least = LARGEST // step, math.ceil(SMALLEST / step)
    return step * min(max(int(responses) // step, least), max(most, least))


def with_batch(config: RunConfig, size: int) -> RunConfig:
    """Return the configuration with another PPO batch size."""
    return config.model_copy(update={"ppo": config.ppo.model_copy(update={"batch_size": size})})
