"""The stages in order: their inputs and outputs, when they are redone, and how a run resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from burnish.config import RunConfig
from burnish.config.checks import check_config
from burnish.data.store import LabelStore
from burnish.distributed import collectives
from burnish.errors import ConfigError, OutOfMemory, RunError, Waiting, ran_out
from burnish.evaluation.champion import TRAINED
from burnish.labels.served import ASKED
from burnish.models.batches import CPU
from burnish.models.device import traits
from burnish.models.load import find_device, resolve_path
from burnish.models.memory import first_line, give_back
from burnish.monitor.live import Unseen, View, open_view
from burnish.monitor.trackers import Trackers, Webhook, open_trackers, open_webhook
from burnish.pipeline.align import align
from burnish.pipeline.candidates import ANSWERS
from burnish.pipeline.collect import collect
from burnish.pipeline.context import DEVICE_FILE, RunContext
from burnish.pipeline.dpo import HEALTHY, ON_POLICY
from burnish.pipeline.evaluate import evaluate
from burnish.pipeline.label import label
from burnish.pipeline.report import report
from burnish.pipeline.reward import reward
from burnish.pipeline.rounds import carry_out_rounds, followed
from burnish.pipeline.sft import sft
from burnish.pipeline.speed_estimate import settle_batch
from burnish.reward.functions import source_of
from burnish.runs.directory import ROUNDS, RunDirectory, Writes
from burnish.runs.files import write_json
from burnish.runs.inputs import Inputs, code_version, config_inputs, content_hash, imported_modules


@dataclass(frozen=True)
class Stage:
    """A stage of a run: the function that executes it, what it uses and what it writes.

    `uses`: sections or single keys of the configuration. `files`: files read besides those of earlier
    stages. `writes`: files written, labels apart. Its code is what `burnish.pipeline.NAME` imports.
    """

    name: str
    carry_out: Callable[[RunContext], list[str]]
    uses: tuple[str, ...]
    writes: Writes
    files: tuple[str, ...] = ()
    lower: str = "evaluate.batch_size"  # what to lower when memory runs out
    shared: bool = True  # by all processes; otherwise the leader alone runs it and may wait for people


EXAMINED = ("examined.json", "stressed.json", "examined.html", "examined_on.json", "examined_on.html")
"""Reports of `reward examine` and `reward stress`; deleted when the reward or align stage is redone."""
MEASURED = ("overoptimization.json", "overoptimization.html", "frontier.json")
"""Results of `evaluate overoptimization` and `evaluate frontier`; deleted when the align stage is redone."""

ROUND = (
    Stage(
        "sft",
        lambda w: sft(w.models, w.journal.of("sft"), w.config.sft, w.config.seed),
        uses=("seed", "threads", "model", "sft", "rounds"),
        files=("model", "demonstrations", "followed run"),
        writes=Writes(records=("sft",)),
        lower="sft.micro_batch",
    ),
    Stage(
        "collect",
        lambda w: collect(
            w.models,
            w.data,
            w.journal.of("collect"),
            w.config.collect,
            w.config.select,
            w.config.rounds,
            w.config.seed,
        ),
        uses=("data", "collect", "select"),
        files=("prompts",),
        writes=Writes(records=("collect", "prompts"), files=("selected.jsonl",)),
        lower="collect.batch_size",
    ),
    Stage(
        "label",
        lambda w: label(w.data, w.journal.of("label"), w.config.label, w.config.seed),
        uses=("label",),
        files=("preferences", "guidelines", "rubric"),
        writes=Writes(records=("label", "import", "judge"), files=("labels.json",)),
        shared=False,
    ),
    Stage(
        "reward",
        lambda w: reward(
            w.models,
            w.data,
            w.journal.of("reward"),
            w.config.reward,
            w.config.ppo,
            w.config.evaluate,
            w.config.seed,
        ),
        # PPO's prompts and temperature determine the reference samples, the examiner's kind the split
        # of pairs, and its confidence whether the watcher is armed.
        uses=(
            *("reward", "ppo.updates", "ppo.batch_size", "ppo.samples_per_prompt", "ppo.temperature"),
            *("evaluate.examiner", "evaluate.confidence", "evaluate.batch_size"),
        ),
        writes=Writes(records=("reward",), timed=EXAMINED),
        lower="reward.micro_batch",
    ),
    Stage(
        "align",
        lambda w: align(
            w.models,
            w.data,
            w.journal.of("align"),
            w.config.align,
            w.config.ppo,
            w.config.guard,
            w.config.dpo,
            w.config.distill,
            w.config.monitor,
            w.config.looks_every,
            w.config.evaluate,
            w.config.seed,
        ),
        # Regression sets are only looked at: another one does not make PPO run again.
        uses=("align", "ppo", "guard", "dpo", "distill", "monitor", "evaluate.every"),
        files=("reward functions",),
        writes=Writes(
            records=("ppo", "trial", "looks", "dpo", "distill", "pairs"),
            timed=(*EXAMINED, *MEASURED),
            folders=(*TRAINED, HEALTHY),
            files=("align.json", ON_POLICY, "stress.json"),
        ),
        lower="ppo.micro_batch, dpo.micro_batch or distill.micro_batch",
    ),
)
"""The stages of every round."""

STAGES = (
    Stage(
        "rounds",
        lambda w: carry_out_rounds(w.journal, w.config, partial(run_round, w.journal.view)),
        uses=("rounds", *(key for stage in ROUND for key in stage.uses)),
        files=tuple(kind for stage in ROUND for kind in stage.files),
        writes=Writes(),
    ),
    *ROUND,
    Stage(
        "evaluate",
        lambda w: evaluate(
            w.models,
            w.data,
            w.journal.of("evaluate"),
            w.config.evaluate,
            w.config.ppo.concise,
            w.config.rounds,
            w.config.seed,
        ),
        uses=("evaluate",),
        files=("examiner's rubric", "regression sets"),
        writes=Writes(files=("evaluation.json", ANSWERS, ASKED)),
    ),
    Stage(
        "report",
        lambda w: report(w.models, w.journal.path, w.config.name, w.config.evaluate, w.config.seed),
        uses=("name",),
        writes=Writes(folders=("champion",), timed=("summary.json", "report.html")),
        shared=False,
    ),
)
"""All stages in order. `rounds` runs the rounds before the last, if there are several."""


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Return the stages of a run."""
    return STAGES if config.rounds > 1 else STAGES[1:]


