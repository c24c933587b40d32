"""`burnish doctor`: checks of data, model and machine before a run, with measured values."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from burnish.commands.plan.estimate import look_ahead
from burnish.config import RunConfig
from burnish.config.checks import check_config
from burnish.config.evaluate import EvaluateConfig
from burnish.errors import BurnishError
from burnish.models.device import has_fast_bfloat16
from burnish.pipeline.context import Data, Models, RunContext, context_of
from burnish.pipeline.speed_estimate import BYTES
from burnish.records import Preference, Prompt
from burnish.runs.directory import RunDirectory
from burnish.stats import clustered_proportion


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report: `ok` False needs attention, None is for information."""

    check: str
    ok: bool | None
    evidence: str


def examine_setup(
    config: RunConfig, on_progress: Callable[[str], None] = lambda what: None
) -> Iterator[Finding]:
    """Yield every finding as it is made, those of the model first.

    Loads the model, trains nothing and leaves nothing behind. `on_progress` is called with the part
    that is examined next. A part that fails is one finding, and the others follow unless it is the
    model.
    """
    check_config(config)
    with TemporaryDirectory() as room:
        run = RunDirectory.create_or_open(Path(room) / "doctor", config)
        place = RunContext.alone(run)
        assert run.config.threads is not None
        torch.set_num_threads(run.config.threads)
        parts: dict[str, Callable[[], Iterator[Finding]]] = {
            "model": lambda: _model(place.models),
            "data": lambda: _data(place.data, run.config.evaluate),
            "disk": lambda: _disk(place),
            "memory": lambda: _memory(place),
            "time": lambda: _time(place),
        }
        for name, look in parts.items():
            on_progress(f"looking at the {name}")
            try:
                yield from look()
            except Exception as error:  # noqa: BLE001 - the error is the finding of this part
                yield Finding(name, False, f"cannot be checked: {first_line(error)}")
                if name == "model":
                    return  # all other parts need the model
        place.data.close()


def first_line(error: Exception) -> str:
    """Return the first line of an error, with its type unless it is a BurnishError."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if isinstance(error, BurnishError) else f"{type(error).__name__}: {text}"


def _model(models: Models) -> Iterator[Finding]:
    codec, limits = models.codec, models.config
    context = context_of(models.base.lm)
    wanted = limits.max_prompt_tokens + limits.max_response_tokens
    ends = ", ".join(str(i) for i in sorted(codec.eos_ids))
    yield Finding(
        "lengths against context",
        context is None or wanted <= context,
        f"{limits.max_prompt_tokens} + {limits.max_response_tokens} tokens, the model takes {context or 'any'}",
    )
    yield Finding(
        "EOS and pad",
        codec.pad_id not in codec.eos_ids,
        f"ends with id {ends}, pads with id {codec.pad_id}",
    )
    yield _precision(models.base.dtype, models.base.device)
    if models.base.device.type != "cpu":
        yield Finding("determinism", None, "two runs on this device round differently; on a CPU they do not")


def _precision(dtype: torch.dtype, device: torch.device) -> Finding:
    """Compare the precision of products with what the device computes in hardware."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.bfloat16 and not has_fast_bfloat16(device):
        text = f"products in {name}, which {device} computes without instructions for it, slower than float32"
        return Finding("precision", False, f"{text}: set model.dtype to auto")
    return Finding("precision", True, f"products in {name} on {device}")


def _data(data: Data, asked: EvaluateConfig) -> Iterator[Finding]:
    splits = data.splits
    train = {_words(p) for p in splits.train}
    held = [_words(p) for p in (*splits.selection, *splits.test)]
    leaked = sum(words in train for words in held)
    yield Finding(
        "leakage between splits",
        not leaked,
        f"{leaked} of {len(held)} held-out prompts have the words of a training prompt, ignoring numbers and order",
    )
    yield Finding(
        "held-out prompts",
        len(splits.selection) >= asked.n_selection and len(splits.test) >= asked.n_test,
        f"{len(splits.train)} train, {len(splits.selection)} selection ({asked.n_selection} wanted), "
        f"{len(splits.test)} test ({asked.n_test} wanted)",
    )
    left_out = data.journal.rejected("prompts")
    if left_out:
        counts = Counter(str(row["reason"]) for row in left_out)
        most = ", ".join(f"{n} {reason}" for reason, n in counts.most_common(3))
        yield Finding("prompts that cannot be used", False, most)
    if data.label.preferences is None:
        return
    result = data.imported
    reasons = ", ".join(f"{n} {reason}" for reason, n in result.rejected.most_common()) or "none"
    longer = [len(p.chosen) > len(p.rejected) for p in result.pairs]
    bias = clustered_proportion([float(x) for x in longer], [p.prompt.group for p in result.pairs])
    yield Finding("usable pairs", len(result.pairs) >= 10_000, f"{len(result.pairs)} of {result.rows} rows")
    yield Finding("rows that cannot be used", not result.rejected, reasons)
    repeats = sum(repeats_prompt(p) for p in result.pairs)
    if repeats:
        text = f"both answers of {repeats} of {len(result.pairs)} pairs begin with their prompt: remove it"
        yield Finding("answers that repeat their prompt", False, text)
    yield Finding(
        "length bias",
        bias.ci_low <= 0.5 <= bias.ci_high,
        f"the longer answer wins {bias.value:.1%} of {len(longer)} pairs on {bias.n} prompts "
        f"(95 % {bias.ci_low:.1%} to {bias.ci_high:.1%})",
    )


def repeats_prompt(pair: Preference) -> bool:
    """Check whether both answers of a pair begin with the words of its prompt or last turn."""
    asked = pair.prompt.messages[-1].content if pair.prompt.messages else pair.prompt.text
    said = [" ".join(text.split()) for text in (pair.chosen, pair.rejected)]
    return all(text.startswith(" ".join(asked.split())) for text in said)


def _words(prompt: Prompt) -> frozenset[str]:
    """Return a prompt's words without numbers.

    Prompts with the same words are near duplicates, even if their `Prompt.group` differs.
    """
    return frozenset(word for word in prompt.group.split() if not word.isdigit()) or frozenset([prompt.group])


def _disk(place: RunContext) -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    disk = 6 * sum(p.numel() for p in place.models.base.lm.parameters()) * BYTES
    yield Finding("disk", disk < free, f"about {disk / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free")


def _memory(place: RunContext) -> Iterator[Finding]:
    ahead = look_ahead(place.config, timed=False)
    smaller = "; ".join(f"{a.settings} makes it {a.peak / 2**30:.1f}" for a in ahead.advice)
    yield Finding(
        "memory",
        ahead.fits,
        f"about {ahead.peak / 2**30:.1f} GiB needed ({ahead.largest}), {ahead.free / 2**30:.1f} GiB free"
        + (f"; {smaller}" if smaller else "")
        + of_batch(place.config),
    )


def of_batch(config: RunConfig) -> str:
    """Name the batch that an estimate is for, if the run chooses its own."""
    if config.ppo.update_seconds is None:
        return ""
    return f"; for ppo.batch_size={config.ppo.batch_size}: with ppo.update_seconds the run chooses another"


def _time(place: RunContext) -> Iterator[Finding]:
    ahead = look_ahead(place.config)
    yield Finding(
        "time",
        None,
        f"about {ahead.duration / 60:.0f} minutes on {place.config.threads} threads (burnish plan lists the stages)"
        + of_batch(place.config),
    )
