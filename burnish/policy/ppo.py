"""PPO with a KL penalty: collection of rollouts and optimization (Schulman et al. 2017; Ziegler et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from burnish.config.ppo import PPOConfig
from burnish.distributed import collectives
from burnish.errors import Diverged
from burnish.models.batches import CPU, Batch
from burnish.models.generate import sample_rollout
from burnish.models.heads import ScalarHead
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.optim import load_optimizer, save_optimizer, set_rates, take_step
from burnish.models.sequences import Sequences
from burnish.objectives import (
    approx_kl,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    group_advantages,
    kl_k1,
    kl_k3,
    masked_mean,
    sequence_sum,
    shape_rewards,
    whiten,
)
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.shaping import Shaping
from burnish.randomness import generator
from burnish.records import Decision, Prompt, Rollout, Scores, StepStats

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
            value_sequences = collectives.locally(
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

        old_logprobs, ref_logprobs, *values = collectives.gather(len(rollout), before)
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

        (gaps,) = collectives.gather(min(GAP_ROWS, len(rollout)), read)
        return float(gaps.max())


def finite(figures: dict[str, float]) -> dict[str, float]:
    """The figures as they are. Raises Diverged, which the guard acts upon, when one is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise Diverged(f"PPO's {name} is {value}: a model has diverged; lower the learning rates")
    return figures


RATE_BAND = 3.0  # how far a step may be from the one that is wanted

RATE_RANGE = 1000.0

STEP_ROWS = 16  # responses on which the step of an update is measured

PATIENCE = 3  # updates of a value function that explains nothing

GROUPS = (4, 5, 3, 2)  # answers to compare without one, the first that divides the batch