CHECKPOINTS = ("checkpoint-*",)
COST_KEYS = (
    "concurrency",
    "timeout",
    "retries",
    "price_in",
    "price_out",
    "budget",
    "api_key_env",
)  # keys of a judge
IGNORED_KEYS = (
    "monitor.trackers",
    "monitor.webhook",
    "collect.previous_run",  # the content of that run is an input
    "label.max_unlabelled_share",  # a run that stopped because labels were missing reads it again
    *(f"{s}.judge.{k}" for s in ("label", "evaluate") for k in COST_KEYS),
)  # keys that change no figure


def code_of(stage: Stage) -> list[str]:
    """Return the modules whose code a stage runs."""
    parts = ROUND if stage.name == "rounds" else ()
    names = (stage.name, *(part.name for part in parts))
    return sorted({m for name in names for m in imported_modules(f"burnish.pipeline.{name}")})


def stage_inputs(config: RunConfig) -> dict[str, Inputs]:
    """Return the inputs of every stage (configuration, files, code), besides the stages before it."""
    named = {
        "model": resolve_path(config.model.path),
        "prompts": config.data.prompts,
        "demonstrations": config.sft.demonstrations,
        "preferences": config.label.preferences,
        "guidelines": config.label.guidelines,
        "rubric": config.label.judge.rubric,
        "examiner's rubric": config.evaluate.judge.rubric,
    }
    hashes = {k: content_hash(Path(v)) for k, v in named.items() if v is not None and Path(v).exists()}
    if config.collect.previous_run is not None:
        hashes["followed run"] = content_hash(Path(config.collect.previous_run) / "align.json")
    sets = [Path(own) for given in config.evaluate.regression_sets if (own := given.file or given.include)]
    if sets:
        hashes["regression sets"] = " ".join(content_hash(file) for file in sets if file.exists())
    sources = [source_of(r.function) for r in config.ppo.rewards if r.function is not None]
    if sources:
        hashes["reward functions"] = " ".join(content_hash(file) for file in sources if file is not None)
    return {
        stage.name: Inputs(
            config_inputs(config, stage.uses, IGNORED_KEYS),
            {kind: hashes[kind] for kind in stage.files if kind in hashes},
            code_version(code_of(stage)),
        )
        for stage in stages_of(config)
    }


