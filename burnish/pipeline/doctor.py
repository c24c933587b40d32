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
from burnish.config.evaluate import EvaluateConfig
from burnish.models.logprobs import token_logprobs
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.pipeline.data import Data
from burnish.pipeline.models import Models
from burnish.pipeline.order import Workplace, check_config
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
        place = Workplace.alone(run)
        assert run.config.threads is not None
        torch.set_num_threads(run.config.threads)
        return [*_model(place.models), *_data(place.data, run.config.evaluate), *_machine(place)]


def _model(models: Models) -> list[Finding]:
    codec, limits = models.codec, models.config
    context = getattr(models.base.lm.config.get_text_config(), "max_position_embeddings", None)
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


def _data(data: Data, asked: EvaluateConfig) -> list[Finding]:
    splits = data.splits
    train = {_words(p) for p in splits.train}
    held = [_words(p) for p in (*splits.selection, *splits.test)]
    leaked = sum(words in train for words in held)
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
    if data.label.preferences is None:
        return findings
    result = data.imported
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


def _machine(place: Workplace) -> list[Finding]:
    need, have = memory_estimate(place), psutil.virtual_memory().available
    free = shutil.disk_usage(Path.cwd()).free
    disk = 6 * _parameters(place) * BYTES
    seconds = time_estimate(place)
    return [
        Finding(
            "memory", need < 0.9 * have, f"about {need / 2**30:.1f} GiB needed, {have / 2**30:.1f} GiB free"
        ),
        Finding("disk", disk < free, f"about {disk / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"),
        Finding(
            "time",
            None,
            f"about {seconds / 60:.0f} minutes on {place.config.threads} threads, measured roughly",
        ),
    ]


def _parameters(place: Workplace) -> int:
    return sum(p.numel() for p in place.models.base.lm.parameters())


def memory_estimate(place: Workplace) -> int:
    """Bytes at the peak, roughly: the base, a policy and a value function with gradients and two moments, the
    frozen heads, and one micro-batch of logits and activations. A figure to plan by, not a bound."""
    total = _parameters(place)
    trained = sum(p.numel() for p in place.models.new_policy().top.trained_parameters())
    heads = (place.config.reward.members + 2) * trained
    config = place.models.base.lm.config.get_text_config()
    tokens = place.config.ppo.micro_batch * (
        place.config.model.max_prompt_tokens + place.config.model.max_response_tokens
    )
    activations = tokens * (config.vocab_size * 4 + config.hidden_size * 34 * config.num_hidden_layers)
    return BYTES * (total + 2 * 4 * trained + heads + activations) + (600 << 20)


def time_estimate(place: Workplace) -> float:
    """Seconds for the whole run, from the rate of one small batch of sampling and one of training."""
    config = place.config
    prompts = place.data.splits.train[:PROBE]
    policy = place.models.new_policy()
    began = perf_counter()
    rollout = sample_rollout(
        policy,
        place.models.codec,
        prompts,
        max_tokens=config.model.max_response_tokens,
        batch_size=len(prompts),
        seed=0,
        where=("doctor",),
    )
    sampling = (perf_counter() - began) / len(prompts)
    began = perf_counter()
    sequences = Sequences.of(place.models.base, rollout, place.models.codec.pad_id)
    features = (perf_counter() - began) / len(prompts)
    began = perf_counter()
    token_logprobs(policy, sequences.batch(range(len(prompts)))).sum().backward()
    training = (perf_counter() - began) / len(prompts)
    pairs = config.collect.n_pairs if config.label.source == "simulated" else len(place.data.imported.pairs)
    collected = 2 * config.collect.n_pairs * sampling if config.label.source == "simulated" else 0.0
    rewards = 2 * pairs * (features + config.reward.epochs * (config.reward.members + 1) * 0.7 * training)
    episodes = config.ppo.updates * config.ppo.batch_size
    ppo = episodes * (2 * sampling + features + training * (2 * config.ppo.epochs + config.reward.members))
    examined = config.evaluate.n_selection + config.evaluate.n_test
    evaluation = examined * (sampling + features) * (2 + config.evaluate.best_of_n + 2)
    return collected + rewards + ppo + evaluation
