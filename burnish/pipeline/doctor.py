"""`burnish doctor`: look at data, model and machine before a run, with a figure behind every line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import psutil
import torch

from burnish.config import RunConfig
from burnish.models.logprobs import token_logprobs
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.pipeline.context import Context
from burnish.pipeline.order import check_config
from burnish.records import Prompt
from burnish.runs import RunDirectory
from burnish.stats import clustered_proportion

BYTES = 4  # float32
PROBE = 16  # prompts that rates are measured on


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report: `ok` False needs attention, None is for information."""

    check: str
    ok: bool | None
    evidence: str


def examine_setup(config: RunConfig) -> list[Finding]:
    """Every finding, data first. Loads the model; trains nothing, and leaves nothing behind."""
    check_config(config)
    with TemporaryDirectory() as room:
        run = RunDirectory.create_or_open(Path(room) / "doctor", config)
        ctx = Context(run.config, run, View("doctor", config.ppo.kl.target), Trackers({}, print))
        assert run.config.threads is not None
        torch.set_num_threads(run.config.threads)
        return [*_model(ctx), *_data(ctx), *_machine(ctx)]


def _model(ctx: Context) -> list[Finding]:
    codec, limits = ctx.codec, ctx.config.model
    context = getattr(ctx.base.lm.config.get_text_config(), "max_position_embeddings", None)
    wanted = limits.max_prompt_tokens + limits.max_response_tokens
    ends = ", ".join(str(i) for i in sorted(codec.eos_ids))
    return [
        Finding(
            "lengths against context",
            context is None or wanted <= context,
            f"{limits.max_prompt_tokens} + {limits.max_response_tokens} tokens, the model takes {context or 'any'}",
        ),
        Finding(
            "EOS and pad",
            codec.pad_id not in codec.eos_ids,
            f"ends with id {ends}, pads with id {codec.pad_id}",
        ),
    ]


def _data(ctx: Context) -> list[Finding]:
    splits = ctx.splits
    train = {_words(p) for p in splits.train}
    held = [_words(p) for p in (*splits.selection, *splits.test)]
    leaked = sum(words in train for words in held)
    asked = ctx.config.evaluate
    findings = [
        Finding(
            "leakage between splits",
            not leaked,
            f"{leaked} of {len(held)} held-out prompts have the words of a training prompt, numbers and order apart",
        ),
        Finding(
            "held-out prompts",
            len(splits.selection) >= asked.n_selection and len(splits.test) >= asked.n_test,
            f"{len(splits.train)} train, {len(splits.selection)} selection ({asked.n_selection} wanted), "
            f"{len(splits.test)} test ({asked.n_test} wanted)",
        ),
    ]
    if ctx.config.label.preferences is None:
        return findings
    result = ctx.imported
    reasons = ", ".join(f"{n} {reason}" for reason, n in result.rejected.most_common()) or "none"
    longer = [len(p.chosen) > len(p.rejected) for p in result.pairs]
    bias = clustered_proportion([float(x) for x in longer], [p.prompt.group for p in result.pairs])
    return [
        *findings,
        Finding("usable pairs", len(result.pairs) >= 10_000, f"{len(result.pairs)} of {result.rows} rows"),
        Finding("rows that cannot be used", not result.rejected, reasons),
        Finding(
            "length bias",
            bias.ci_low <= 0.5 <= bias.ci_high,
            f"the longer answer wins {bias.value:.1%} of {len(longer)} pairs on {bias.n} prompts "
            f"(95 % {bias.ci_low:.1%} to {bias.ci_high:.1%})",
        ),
    ]


def _words(prompt: Prompt) -> frozenset[str]:
    """Coarser than what splits go by (`Prompt.group`), so that near copies on two sides are seen."""
    return frozenset(word for word in prompt.group.split() if not word.isdigit()) or frozenset([prompt.group])


def _machine(ctx: Context) -> list[Finding]:
    need, have = memory_estimate(ctx), psutil.virtual_memory().available
    free = shutil.disk_usage(Path.cwd()).free
    disk = 6 * _parameters(ctx) * BYTES
    seconds = time_estimate(ctx)
    return [
        Finding(
            "memory", need < 0.9 * have, f"about {need / 2**30:.1f} GiB needed, {have / 2**30:.1f} GiB free"
        ),
        Finding("disk", disk < free, f"about {disk / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"),
        Finding(
            "time",
            None,
            f"about {seconds / 60:.0f} minutes on {ctx.config.threads} threads, measured roughly",
        ),
    ]


def _parameters(ctx: Context) -> int:
    return sum(p.numel() for p in ctx.base.lm.parameters())


def memory_estimate(ctx: Context) -> int:
    """Bytes at the peak, roughly: the base, a policy and a value function with gradients and two moments, the
    frozen heads, and one micro-batch of logits and activations. A figure to plan by, not a bound."""
    total = _parameters(ctx)
    trained = sum(p.numel() for p in ctx.new_policy().top.trained_parameters())
    heads = (ctx.config.reward.members + 2) * trained
    config = ctx.base.lm.config.get_text_config()
    tokens = ctx.config.ppo.micro_batch * (
        ctx.config.model.max_prompt_tokens + ctx.config.model.max_response_tokens
    )
    activations = tokens * (config.vocab_size * 4 + config.hidden_size * 34 * config.num_hidden_layers)
    return BYTES * (total + 2 * 4 * trained + heads + activations) + (600 << 20)


def time_estimate(ctx: Context) -> float:
    """Seconds for the whole run, from the rate of one small batch of sampling and one of training."""
    config = ctx.config
    prompts = ctx.splits.train[:PROBE]
    policy = ctx.new_policy()
    began = perf_counter()
    rollout = sample_rollout(
        policy,
        ctx.codec,
        prompts,
        max_tokens=config.model.max_response_tokens,
        batch_size=len(prompts),
        seed=0,
        where=("doctor",),
    )
    sampling = (perf_counter() - began) / len(prompts)
    began = perf_counter()
    sequences = Sequences.of(ctx.base, rollout, ctx.codec.pad_id)
    features = (perf_counter() - began) / len(prompts)
    began = perf_counter()
    token_logprobs(policy, sequences.batch(range(len(prompts)))).sum().backward()
    training = (perf_counter() - began) / len(prompts)
    pairs = config.collect.n_pairs if config.label.source == "simulated" else len(ctx.imported.pairs)
    collected = 2 * config.collect.n_pairs * sampling if config.label.source == "simulated" else 0.0
    rewards = 2 * pairs * (features + config.reward.epochs * (config.reward.members + 1) * 0.7 * training)
    episodes = config.ppo.updates * config.ppo.batch_size
    ppo = episodes * (2 * sampling + features + training * (2 * config.ppo.epochs + config.reward.members))
    examined = config.evaluate.n_selection + config.evaluate.n_test
    evaluation = examined * (sampling + features) * (2 + config.evaluate.best_of_n + 2)
    return collected + rewards + ppo + evaluation