def run_pipeline(
    config: RunConfig,
    path: Path,
    *,
    until: str | None = None,
    redo: bool = False,
    view: View | None = None,
    profile: int = 0,
) -> RunDirectory:
    """Run every stage that is not done, in order, up to and including `until`.

    Finished work that no longer fits the configuration is redone with `redo`, else an error. Work of
    other code is redone with `redo`, else kept. `view` is the caller's view; None opens one.
    `profile` is the number of PPO updates to trace.
    """
    check_config(config)
    names = [stage.name for stage in stages_of(config)]
    if until is not None and until not in names:
        raise ConfigError(
            f"until={until!r}, but a run with rounds: {config.rounds} has the stages {', '.join(names)}"
        )
    run = collectives.from_lead(lambda: RunDirectory.create_or_open(path, config))
    with ExitStack() as held:
        collectives.from_lead(lambda: held.enter_context(run.lock()))
        view = held.enter_context(nullcontext(view) if view else view_of(config))
        config = run.config = collectives.from_lead(partial(prepared, run, view, redo))
        set_determinism(config)
        inputs = stage_inputs(config)
        place = RunContext.of(run, view, *tellers(run, view), profile=profile)
        try:
            for stage in stages_of(config):
                carry_out(place, stage, inputs[stage.name])
                if stage.name == until:
                    break
        finally:
            place.journal.trackers.close()
            place.data.close()
    return run


def prepared(run: RunDirectory, view: View, redo: bool) -> RunConfig:
    """Prepare a run directory for its stages; return the configuration to run them with."""
    followed(run)  # raises if the run cannot be followed
    set_determinism(run.config)
    place = RunContext.alone(run)
    config = run.config = settle_batch(run, place.models, place.data)
    discard_stale(run, stage_inputs(config), view, redo=redo)
    run.freeze()
    on_cpu = find_device(config.model.device).type == "cpu"
    if on_cpu and run.stages() and not (run.path / DEVICE_FILE).exists():
        # A run of version 0.1.0, in which `auto` was float32 on every processor.
        write_json(run.path / DEVICE_FILE, {"dtype": "float32", "pass_price": traits(CPU).pass_price})
    return config


def view_of(config: RunConfig) -> View:
    """Open the view of a run; of several processes only the leader has a visible one."""
    return (
        open_view(config.name, config.ppo.kl.target)
        if collectives.leads()
        else Unseen("", config.ppo.kl.target)
    )


def tellers(run: RunDirectory, view: View) -> tuple[Trackers, Webhook | None]:
    """Open a run's trackers and webhook, which only the leader uses."""
    config = run.config
    if not collectives.leads():
        return Trackers({}, view.note), None
    trackers = open_trackers(config.monitor.trackers, run.path, config.model_dump(mode="json"), view.note)
    return trackers, open_webhook(config.monitor.webhook, config.name, view.note)


def run_round(view: View, config: RunConfig, path: Path) -> RunDirectory:
    """Run a round before the last, up to its policy."""
    return run_pipeline(config, path, until="align", view=view)


def discard_stale(run: RunDirectory, inputs: dict[str, Inputs], view: View, *, redo: bool) -> None:
    """Discard the stages whose inputs changed, and note which and why.

    Raises RunError, with nothing touched, if that would destroy finished work without `redo`.
    """
    stale = run.stale(inputs)
    # A report can be rendered again, so nothing is lost.
    outdated = [*stale.changed, *(n for n in stale.older if redo or n == "report")]
    if ROUNDS in run.stages() and ROUNDS not in inputs:
        outdated.insert(0, ROUNDS)  # left from when there were several rounds
    lost = [n for n in outdated if n != "report" and run.holds_work(n)]
    why = "; ".join(stale.changes) or "another version of the code"
    if lost and not redo:
        raise RunError(
            f"{run.path} was made with other settings ({why}): {', '.join(lost)} would be done again, and what "
            "they left would be deleted. Give another --dir, or add --redo to the same command"
        )
    kept = [n for n in stale.older if n not in outdated]
    if kept:
        view.note(f"made by another version of the code and kept: {', '.join(kept)} (--redo does them again)")
    if outdated:
        view.note(f"changed: {why}; will be done again: {', '.join(outdated)}")
    discard(run, [s for s in STAGES if s.name in outdated])


def discard(run: RunDirectory, stages: Sequence[Stage]) -> None:
    """Discard stages, the last one first, so that a stopped discard leaves the first ones stale.

    Labels are never deleted: the store is set aside. A new one keeps the comparisons if only labels
    are redone.
    """
    names = [stage.name for stage in stages]
    if {"rounds", "collect", "label"} & set(names):
        set_labels_aside(run, keep_comparisons=not {"rounds", "collect"} & set(names))
    for stage in reversed(stages):
        run.discard_stage(stage.name, stage.writes)


def set_labels_aside(run: RunDirectory, *, keep_comparisons: bool) -> None:
    """Rename the label store, if any; start a new one with its comparisons if they are kept."""
    store = run.path / "labels.sqlite"
    if run.config.label.store is not None or not store.exists():
        return  # one run must not set aside a store that several runs share
    number = len(list(run.path.glob("labels.replaced-*.sqlite"))) + 1
    with LabelStore(store) as old:
        comparisons = list(old.comparisons()) if keep_comparisons else []
    store.rename(run.path / f"labels.replaced-{number}.sqlite")
    if comparisons:
        with LabelStore(store) as new:
            new.add_comparisons(comparisons)


