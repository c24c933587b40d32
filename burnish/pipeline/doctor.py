"""`burnish doctor`: look at data, model and machine before a run, with a figure behind every line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from burnish.config import RunConfig
from burnish.config.evaluate import EvaluateConfig
from burnish.pipeline.data import Data
from burnish.pipeline.models import Models, context_of
from burnish.pipeline.order import Workplace, check_config
from burnish.pipeline.outlook import look_ahead
from burnish.pipeline.pace import BYTES, settle_batch
from burnish.records import Prompt
from burnish.runs import RunDirectory
from burnish.stats import clustered_proportion


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
        place = replace(place, config=settle_batch(run, place.models, place.data))
        return [*_model(place.models), *_data(place.data, run.config.evaluate), *_machine(place)]


def _model(models: Models) -> list[Finding]:
    codec, limits = models.codec, models.config
    context = context_of(models.base.lm)
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
    ahead = look_ahead(place.config)
    free = shutil.disk_usage(Path.cwd()).free
    disk = 6 * sum(p.numel() for p in place.models.base.lm.parameters()) * BYTES
    smaller = "; ".join(f"{a.settings} makes it {a.peak / 2**30:.1f}" for a in ahead.advice)
    return [
        Finding(
            "memory",
            ahead.fits,
            f"about {ahead.peak / 2**30:.1f} GiB needed ({ahead.largest}), {ahead.free / 2**30:.1f} GiB free"
            + (f"; {smaller}" if smaller else ""),
        ),
        Finding("disk", disk < free, f"about {disk / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"),
        Finding(
            "time",
            None,
            f"about {ahead.duration / 60:.0f} minutes on {place.config.threads} threads (burnish plan says of what)",
        ),
    ]