@dataclass(kw_only=True)
class PPO(Collector):
    """A PPO run. `updates()` yields one StepStats an update; the caller logs, judges and checkpoints between.

    `step` counts updates kept (a roll-back takes it back), `tick` all updates ever made.
    """

    learning_rate: float
    value_learning_rate: float
    tick: int = 0
    skipped_in_a_row: int = 0
    experience: Experience | None = None
    first_batch: Experience | None = None  # of the first update, where it was needed before
    first_seconds: float = 0.0  # that its collection took
    unexplained: int = 0  # updates in a row whose returns the value function did not explain
    notes: list[Decision] = field(default_factory=list)  # decisions of its own, for whoever keeps the record

    def __post_init__(self) -> None:
        super().__post_init__()
        self.policy_parameters = self.policy.top.trained_parameters()
        self.value_parameters = self.value.trained() if self.value is not None else []
        self.first_rate = self.learning_rate
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.policy_parameters},
                *([{"params": self.value_parameters}] if self.value is not None else []),
            ],
            lr=self.learning_rate,
            eps=self.config.adam_eps,
            weight_decay=0.0,
        )

    @property
    def wanted_kl(self) -> float:
        """Nats a response that an update should move by: the target in a third of the policy's updates."""
        return 3 * self.controller.target / (self.config.updates - self.config.value_warmup)

    @property
    def moved(self) -> int:
        """Updates of the policy so far: those that warm up the value function are none."""
        return max(0, self.step - self.config.value_warmup)

    @property
    def value_only(self) -> bool:
        """Whether this update is one of those in which only the value function learns."""
        return self.step < self.config.value_warmup and self.critic is not None

    @property
    def warm(self) -> float:
        """Share of the policy's learning rate at this step."""
        return self.share_after(self.moved)

    def share_after(self, updates: int) -> float:
        """Share of a learning rate after so many updates with it."""
        return min(1.0, (updates + 1) / max(1, self.config.warmup_updates))

    def begin_at(self, learning_rate: float) -> None:
        """The policy's rate, before the first update."""
        self.learning_rate = self.first_rate = learning_rate

    def updates(self) -> Iterator[StepStats]:
        """Run until `config.updates` are kept. State is complete between two yields."""
        while self.step < self.config.updates:
            began = perf_counter()
            earlier = self.first_seconds if self.first_batch is not None else 0.0
            # 1 roll out  2 score  3 shape rewards  4 advantages
            experience = self.experience = self.first_batch or self.collect(self.step + 1)
            self.first_batch = None
            collecting = earlier or perf_counter() - began
            # 5 update policy and value
            values = self.improve(experience)
            # 6 adapt KL
            values |= self.adapt(experience)
            values |= self.adapt_rate(experience)
            if self.shaping is not None:
                self.shaping.see(experience.scores)
            values = finite(self.describe(experience) | values)
            # Whatever the processes' machines round differently: process 0 has it right.
            values, state = collectives.leaders((values, self.state_dict()))
            if collectives.rank():
                self.load_state_dict(state)
            self.judge_critic(values.get("explained_variance"))
            self.step += 1
            self.tick += 1
            seconds = perf_counter() - began + earlier
            sampling = self.timing.pop("sampling_seconds")
            self.timing |= {
                "seconds": seconds,
                "tokens_per_second": sum(experience.rollout.lengths) / seconds,
                "scoring_share": (collecting - sampling) / seconds,
                "sampling_share": sampling / seconds,
            }
            yield StepStats(self.step, self.attempt, values)

    def collect_first(self) -> Experience:
        """The batch of the next update, collected before it."""
        began = perf_counter()
        self.first_batch = self.collect(self.step + 1)
        self.first_seconds = perf_counter() - began
        return self.first_batch

    def improve(self, experience: Experience) -> dict[str, float]:
        """The inner epochs: clipped policy and value losses, gradient norms clipped, non-finite steps skipped."""
        size = self.config.batch_size
        rates = [self.learning_rate * self.warm, self.value_learning_rate * self.share_after(self.step)]
        set_rates(self.optimizer, *rates[: len(self.optimizer.param_groups)])
        totals: dict[str, list[float]] = {}
        skipped, tokens = 0, float(experience.rollout.response_mask.sum(1).float().mean())
        for epoch in range(self.config.epochs):
            rng = generator(self.seed, "minibatch", self.attempt, self.step, epoch)
            order = torch.randperm(size, generator=rng, device=CPU)
            for rows in order.split(size // self.config.minibatches):
                values = self.minibatch(experience, rows.tolist())
                if values is None:
                    skipped += 1
                    continue
                for name, value in values.items():
                    totals.setdefault(name, []).append(value)
            apart = totals.get("approx_kl", [0.0])[-1] * tokens
            if self.config.stop_kl is not None and apart > self.config.stop_kl:
                break
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        means = {name: sum(v) / len(v) for name, v in totals.items()}
        return means | {"skipped": float(skipped), "learning_rate": rates[0]}

    def minibatch(self, experience: Experience, rows: list[int]) -> dict[str, float] | None:
        """One optimiser step over `rows`, accumulated over micro-batches; None when it was not finite."""
        sums = self.accumulate(experience, rows, value_only=self.value_only)
        groups = {} if self.value_only else {"grad_norm": self.policy_parameters}
        if self.critic is not None:
            groups["value_grad_norm"] = self.value_parameters
        norms = take_step(self.optimizer, [*groups.values()], self.config.max_grad_norm, list(sums.values()))
        return None if norms is None else sums | dict(zip(groups, norms, strict=True))

    def accumulate(
        self, experience: Experience, rows: list[int], *, value_only: bool = False
    ) -> dict[str, float]:
        """The gradient of both losses (or of the value function's alone) over `rows`, each by the process that has it;
        the losses and their figures."""
        tokens, own = int(experience.rollout.response_mask[rows].sum()), collectives.mine(rows)
        learned = [] if value_only else list(self.policy_parameters)
        learned += self.value_parameters if self.critic is not None else []
        return collectives.add(
            learned,
            lambda: self.policy.top.base.memory.fit(
                "training ppo",
                self.config.micro_batch,
                lambda size: self.gradient(experience, own, size, tokens, value_only=value_only),
            ),
        )

    def gradient(
        self, experience: Experience, rows: list[int], micro_batch: int, tokens: int, *, value_only: bool
    ) -> dict[str, float]:
        """That of `rows`, as their share of a minibatch with `tokens` response tokens, from forward passes of at most
        `micro_batch` of them."""
        sums: dict[str, float] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for part, batch in experience.sequences.batches(micro_batch, rows):
            losses: list[torch.Tensor] = []
            values: dict[str, float] = {}
            if not value_only:
                loss, values = self.policy_loss(experience, part, batch, tokens)
                losses.append(loss)
            if self.critic is not None:
                loss, figures = self.value_loss(experience, part, batch, tokens)
                losses.append(loss)
                values |= figures
            sum(losses[1:], losses[0]).backward()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def policy_loss(
        self, experience: Experience, rows: list[int], batch: Batch, tokens: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The policy's loss of a micro-batch, as its share of a minibatch with `tokens` response tokens."""
        mask = batch.response_mask
        width = mask.shape[1]
        old_logprobs = experience.old_logprobs[rows, :width]
        logprobs = token_logprobs(self.policy, batch)
        loss, clipped = clipped_policy_loss(
            logprobs,
            old_logprobs,
            experience.advantages[rows, :width],
            mask,
            cliprange=self.config.cliprange,
            normalizer=tokens,
        )
        share = float(mask.sum()) / tokens
        return loss, {
            "policy_loss": loss.item(),
            "clip_fraction": float(clipped) * share,
            "approx_kl": float(approx_kl(logprobs.detach(), old_logprobs, mask)) * share,
        }

    def value_loss(
        self, experience: Experience, rows: list[int], batch: Batch, tokens: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The value function's, times its coefficient; the figure is without."""
        assert self.critic is not None
        assert experience.value_sequences is not None
        assert experience.old_values is not None
        assert experience.returns is not None
        width = batch.response_mask.shape[1]
        loss = clipped_value_loss(
            self.critic.values(experience.value_sequences.batch(rows)),
            experience.old_values[rows, :width],
            experience.returns[rows, :width],
            batch.response_mask,
            cliprange_value=self.config.cliprange_value,
            normalizer=tokens,
        )
        return self.config.vf_coef * loss, {"value_loss": loss.item()}

    def adapt(self, experience: Experience) -> dict[str, float]:
        """Move the KL coefficient by the KL of this batch (nats per response, summed over tokens)."""
        used = {"kl_coef": self.controller.coef, "kl_target": self.controller.target}
        if self.config.kl.adaptive:
            self.controller.update(float(experience.kl.mean()), len(experience.rollout))
        smoothed = self.controller.smoothed
        return used | ({"kl_smoothed": smoothed} if smoothed is not None else {})

    def adapt_rate(self, experience: Experience) -> dict[str, float]:
        """Move the policy's learning rate by the KL between this policy and the one that was sampled, in nats a
        response: down where a step is several times the one that is wanted, up where it is a fraction of that and the
        target is far. Within a factor of `RATE_RANGE` of where it began."""
        if self.value_only or not (self.config.adaptive_rate and self.learning_rate):
            return {}
        step, wanted = self.step_kl(experience), self.wanted_kl
        far = max(self.controller.smoothed or 0.0, float(experience.kl.mean())) < self.controller.target / 2
        factor = 1.0
        if step > RATE_BAND * wanted:
            factor = 0.5
        elif step < wanted / RATE_BAND and far and self.moved >= self.config.warmup_updates:
            factor = 2.0 if step < wanted / RATE_BAND**3 else 1.4
        low, high = self.first_rate / RATE_RANGE, self.first_rate * RATE_RANGE
        self.learning_rate = min(max(self.learning_rate * factor, low), high)
        return {"step_kl": step}

    def judge_critic(self, explained: float | None) -> None:
        """Where it is left to PPO, take advantages against the other answers to a prompt (leave one out) from the next
        update on, once the value function has explained none of the returns' variance for `PATIENCE` updates: what it
        subtracts is noise."""
        if explained is None or self.config.advantage != "auto" or self.value_only:
            return
        self.unexplained = self.unexplained + 1 if explained <= 0 else 0
        together = next((k for k in GROUPS if self.config.batch_size % k == 0), None)
        if self.unexplained < PATIENCE or together is None:
            return
        self.advantage, self.answers = "rloo", max(self.answers, together)
        reason = (
            f"the value function explained nothing for {PATIENCE} updates (explained variance {explained:.2f}): from "
            f"here on {self.answers} answers to each prompt are compared with one another"
        )
        evidence = {"explained_variance": explained, "answers": self.answers}
        self.notes.append(Decision("critic_dropped", reason, evidence))

    @torch.no_grad()
    def step_kl(self, experience: Experience) -> float:
        """KL(sampled policy || policy now) over a few responses, in nats a response: k3 of sampled tokens."""

        def read(own: list[int]) -> tuple[torch.Tensor]:
            batch = experience.sequences.batch(own)
            now = token_logprobs(self.policy, batch)
            old = experience.old_logprobs[own, : now.shape[1]]
            return (sequence_sum(kl_k3(old, now), batch.response_mask),)

        (apart,) = collectives.gather(min(STEP_ROWS, len(experience.rollout)), read)
        return collectives.leaders(float(apart.mean()))

    def slow_down(self, factor: float) -> None:
        """Smaller steps from here on."""
        self.learning_rate *= factor
        self.value_learning_rate *= factor

    def restart(self, learning_rate_factor: float, attempt: int) -> None:
        """After a roll-back: draw new randomness, take smaller steps."""
        self.attempt = attempt
        self.slow_down(learning_rate_factor)
        self.skipped_in_a_row = self.unexplained = 0

    def save(self, folder: Path) -> None:
        """Trained weights and optimiser state as safetensors; counters and controller are in `state_dict`."""
        save_file(self.policy.top.trained_state(), folder / "policy.safetensors")
        if self.value is not None:
            save_file(self.value.state(), folder / "value.safetensors")
        save_optimizer(self.optimizer, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        self.policy.top.load_trained_state(load_file(folder / "policy.safetensors"))
        if self.value is not None:
            self.value.load(load_file(folder / "value.safetensors"))
        load_optimizer(self.optimizer, folder / "optimizer.safetensors")

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tick": self.tick,
            "attempt": self.attempt,
            "learning_rate": self.learning_rate,
            "first_rate": self.first_rate,
            "value_learning_rate": self.value_learning_rate,
            "skipped_in_a_row": self.skipped_in_a_row,
            "advantage": self.advantage,
            "answers": self.answers,
            "unexplained": self.unexplained,
            "controller": self.controller.state_dict(),
            "shaping": None if self.shaping is None else self.shaping.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        if self.shaping is not None and state.get("shaping"):  # not in older checkpoints
            self.shaping.load_state_dict(state["shaping"])
        for name in ("step", "tick", "attempt", "skipped_in_a_row", "learning_rate", "value_learning_rate"):
            setattr(self, name, state[name])
        for name in ("first_rate", "advantage", "answers", "unexplained"):  # not in older checkpoints
            setattr(self, name, state.get(name, getattr(self, name)))