def keep_settled(run: RunDirectory, found: dict[str, Any]) -> None:
    """Write what this machine decided, once in a run.

    Processes build their bases at different times, so the leader does not wait for them.
    """
    if collectives.leads() and not (run.path / DEVICE_FILE).exists():
        with collectives.alone():
            write_json(run.path / DEVICE_FILE, found)


def carry_out(place: RunContext, stage: Stage, inputs: Inputs) -> None:
    """Run one stage: skip it if done, continue it if stopped, and mark it failed with the reason."""
    run, view = place.journal.run, place.journal.view
    if not collectives.from_lead(lambda: run.begin_stage(stage.name, inputs)):
        return
    view.stage(stage.name, "")
    place.models.on_reduce = place.journal.of(stage.name).less_at_once
    place.models.on_settle = partial(keep_settled, run)
    began = perf_counter()
    try:
        if place.models.cut_over and stage.name not in ("sft", ROUNDS):  # these build their own bases
            place.models.made_by_all()
        outputs = (
            stage.carry_out(place)
            if stage.shared
            else collectives.from_lead(partial(by_itself, stage, place))
        )
    except Waiting as error:
        if collectives.leads():
            with collectives.alone():  # the other processes receive the error
                run.wait_stage(stage.name, str(error))
        raise
    except Exception as error:
        memory_error = out_of_memory(error, stage)
        if collectives.leads():
            with collectives.alone():
                run.fail_stage(stage.name, str(memory_error or error) or type(error).__name__)
        if memory_error is not None:
            raise memory_error from error
        raise
    give_back()
    seconds = perf_counter() - began
    collectives.by_lead(run.finish_stage)(stage.name, outputs, seconds, versions(), collectives.processes())


def by_itself(stage: Stage, place: RunContext) -> list[str]:
    """Run a stage that is not shared.

    With several processes it reads a copy of the data. The others would wait for data that one has
    cached.
    """
    if collectives.processes() == 1:
        return stage.carry_out(place)
    data = replace(place.data)
    try:
        return stage.carry_out(replace(place, data=data))
    finally:
        data.close()


def out_of_memory(error: Exception, stage: Stage) -> OutOfMemory | None:
    """Return the error to raise if memory ran out here or in another process, else None."""
    if not ran_out(error) and not (isinstance(error, OutOfMemory) and error.of_process is not None):
        return None
    return OutOfMemory(
        f"memory ran out in {stage.name} ({first_line(error)}), even for one row at once; lower {stage.lower}, "
        "model.max_response_tokens or how much is "
        "trained (model.layers), then start again: what was saved is kept"
    )


def fingerprint(path: Path) -> dict[str, str]:
    """Return hashes of what a resumed run must have in common with one that never stopped.

    They exclude wall-clock figures (timing, rendered report), label times and interim checkpoints.
    """
    found: dict[str, str] = {}
    for inner in sorted((path / ROUNDS).glob("[0-9]*")):
        found |= {f"{ROUNDS}/{inner.name}/{name}": value for name, value in fingerprint(inner).items()}
    for stage in STAGES[1:]:
        for name in (stage.name, *stage.writes.folders, *stage.writes.files):
            if (path / name).exists():
                found[name] = content_hash(path / name, exclude=CHECKPOINTS)
        for record in stage.writes.records:
            for folder in ("metrics", "samples", "rejected"):
                for file in sorted((path / folder).glob(f"{record}[.-]*")):
                    found[f"{folder}/{file.name}"] = content_hash(file)
    if (path / "events.jsonl").exists():
        found["events.jsonl"] = content_hash(path / "events.jsonl")
    return {name: value for name, value in found.items() if value}


def versions() -> dict[str, str]:
    """Return the versions of Burnish and of the libraries it runs on."""
    return {name: version(name) for name in ("burnish", "torch", "transformers", "tokenizers", "peft")}


def set_determinism(config: RunConfig) -> None:
    """Set threads, seed and, on the CPU, deterministic operations.

    A CPU then reproduces its numbers. On other devices the seed fixes what is drawn, but sums may
    round in another order in each run.
    """
    assert config.threads is not None, "frozen when the run was created"
    torch.set_num_threads(config.threads)
    # On CUDA some operations, such as sums along a row, have no deterministic form.
    torch.use_deterministic_algorithms(find_device(config.model.device).type == "cpu")
    torch.manual_seed(config.seed)
