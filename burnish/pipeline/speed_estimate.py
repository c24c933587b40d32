"""How fast a machine is with a model: seconds a response of everything that stages do, and PPO's batch that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from burnish.config import RunConfig
from burnish.config.ppo import PPOConfig
from burnish.distributed import collectives
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
TOGETHER = 4  # answers to a prompt that PPO may have to compare, whatever it begins with
SMALLEST, LARGEST = 16, 1024  # responses an update
BYTES = 4  # float32


@dataclass(frozen=True)
class Speed:
    """Seconds a response, once its frozen activations are there: to sample one, to read it with a policy, to learn from
    it with a policy and with a reward model. `features`: to compute those activations, sampling apart."""

    sampling: float
    features: float
    reading: float
    policy: float
    reward: float

    @property
    def scoring(self) -> float:
        """To be read by one reward model: a pass forward, of forward and backward."""
        return self.reward / 3

    def ppo_response(self, config: RunConfig) -> float:
        """Of one response of a PPO update: sampled, scored, read by the reference, learned from by policy and value
        function in every inner epoch."""
        members = config.reward.members * self.scoring
        value = self.reward if config.ppo.advantage in ("auto", "gae") else 0.0
        return self.sampling + members + self.reading + config.ppo.epochs * (self.policy + value)

    def scaled(self, sampled: float, read: float) -> Speed:
        """For responses of so many times the tokens, and sequences of so many times theirs."""
        return Speed(
            self.sampling * sampled,
            *(read * x for x in (self.features, self.reading, self.policy, self.reward)),
        )


def measure(models: Models, prompts: Sequence[Prompt], config: RunConfig) -> Speed:
    """Time a small batch of each, on these prompts."""
    policy = models.new_policy()

    device = models.base.device

    def timed(began: float) -> float:
        if device.type == "cuda":  # its kernels run asynchronously
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
    return Speed(sampling, features, reading, learning, timed(began))


def row_bytes(models: Models) -> int:
    """Of one response's activations below the cut, kept for policy and reward models."""
    tokens = models.config.max_prompt_tokens + models.config.max_response_tokens
    return 2 * BYTES * tokens * models.base.hidden_size


def settle_batch(run: RunDirectory, models: Models, data: Data) -> RunConfig:
    """The configuration with PPO's batch as large as `ppo.update_seconds` allows and activations fit `model.cache_gib`
    (of every process that shares the run); once found it stays that of the run (batch.json). Measured on the model as
    it is given, before SFT."""
    config = run.config
    seconds = config.ppo.update_seconds
    if seconds is None:
        return config
    file, asked = run.path / "batch.json", math.lcm(config.ppo.samples_per_prompt, config.ppo.minibatches)
    kept = read_json(file) if file.exists() else {}
    if kept.get("update_seconds") == seconds and kept["batch_size"] % asked == 0:
        return with_batch(config, kept["batch_size"])
    run.freeze()  # a folder with a run in it, should it be stopped now
    models = replace(models, fine_tuned=None)
    data = replace(data, models=models)
    sharing = collectives.processes()
    fits = sharing * int(config.model.cache_gib * 2**30) // row_bytes(models)
    wanted = sharing * seconds / measure(models, data.splits.train[:PROBE], config).ppo_response(config)
    size = batch_of(min(wanted, fits), config.ppo)
    write_json(file, {"update_seconds": seconds, "batch_size": size})
    data.close()
    del models, data
    give_back()  # the model that was measured is to be gone before that of the run comes
    return with_batch(config, size)


def batch_of(responses: float, ppo: PPOConfig) -> int:
    """A batch of about so many responses that answers and minibatches divide."""
    step = math.lcm(ppo.samples_per_prompt, ppo.minibatches, TOGETHER)
    most, least = LARGEST // step, math.ceil(SMALLEST / step)
    return step * min(max(int(responses) // step, least), max(most, least))


def with_batch(config: RunConfig, size: int) -> RunConfig:
    return config.model_copy(update={"ppo": config.ppo.model_copy(update={"batch_size": size})})
