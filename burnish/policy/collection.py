"""What an update of PPO learns from: a batch of rollouts, scored, read by the reference, with its advantages.

Of several processes each samples, scores and reads its own rows; what comes of it, numbers a token, all have of all
rows: advantages, statistics and what is decided by them are those of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import torch

from burnish import spmd
from burnish.config.ppo import PPOConfig
from burnish.errors import Diverged
from burnish.models.batches import CPU
from burnish.models.heads import ScalarHead
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.objectives.advantages import gae, group_advantages, shape_rewards, whiten
from burnish.objectives.kl import kl_k1, kl_k3, sequence_sum
from burnish.objectives.losses import explained_variance, masked_mean
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.shaping import Shaping
from burnish.randomness import generator
from burnish.records import Prompt, Rollout, Scores

GAP_ROWS = 4  # responses of each batch whose log-probabilities are computed again

ScoreFn = Callable[[Rollout], Scores]


@dataclass
class Experience:
    """One batch of rollouts with everything that stays fixed during its inner epochs; all (B, T)."""

    rollout: Rollout
    judged: Rollout  # the same responses, as the reward reads them
    sequences: Sequences
    value_sequences: Sequences | None  # the same, the frozen layers of the value function run
    scores: Scores
    old_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    old_values: torch.Tensor | None  # None without a value function
    returns: torch.Tensor | None
    paid: torch.Tensor  # (B,) the scores as they were shaped
    kl: torch.Tensor  # (B,) k1, nats per response
    sampling_gap: float


@dataclass(kw_only=True)
class Collector:
    """What batches are collected with. `step` counts updates kept, `attempt` the restarts after roll-backs; randomness
    derives from (seed, attempt, step)."""

    policy: Policy
    reference: Policy
    value: ScalarHead | None  # None where advantages need none
    codec: Codec
    score: ScoreFn
    prompts: Sequence[Prompt]
    config: PPOConfig
    controller: AdaptiveKLController
    max_tokens: int
    seed: int
    plain: Callable[[Rollout], Rollout] | None = (
        None  # what of a rollout is judged, where prompts are instructed
    )
    shaping: Shaping | None = None  # None: scores are paid as they are
    step: int = 0
    attempt: int = 0
    timing: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.advantage = "gae" if self.config.advantage == "auto" else self.config.advantage
        self.answers = self.config.answers

    @property
    def critic(self) -> ScalarHead | None:
        """The value function, as long as advantages are taken against it."""
        return self.value if self.advantage == "gae" else None

    def collect(self, step: int) -> Experience:
        """Sample responses to this step's prompts and compute all that their training needs."""
        began = perf_counter()
        prompts = self.batch_of_prompts(step)
        rollout = sample_rollout(
            self.policy,
            self.codec,
            prompts,
            max_tokens=self.max_tokens,
            batch_size=self.config.batch_size,
            seed=self.seed,
            where=("rollout", self.attempt, step),
        )
        self.timing["sampling_seconds"] = perf_counter() - began
        sequences = Sequences.of(self.policy.top.base, rollout, self.codec.pad_id)
        memory = self.policy.top.base.memory
        value_sequences = None
        if self.critic is not None:
            top = self.critic.top
            whole = Sequences.of(top.base, rollout, self.codec.pad_id)
            value_sequences = spmd.locally(
                lambda: memory.fit(
                    "activations of the value function", self.config.micro_batch, partial(whole.lifted, top)
                )
            )
        judged = rollout if self.plain is None else self.plain(rollout)
        scores = self.score(judged)

        def before(own: list[int]) -> tuple[torch.Tensor, ...]:
            return memory.fit(
                "log-probabilities and values",
                self.config.micro_batch,
                lambda size: self.before_training(rollout, sequences, value_sequences, own, size),
            )

        old_logprobs, ref_logprobs, *values = spmd.gather(len(rollout), before)
        old_values = values[0] if values else None
        read = {"reference log-probability": ref_logprobs} | (
            {} if old_values is None else {"value": old_values}
        )
        finite({name: float(x.abs().max()) for name, x in read.items()})
        mask = rollout.response_mask
        unended = torch.tensor([not e for e in rollout.ended], device=scores.scores.device)
        unit = 1.0 if self.shaping is None else self.shaping.unit
        paid = scores.scores if self.shaping is None else self.shaping(scores)
        rewards = shape_rewards(
            paid - unit * self.config.missing_eos_penalty * unended,
            old_logprobs,
            ref_logprobs,
            mask,
            kl_coef=self.controller.coef,
        )  # (B, T)
        returns = None
        if old_values is not None:
            advantages, returns = gae(rewards, old_values, mask, gamma=self.config.gamma, lam=self.config.lam)
        else:
            scaled = self.advantage == "grpo"
            advantages = group_advantages(rewards, mask, answers=self.answers, scaled=scaled)
        if self.config.whiten_advantages:
            advantages = whiten(advantages, mask)
        return Experience(
            rollout=rollout,
            judged=judged,
            sequences=sequences,
            value_sequences=value_sequences,
            scores=scores,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            entropy=rollout.sample_entropy,
            advantages=advantages,
            old_values=old_values,
            returns=returns,
            paid=paid,
            kl=sequence_sum(kl_k1(old_logprobs, ref_logprobs), mask),
            sampling_gap=self.sampling_gap(rollout, sequences),
        )

    @torch.no_grad()
    def before_training(
        self,
        rollout: Rollout,
        sequences: Sequences,
        value_sequences: Sequences | None,
        own: list[int],
        micro_batch: int,
    ) -> tuple[torch.Tensor, ...]:
        """(n, T) of the n rows in `own`: log-probabilities of the policy and of the reference, values where there is a
        value function, all before the first inner epoch."""
        base = self.policy.top.base
        # Rounded products differ between decoding and training: ratios must start at 1 all the same.
        rounded = base.dtype != torch.float32 and not base.fast
        old_logprobs = rollout.sample_logprobs.clone() if rounded else rollout.sample_logprobs
        ref_logprobs = torch.zeros_like(old_logprobs)
        values = None if value_sequences is None else torch.zeros_like(old_logprobs)
        for rows, batch in sequences.batches(micro_batch, own):
            width = batch.response_mask.shape[1]
            if rounded:
                old_logprobs[rows, :width] = token_logprobs(self.policy, batch)
            ref_logprobs[rows, :width] = token_logprobs(self.reference, batch)
            if values is not None and self.critic is not None and value_sequences is not None:
                values[rows, :width] = self.critic.values(value_sequences.batch(rows))
        return tuple(x[own] for x in (old_logprobs, ref_logprobs, values) if x is not None)

    def batch_of_prompts(self, step: int) -> list[Prompt]:
        """The prompts of a step, each as often as it is answered: epochs of shuffled prompts, the order of an attempt
        its own."""
        n, size = len(self.prompts), self.config.batch_size // self.answers
        first = (step - 1) * size
        picked = []
        orders: dict[int, list[int]] = {}
        for position in range(first, first + size):
            epoch = position // n
            if epoch not in orders:
                rng = generator(self.seed, "prompts", self.attempt, epoch)
                orders[epoch] = torch.randperm(n, generator=rng, device=CPU).tolist()
            picked += [self.prompts[orders[epoch][position % n]]] * self.answers
        return picked

    def describe(self, experience: Experience) -> dict[str, float]:
        """The figures of a batch of rollouts, before it was trained on."""
        rollout, scores = experience.rollout, experience.scores
        mask = rollout.response_mask
        k3 = sequence_sum(kl_k3(experience.old_logprobs, experience.ref_logprobs), mask)
        explained = None
        if experience.old_values is not None and experience.returns is not None:
            explained = explained_variance(experience.old_values, experience.returns, mask)
        values = {
            "kl": float(experience.kl.mean()),
            "kl_k3": float(k3.mean()),
            "score": float(scores.scores.mean()),
            "score_sd": float(scores.scores.std(unbiased=False)),
            "spread": float(scores.spread.mean()),
            "length": float(mask.sum(1).float().mean()),
            "truncated": 1.0 - sum(rollout.ended) / len(rollout),
            "entropy": float(masked_mean(experience.entropy, mask)),
            "ref_nll": -float(masked_mean(experience.ref_logprobs, mask)),
            "sampling_gap": experience.sampling_gap,
        }
        if explained is not None:
            values["explained_variance"] = float(explained)
        if self.shaping is not None:
            values["reward"] = float(experience.paid.mean())
        values |= {f"reward_{name}": float(term.mean()) for name, term in scores.terms.items()}
        return values | {f"member_{k}": float(m) for k, m in enumerate(scores.members.mean(0))}

    @torch.no_grad()
    def sampling_gap(self, rollout: Rollout, sequences: Sequences) -> float:
        """Largest difference between sampled and recomputed log-probability, in nats, over a few responses."""

        def read(own: list[int]) -> tuple[torch.Tensor]:
            again = token_logprobs(self.policy, sequences.batch(own))
            return ((again - rollout.sample_logprobs[own, : again.shape[1]]).abs().amax(1),)

        (gaps,) = spmd.gather(min(GAP_ROWS, len(rollout)), read)
        return float(gaps.max())


def finite(figures: dict[str, float]) -> dict[str, float]:
    """The figures as they are. Raises Diverged, which the guard acts upon, when one is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise Diverged(f"PPO's {name} is {value}: a model has diverged; lower the learning rates")
    return figures
