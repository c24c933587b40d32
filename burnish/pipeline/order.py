"""The stages in order: what each reads, when it is done again, and how a run goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch

from burnish.config import RunConfig
from burnish.data.store import LabelStore
from burnish.errors import BurnishError, ConfigError
from burnish.models.load import resolve_path
from burnish.monitor.live import open_view
from burnish.monitor.trackers import open_trackers
from burnish.pipeline.align import align
from burnish.pipeline.context import Context
from burnish.pipeline.examining import evaluate
from burnish.pipeline.gather import collect, label, sft
from burnish.pipeline.publishing import report
from burnish.pipeline.rewarding import reward
from burnish.runs import RunDirectory, code_version, content_hash, stage_hash


@dataclass(frozen=True)
class Stage:
    """A stage: the configuration sections and code it depends on besides the stages before it."""

    name: str
    carry_out: Callable[[Context], list[str]]
    sections: tuple[str, ...]
    code: tuple[str, ...]


COMMON = ("burnish.models", "burnish.records", "burnish.randomness", "burnish.pipeline.context")
STAGES = (
    Stage("sft", sft, ("model", "data", "sft"), (*COMMON, "burnish.policy.sft", "burnish.objectives")),
    Stage("collect", collect, ("collect",), (*COMMON, "burnish.data", "burnish.pipeline.gather")),
    Stage("label", label, ("label",), ("burnish.rehearse", "burnish.data", "burnish.pipeline.gather")),
    Stage(
        "reward", reward, ("reward",), ("burnish.reward", "burnish.objectives", "burnish.pipeline.rewarding")
    ),
    Stage("align", align, ("ppo", "guard", "dpo", "monitor"), ("burnish.policy", "burnish.pipeline.align")),
    Stage(
        "evaluate",
        evaluate,
        ("evaluate",),
        ("burnish.evaluate", "burnish.stats", "burnish.pipeline.examining"),
    ),
    Stage("report", report, (), ("burnish.report", "burnish.pipeline.publishing")),
)
"""The table of contents."""


def stage_hashes(config: RunConfig) -> dict[str, str]:
    """Input hash of every stage: its configuration, its code, the content of the files it names, and the hash
    of the stage before it (each stage is a function of these)."""
    dump = config.model_dump(mode="json")
    before = stage_hash({"seed": config.seed, "threads": config.threads, "files": _file_hashes(config)})
    hashes: dict[str, str] = {}
    for stage in STAGES:
        sections = {name: dump[name] for name in stage.sections}
        if "monitor" in sections:
            sections["monitor"] = {k: v for k, v in sections["monitor"].items() if k != "trackers"}
        if stage.name == "reward":
            # How many prompts PPO will use sizes the reference samples; the examiner's kind splits the pairs.
            sections["uses"] = [
                dump["ppo"]["updates"],
                dump["ppo"]["batch_size"],
                dump["evaluate"]["examiner"],
            ]
        before = stage_hash({"before": before, "sections": sections, "code": code_version(stage.code)})
        hashes[stage.name] = before
    return hashes


def _file_hashes(config: RunConfig) -> dict[str, str]:
    named = {
        "model": resolve_path(config.model.path),
        "prompts": config.data.prompts,
        "demonstrations": config.sft.demonstrations,
        "preferences": config.label.preferences,
    }
    return {k: content_hash(Path(v)) for k, v in named.items() if v is not None and Path(v).exists()}


def check_config(config: RunConfig) -> None:
    """What only the whole configuration can tell."""
    if config.evaluate.examiner == "panel" and config.label.source != "simulated":
        raise ConfigError(
            "evaluate.examiner is 'panel' but label.source is 'imported': only a rehearsal has simulated "
            "annotators; set evaluate.examiner: reward_model"
        )
    if config.label.source == "imported" and config.label.preferences is None:
        raise ConfigError("label.source is 'imported' but label.preferences names no file")
    if config.data.prompts == "preferences" and config.label.preferences is None:
        raise ConfigError("data.prompts is 'preferences' but label.preferences names no file")
    if config.label.source == "imported" and config.data.prompts == "stories":
        raise ConfigError(
            "imported preferences need prompts of their own kind: set data.prompts to 'preferences' or a file"
        )
    if config.model.layers.startswith("lora") and config.ppo.value_init == "reward_model":
        raise ConfigError(
            f"ppo.value_init='reward_model' needs whole layers, but model.layers={config.model.layers!r} trains "
            "adapters; use zero"
        )


def run_pipeline(
    config: RunConfig,
    path: Path,
    *,
    until: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> RunDirectory:
    """Carry out every stage that is not done, in order, up to and including `until`."""
    check_config(config)
    run = RunDirectory.create_or_open(path, config)
    config = run.config
    with run.lock(), open_view(config.name, config.ppo.kl.target) as view:
        set_determinism(config)
        hashes = stage_hashes(config)
        redo = run.plan_invalidation([s.name for s in STAGES], hashes)
        if redo:
            changes = run.changes() or ["code or input files"]
            view.note(f"changed: {'; '.join(changes)}; will be done again: {', '.join(redo)}")
        for name in redo:
            discard(run, name)
        run.freeze()
        trackers = open_trackers(config.monitor.trackers, run.path, config.model_dump(mode="json"), view.note)
        ctx = Context(config, run, view, trackers)
        try:
            for stage in STAGES:
                carry_out(ctx, stage, hashes[stage.name])
                if stage.name == until:
                    break
        finally:
            trackers.close()
            ctx.close()
    return run


FOLDERS = {"align": ("ppo", "dpo"), "report": ("champion",)}
FILES = {
    "align": ("align.json",),
    "evaluate": ("evaluation.json",),
    "report": ("summary.json", "report.html"),
}


def discard(run: RunDirectory, name: str) -> None:
    """Take back a stage: what it wrote, under its own name or those of its models. Labels are never deleted: the
    store is set aside, and a new one begun with the comparisons when only the labels are to be done again."""
    run.discard_stage(name)
    for folder in FOLDERS.get(name, ()):
        shutil.rmtree(run.path / folder, ignore_errors=True)
    for file in FILES.get(name, ()):
        (run.path / file).unlink(missing_ok=True)
    store = run.path / "labels.sqlite"
    if name in ("collect", "label") and store.exists():
        number = len(list(run.path.glob("labels.replaced-*.sqlite"))) + 1
        aside = run.path / f"labels.replaced-{number}.sqlite"
        with LabelStore(store) as old:
            comparisons = [] if name == "collect" else list(old.comparisons())
        store.rename(aside)
        if comparisons:
            with LabelStore(store) as new:
                new.add_comparisons(comparisons)


def carry_out(ctx: Context, stage: Stage, input_hash: str) -> None:
    """One stage: skipped when done, continued when it was stopped, marked failed with the reason when it fails."""
    if not ctx.run.begin_stage(stage.name, input_hash):
        return
    ctx.view.stage(stage.name, "")
    began = perf_counter()
    try:
        outputs = stage.carry_out(ctx)
    except BurnishError as error:
        ctx.run.fail_stage(stage.name, str(error))
        raise
    ctx.run.finish_stage(stage.name, outputs, perf_counter() - began, versions())


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("burnish", "torch", "transformers", "tokenizers", "peft")}


def set_determinism(config: RunConfig) -> None:
    """Same machine, same threads, same numbers."""
    assert config.threads is not None, "frozen when the run was created"
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.seed)
