"""PPO with a KL penalty: rollouts and optimization (Schulman et al. 2017; Ziegler et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from burnish.config.align import GROUPS
from burnish.config.ppo import MOST_BATCHES, PPOConfig
from burnish.distributed import collectives
from burnish.models.batches import CPU, Batch
from burnish.models.generate import sample_rollout
from burnish.models.heads import ScalarHead
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs, token_logprobs_and_kl
from burnish.models.optim import (
    accumulate,
    add_to,
    load_optimizer,
    on_host,
    save_optimizer,
    set_rates,
    take_step,
)
from burnish.models.sequences import Sequences
from burnish.objectives import (
    approx_kl,
    clipped_policy_loss,
    clipped_value_loss,
    kl_k1,
    loss_normalizer,
    masked_mean,
    sequence_sum,
)
from burnish.policy.advantages import advantages_of
from burnish.policy.gradient_signal import Halves, signal_of_one, wanted_batches
from burnish.policy.groups import extremes, rows_and_weights, weights_of_best, weights_of_pairs
from burnish.policy.kl_control import BEGUN, AdaptiveKLController
from burnish.policy.rollouts import (
    Experience,
    ScoreFn,
    finite,
    frozen_activations,
    prompts_from,
    read_before_training,
    sampling_gap,
    step_kl,
)
from burnish.policy.shaping import Shaping
from burnish.randomness import generator
from burnish.records import Decision, Prompt, Rollout, StepStats

RATE_BAND = 3.0  # factor by which the KL of an update may differ from `wanted_kl`
RATE_RANGE = 1000.0
PATIENCE = 3  # updates without explained variance before the value function is dropped


@dataclass(kw_only=True)
class PPO:
    """Proximal policy optimization with a KL penalty to `reference`, or another method on its batches.

    `method` says what is learned from a batch. ppo: the clipped losses. distill: the best response to
    each prompt, by reward less KL (best-of-n distillation in rounds: RAFT, Dong et al. 2023). online_dpo:
    DPO on the best against the worst (Guo et al. 2024), with the KL coefficient as beta.

    `updates()` yields the statistics of each update; the caller logs, checks and saves between
    updates. `step` counts the updates that are kept (a roll-back lowers it), `tick` all updates.
    Random numbers depend on (seed, attempt, step), where `attempt` counts restarts after
    roll-backs.

    Source: Schulman et al. 2017 (clipped losses, GAE); Ziegler et al. 2019 (KL penalty, adaptive
    coefficient).
    """

    policy: Policy
    reference: Policy
    value: ScalarHead | None  # None if advantages need no value function
    codec: Codec
    score: ScoreFn
    prompts: Sequence[Prompt]
    config: PPOConfig
    controller: AdaptiveKLController
    max_tokens: int
    seed: int
    plain: Callable[[Rollout], Rollout] | None = (
        None  # removes an instruction before the reward reads a rollout
    )
    prefixes: Callable[[Rollout], torch.Tensor] | None = None  # scores (B, T) of prefixes, for ppo.credit
    method: str = "ppo"  # or distill, online_dpo: what is learned from a batch
    average_updates: int = 0  # of the moving average of the policy's weights; 0: none
    shaping: Shaping | None = None  # None: scores are used as they are
    learning_rate: float
    value_learning_rate: float
    step: int = 0
    tick: int = 0
    spent: int = 0  # responses of the kept updates
    drawn: int = 0  # prompts of the kept updates
    attempt: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    skipped_in_a_row: int = 0
    experience: Experience | None = None
    first_batch: Experience | None = None  # collected before the first update
    first_seconds: float = 0.0  # time of that collection
    signal: float | None = None  # moving average of the gradient signal of a single batch
    unexplained: int = 0  # updates in a row with an explained variance of 0 or less
    notes: list[Decision] = field(default_factory=list)  # decisions of this class, for the journal

    def __post_init__(self) -> None:
        self.advantage = "gae" if self.config.advantage == "auto" else self.config.advantage
        self.samples_per_prompt = self.config.samples_per_prompt
        self.answers = self.config.batch_size  # responses of the next update
        self.policy_parameters = self.policy.top.trained_parameters()
        self.value_parameters = self.value.trained() if self.value is not None else []
        self.average = [p.detach().clone() for p in self.policy_parameters] if self.average_updates else []
        self.first_rate = self.learning_rate
        self.optimizer = torch.optim.AdamW(
            [{"params": p} for p in (self.policy_parameters, self.value_parameters) if p],
            lr=self.learning_rate,
            eps=self.config.adam_eps,
            weight_decay=0.0,
        )

    @property
    def critic(self) -> ScalarHead | None:
        """The value function, or None if advantages do not use it."""
        return self.value if self.advantage == "gae" else None

    @property
    def skips_groups(self) -> bool:
        """True if responses to a prompt whose scores are all equal are left out; a value function needs them."""
        return self.config.skip_equal_groups and self.critic is None

    @property
    def wanted_kl(self) -> float:
        """KL of one update, in nats a response, that reaches the target when `ppo.kl.reached_at` says.

        It assumes that the KL of updates adds up, as it does where gradients are mostly noise. With a
        schedule it falls as the square of the learning rate.
        """
        updates = (self.config.updates - self.config.value_warmup) * self.config.batch_size / self.answers
        reached = self.config.kl.reached_at
        if (
            self.config.schedule == "linear"
        ):  # the squares of the factors up to there, relative to all updates
            reached = (1 - (1 - reached) ** 3) / 3
        return self.controller.target / (updates * reached) * self.decay**2

    @property
    def done(self) -> bool:
        """True if the responses of all updates have been used."""
        return self.spent >= self.config.updates * self.config.batch_size

    @property
    def moved(self) -> int:
        """Number of policy updates so far, without those that warm up the value function."""
        return max(0, self.step - self.config.value_warmup)

    @property
    def value_only(self) -> bool:
        """True if this update trains the value function alone."""
        return self.step < self.config.value_warmup and self.critic is not None

    @property
    def warm(self) -> float:
        """Warm-up factor of the policy's learning rate at this step."""
        return self.share_after(self.moved)

    @property
    def decay(self) -> float:
        """Factor of the policy's learning rate by the schedule: 1, or the share of responses that is left."""
        if self.config.schedule == "constant":
            return 1.0
        return 1.0 - self.spent / (self.config.updates * self.config.batch_size)

    def share_after(self, updates: int) -> float:
        """Return the warm-up factor of a learning rate after `updates` updates with it."""
        return min(1.0, (updates + 1) / max(1, self.config.warmup_updates))

    def begin_at(self, learning_rate: float) -> None:
        """Set the learning rate of the policy, before the first update."""
        self.learning_rate = self.first_rate = learning_rate

    def updates(self) -> Iterator[StepStats]:
        """Run until `config.updates * config.batch_size` responses are used in updates that are kept.

        The state is complete at each yield.
        """
        while not self.done:
            began = perf_counter()
            earlier = self.first_seconds if self.first_batch is not None else 0.0
            # 1 roll out  2 score  3 shape rewards  4 advantages
            experience = self.experience = self.first_batch or self.collect(self.step + 1)
            self.first_batch = None
            collecting = earlier or perf_counter() - began
            # 5 update policy and value
            training = perf_counter()
            values = self.train_epochs(experience)
            epochs, training = values.pop("epochs"), perf_counter() - training
            # 6 adapt KL
            values |= self.adapt(experience)
            values |= self.adapt_rate(experience)
            if self.shaping is not None:
                self.shaping.see(experience.scores)
            values = finite(experience.figures(shaped=self.shaping is not None) | values)
            # Machines may round differently: all processes use the values of process 0.
            values, state = collectives.leaders((values, self.state_dict()))
            if collectives.rank():
                self.load_state_dict(state)
            self.spent += len(experience.rollout)
            self.drawn += len(experience.rollout) // self.samples_per_prompt
            self.add_to_average(len(experience.rollout))
            self.maybe_drop_critic(values.get("explained_variance"))
            self.step += 1
            self.tick += 1
            self.adapt_answers(values.get("gradient_signal"))
            seconds = perf_counter() - began + earlier
            sampling, tokens = self.timing.pop("sampling_seconds"), sum(experience.rollout.lengths)
            self.timing |= {
                "seconds": seconds,
                "sampling_share": sampling / seconds,
                "scoring_share": (collecting - sampling) / seconds,
                "update_tokens_per_second": tokens / seconds,
                "sampling_tokens_per_second": tokens / sampling,
                "training_tokens_per_second": tokens * epochs / training,
            }
            yield StepStats(self.step, self.attempt, values)

    def collect_first(self) -> Experience:
        """Collect the batch of the next update in advance, and keep it for that update."""
        began = perf_counter()
        self.first_batch = self.collect(self.step + 1)
        self.first_seconds = perf_counter() - began
        return self.first_batch

    def collect(self, step: int) -> Experience:
        """Sample responses to the prompts of `step` and compute everything that training needs."""
        began = perf_counter()
        prompts = self.next_prompts()
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
        value_sequences = None
        if self.critic is not None:
            value_sequences = frozen_activations(
                self.critic, rollout, self.codec.pad_id, self.config.micro_batch
            )
        reward_rollout = rollout if self.plain is None else self.plain(rollout)
        scores = self.score(reward_rollout)
        old_logprobs, ref_logprobs, old_values = read_before_training(
            *(self.policy, self.reference, self.critic),
            *(rollout, sequences, value_sequences),
            micro_batch=self.config.micro_batch,
        )
        mask = rollout.response_mask
        unended = torch.tensor([not e for e in rollout.ended], device=scores.scores.device)
        unit = 1.0 if self.shaping is None else self.shaping.unit
        shaped_scores = scores.scores if self.shaping is None else self.shaping(scores)
        prefixes = None
        if self.prefixes is not None and old_values is None and self.method == "ppo":
            prefixes = self.prefixes(reward_rollout)
        shaped = shaped_scores - unit * self.config.missing_eos_penalty * unended
        advantages = advantages_of(
            self.config,
            shaped,
            *(old_logprobs, ref_logprobs, old_values, mask),
            kl_coef=self.controller.coef,
            samples_per_prompt=self.samples_per_prompt,
            scaled=self.advantage == "grpo",
            prefixes=prefixes,
        )
        kl = sequence_sum(kl_k1(old_logprobs, ref_logprobs), mask)
        return Experience(
            rollout=rollout,
            reward_rollout=reward_rollout,
            sequences=sequences,
            value_sequences=value_sequences,
            scores=scores,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            entropy=rollout.sample_entropy,
            advantages=advantages.values,
            kl_weight=advantages.kl_weight,
            old_values=old_values,
            returns=advantages.returns,
            shaped_scores=shaped_scores,
            kl=kl,
            ranked=shaped - self.controller.coef * kl if self.method == "distill" else shaped,
            sampling_gap=sampling_gap(self.policy, rollout, sequences),
        )

    def next_prompts(self) -> list[Prompt]:
        """Return the prompts of the next update, each repeated for its samples."""
        where = (self.seed, self.attempt)
        return prompts_from(self.prompts, self.drawn, self.answers, self.samples_per_prompt, *where)

    def train_epochs(self, experience: Experience) -> dict[str, float]:
        """Run the inner epochs and return the mean figures; skip and count non-finite steps.

        The epochs end early when the KL to the sampled policy exceeds `stop_kl`; `epochs` is their
        number.
        """
        size = len(experience.rollout)
        rates = [
            self.learning_rate * self.warm * self.decay,
            self.value_learning_rate * self.share_after(self.step),
        ]
        set_rates(self.optimizer, *rates[: len(self.optimizer.param_groups)])
        totals: dict[str, list[float]] = {}
        skipped, tokens = 0, sum(experience.rollout.lengths) / size
        for epoch in range(self.config.epochs):
            for rows in self.minibatches(size, epoch):
                first = not epoch and not totals and not skipped
                values = self.minibatch(experience, rows, signal=first)
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
        return means | {"skipped": float(skipped), "learning_rate": rates[0], "epochs": epoch + 1.0}

    def minibatches(self, size: int, epoch: int) -> list[list[int]]:
        """Return the rows of each minibatch of an epoch; methods that order responses need whole groups."""
        rng = generator(self.seed, "minibatch", self.attempt, self.step, epoch)
        whole = self.method != "ppo" or self.skips_groups
        together = self.samples_per_prompt if whole else 1
        order = torch.randperm(size // together, generator=rng, device=CPU)
        parts = order.split(-(-len(order) // self.config.minibatches))
        return [[first * together + k for first in part.tolist() for k in range(together)] for part in parts]

    def learned(
        self, experience: Experience, rows: list[int]
    ) -> tuple[list[int], torch.Tensor | None, dict[str, float]]:
        """Return the rows that a method learns from, their weights in its loss (B,), and its figures.

        For ppo these are all rows, without weights. There may be no rows, if all scores are equal.
        """
        if self.method == "ppo" and not self.skips_groups:
            return rows, None, {}
        pairs = extremes(experience.ranked, rows, self.samples_per_prompt)
        if self.method == "ppo":
            unequal = {best // self.samples_per_prompt for best, _ in pairs}
            return [row for row in rows if row // self.samples_per_prompt in unequal], None, {}
        if not pairs:
            return [], None, {}
        if self.method == "distill":
            return *rows_and_weights(weights_of_best(pairs, experience), experience), {}
        logprobs = self.summed_logprobs(experience, [row for pair in pairs for row in pair])
        weights, figures = weights_of_pairs(pairs, experience, logprobs, beta=self.controller.coef)
        return *rows_and_weights(weights, experience), figures

    def summed_logprobs(self, experience: Experience, rows: list[int]) -> torch.Tensor:
        """Return the policy's log-probability (B,) of each response, up to date for `rows`."""
        sums = sequence_sum(experience.old_logprobs, experience.rollout.response_mask)
        if not experience.trained_on:
            return sums

        def read(batch: Batch) -> torch.Tensor:
            return token_logprobs(self.policy, batch).sum(1)

        now = experience.sequences.read(read, self.config.micro_batch, rows, "log-probabilities")
        return sums.index_copy(0, torch.tensor(rows, device=CPU).to(sums.device), now)

    def minibatch(
        self, experience: Experience, rows: list[int], *, signal: bool = False
    ) -> dict[str, float] | None:
        """Take one optimizer step over `rows`; return None if it was not finite.

        With `signal`, the figures have the `gradient_signal` of the rows, where it can be measured.
        """
        rows, weights, figures = self.learned(experience, rows)
        if not rows:
            return {}
        experience.weights = weights
        halves = Halves.of(experience.rollout, rows, self.policy_parameters)
        if not signal or self.value_only or halves is None:
            sums = self.accumulate(experience, rows, value_only=self.value_only)
        else:
            sums = self.accumulate(experience, halves.ordered, halves=halves)
            sums |= halves.signal()
        groups = {} if self.value_only else {"grad_norm": self.policy_parameters}
        if self.critic is not None:
            groups["value_grad_norm"] = self.value_parameters
        norms = take_step(self.optimizer, [*groups.values()], self.config.max_grad_norm, list(sums.values()))
        experience.trained_on = True
        return None if norms is None else sums | figures | dict(zip(groups, norms, strict=True))

    def accumulate(
        self,
        experience: Experience,
        rows: list[int],
        *,
        value_only: bool = False,
        halves: Halves | None = None,
    ) -> dict[str, float]:
        """Accumulate the gradient of both losses (or of the value loss) over `rows`; return figures.

        `halves` keeps a part of the gradient of its first rows.
        """
        lengths, own = experience.rollout.lengths, collectives.mine(rows)
        tokens = sum(lengths[row] for row in rows)
        learned = [] if value_only else list(self.policy_parameters)
        learned += self.value_parameters if self.critic is not None else []
        learned += [] if halves is None else [halves.kept]

        def gradient(size: int) -> dict[str, float]:
            self.optimizer.zero_grad(set_to_none=True)
            parts = [own] if halves is None else halves.parts(own)
            sums: dict[str, torch.Tensor] = {}
            for number, part in enumerate(parts):
                self.add_gradient(sums, experience, part, size, tokens, len(rows), value_only=value_only)
                if halves is not None and not number:
                    halves.keep()
            return on_host(sums)

        return accumulate(
            self.policy.top.base.memory,
            "training ppo",
            self.config.micro_batch,
            learned,
            gradient,
        )

    def add_gradient(
        self,
        sums: dict[str, torch.Tensor],
        experience: Experience,
        rows: list[int],
        micro_batch: int,
        tokens: int,
        responses: int,
        *,
        value_only: bool,
    ) -> None:
        """Add the gradient of `rows`, as their share of a minibatch of `responses` and `tokens`.

        Figures are added to `sums`.
        """
        for part, batch in experience.sequences.batches(micro_batch, rows):
            losses: list[torch.Tensor] = []
            if not value_only:
                loss, values = self.policy_loss(experience, batch, tokens, responses)
                losses.append(loss)
                add_to(sums, values)
            if self.critic is not None:
                loss, values = self.value_loss(experience, part, batch, tokens)
                losses.append(loss)
                add_to(sums, values)
            sum(losses[1:], losses[0]).backward()

    def policy_loss(
        self, experience: Experience, batch: Batch, tokens: int, responses: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the policy loss as its share of a minibatch of `responses` and `tokens`, and figures."""
        mask = batch.response_mask
        width = mask.shape[1]
        old_logprobs = experience.old_logprobs[batch.rows, :width]
        if experience.weights is not None:
            return self.weighted_loss(experience, batch, tokens)
        normalizer = loss_normalizer(
            self.config.loss_mean, mask, tokens=tokens, responses=responses, longest=self.max_tokens
        )
        kl = None
        if experience.kl_weight:
            logprobs, kl = token_logprobs_and_kl(self.policy, self.reference, batch)
        else:
            logprobs = token_logprobs(self.policy, batch)
        loss, clipped = clipped_policy_loss(
            logprobs,
            old_logprobs,
            experience.advantages[batch.rows, :width],
            mask,
            cliprange=self.config.cliprange,
            cliprange_high=self.config.cliprange_high,
            ratio_of=self.config.ratio,
            normalizer=normalizer,
            tokens=tokens,
        )
        apart = approx_kl(logprobs.detach(), old_logprobs, mask, normalizer=tokens)
        figures = {"policy_loss": loss, "clip_fraction": clipped, "approx_kl": apart}
        if kl is not None:
            figures["kl_loss"] = experience.kl_weight * masked_mean(kl, mask, normalizer)
            loss = loss + figures["kl_loss"]
        return loss, figures

    def weighted_loss(
        self, experience: Experience, batch: Batch, tokens: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the negative weighted sum of the responses' log-probabilities, and figures."""
        assert experience.weights is not None
        mask = batch.response_mask
        logprobs = token_logprobs(self.policy, batch)
        loss = -(experience.weights[batch.rows] * sequence_sum(logprobs, mask)).sum()
        old_logprobs = experience.old_logprobs[batch.rows, : mask.shape[1]]
        apart = approx_kl(logprobs.detach(), old_logprobs, mask, normalizer=tokens)
        return loss, {"policy_loss": loss, "approx_kl": apart}

    def value_loss(
        self, experience: Experience, rows: list[int], batch: Batch, tokens: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the value loss times `vf_coef`, and the loss without the coefficient as a figure."""
        assert self.critic is not None
        assert experience.value_sequences is not None
        assert experience.old_values is not None
        assert experience.returns is not None
        width = batch.response_mask.shape[1]
        loss = clipped_value_loss(
            self.critic.values(experience.value_sequences.onto(batch, rows)),
            experience.old_values[batch.rows, :width],
            experience.returns[batch.rows, :width],
            batch.response_mask,
            cliprange_value=self.config.cliprange_value,
            normalizer=tokens,
        )
        return self.config.vf_coef * loss, {"value_loss": loss}

    def adapt(self, experience: Experience) -> dict[str, float]:
        """Adapt the KL coefficient to the KL of this batch (nats a response, summed over tokens)."""
        used = {"kl_coef": self.controller.coef, "kl_target": self.controller.target}
        if self.config.kl.adaptive:
            self.controller.update(float(experience.kl.mean()), len(experience.rollout))
        smoothed, kl = self.controller.smoothed, float(experience.kl.mean())
        if kl > BEGUN * used["kl_target"]:
            used["score_per_nat"] = float(experience.scores.scores.mean()) / kl
        return used | ({"kl_smoothed": smoothed} if smoothed is not None else {})

    def adapt_rate(self, experience: Experience) -> dict[str, float]:
        """Adapt the policy's learning rate to the KL of this update (nats per response).

        Lower the rate if the KL is several times `wanted_kl`. Raise it if the KL is a fraction of
        `wanted_kl` and the target is far. The rate stays within a factor `RATE_RANGE` of the first
        rate.
        """
        still = self.value_only or not experience.trained_on
        if still or not (self.config.adaptive_rate and self.learning_rate):
            return {}
        moved, wanted = step_kl(self.policy, experience), self.wanted_kl
        far = max(self.controller.smoothed or 0.0, float(experience.kl.mean())) < self.controller.target / 2
        factor = 1.0
        if moved > RATE_BAND * wanted:
            factor = 0.5
        elif moved < wanted / RATE_BAND and far and self.moved >= self.config.warmup_updates:
            factor = 2.0 if moved < wanted / RATE_BAND**3 else 1.4
        low, high = self.first_rate / RATE_RANGE, self.first_rate * RATE_RANGE
        self.learning_rate = min(max(self.learning_rate * factor, low), high)
        return {"step_kl": moved}

    def adapt_answers(self, signal: float | None) -> None:
        """Choose the number of responses of the next update by the gradient signal of this one.

        See `wanted_batches`. This applies to `answers_per_update: auto`.
        """
        if self.config.answers_per_update == "fixed":
            return
        batch, left = self.config.batch_size, self.config.updates * self.config.batch_size - self.spent
        if signal is not None:
            signal = signal_of_one(signal, self.answers / batch)
            self.signal = signal if self.signal is None else (self.signal + signal) / 2
        if self.signal is not None:
            self.answers = max(batch, min(wanted_batches(self.signal, MOST_BATCHES) * batch, left))

    @torch.no_grad()
    def add_to_average(self, responses: int) -> None:
        """Move the average towards the policy by one over `average_updates`, or over all updates so far.

        An update of several batches counts as so many. The exponential moving average of the iterates
        (Polyak and Juditsky 1992 for the plain mean) has less of the noise of single updates.
        """
        if self.value_only or not self.average:
            return
        updates = max(1.0, self.average_updates * self.config.batch_size / responses)
        share = 1 / min(updates, self.moved + 1)
        for average, p in zip(self.average, self.policy_parameters, strict=True):
            average.lerp_(p, share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the policy its averaged weights for a block."""
        with self.with_weights({}):
            with torch.no_grad():
                for p, average in zip(self.policy_parameters, self.average, strict=True):
                    p.copy_(average)
            yield

    @contextmanager
    def with_weights(self, state: dict[str, torch.Tensor]) -> Iterator[None]:
        """Give the policy other trained weights for a block; an empty `state` leaves them to the block."""
        current = self.policy.top.trained_state()
        try:
            if state:
                self.policy.top.load_trained_state(state)
            yield
        finally:
            self.policy.top.load_trained_state(current)

    def maybe_drop_critic(self, explained: float | None) -> None:
        """Replace a value function that explains nothing by RLOO.

        This applies to `advantage: auto`, once the value function has explained none of the
        variance of returns for `PATIENCE` updates. Leave-one-out advantages (RLOO) are used from
        the next update on.
        """
        if explained is None or self.config.advantage != "auto" or self.value_only:
            return
        self.unexplained = self.unexplained + 1 if explained <= 0 else 0
        together = next((k for k in GROUPS["rloo"] if self.config.batch_size % k == 0), None)
        if self.unexplained < PATIENCE or together is None:
            return
        self.advantage, self.samples_per_prompt = "rloo", max(self.samples_per_prompt, together)
        reason = (
            f"the value function explained nothing for {PATIENCE} updates (explained variance {explained:.2f}): from "
            f"here on {self.samples_per_prompt} answers to each prompt are compared with one another"
        )
        evidence = {"explained_variance": explained, "answers": self.samples_per_prompt}
        self.notes.append(Decision("critic_dropped", reason, evidence))

    def slow_down(self, factor: float) -> None:
        """Multiply both learning rates by `factor`."""
        self.learning_rate *= factor
        self.value_learning_rate *= factor

    def restart(self, learning_rate_factor: float, attempt: int) -> None:
        """Start a new attempt after a roll-back, with other random numbers and lower learning rates."""
        self.attempt = attempt
        self.slow_down(learning_rate_factor)
        self.skipped_in_a_row = self.unexplained = 0

    def save(self, folder: Path) -> None:
        """Save trained weights and optimizer state; `state_dict` has the counters and the controller."""
        save_file(self.policy.top.trained_state(), folder / "policy.safetensors")
        if self.value is not None:
            save_file(self.value.state(), folder / "value.safetensors")
        save_optimizer(self.optimizer, folder / "optimizer.safetensors")
        if self.average:
            save_file({str(i): t for i, t in enumerate(self.average)}, folder / "average.safetensors")

    def load(self, folder: Path) -> None:
        """Load the weights and optimizer state written by `save`."""
        self.policy.top.load_trained_state(load_file(folder / "policy.safetensors"))
        if self.value is not None:
            self.value.load(load_file(folder / "value.safetensors"))
        load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        file = folder / "average.safetensors"
        saved = load_file(file) if file.exists() else {}  # not in older checkpoints
        with torch.no_grad():
            for i, (average, p) in enumerate(zip(self.average, self.policy_parameters, strict=False)):
                average.copy_(saved.get(str(i), p))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, learning rates, controller and shaping, ready for JSON."""
        return {
            "step": self.step,
            "tick": self.tick,
            "attempt": self.attempt,
            "spent": self.spent,
            "drawn": self.drawn,
            "responses": self.answers,
            "signal": self.signal,
            "learning_rate": self.learning_rate,
            "first_rate": self.first_rate,
            "value_learning_rate": self.value_learning_rate,
            "skipped_in_a_row": self.skipped_in_a_row,
            "advantage": self.advantage,
            "samples_per_prompt": self.samples_per_prompt,
            "unexplained": self.unexplained,
            "controller": self.controller.state_dict(),
            "shaping": None if self.shaping is None else self.shaping.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; fields that older checkpoints lack keep their values."""
        self.controller.load_state_dict(state["controller"])
        if self.shaping is not None and state.get("shaping"):  # not in older checkpoints
            self.shaping.load_state_dict(state["shaping"])
        for name in ("step", "tick", "attempt", "skipped_in_a_row", "learning_rate", "value_learning_rate"):
            setattr(self, name, state[name])
        for name in ("first_rate", "advantage", "unexplained"):  # not in older checkpoints
            setattr(self, name, state.get(name, getattr(self, name)))
        self.samples_per_prompt = state.get(
            "samples_per_prompt", state.get("answers", self.samples_per_prompt)
        )
        kept = self.step * self.config.batch_size  # of older checkpoints
        self.spent = state.get("spent", kept)
        self.drawn = state.get("drawn", kept // self.samples_per_prompt)
        self.answers, self.signal = state.get("responses", self.config.batch_size), state.get("signal")
