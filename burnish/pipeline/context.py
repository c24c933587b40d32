"""Objects that the stages of a run share: models, data, and the journal of events and metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from burnish.config import RunConfig
from burnish.config.data import DataConfig
from burnish.config.label import LabelConfig
from burnish.config.model import ModelConfig
from burnish.config.reward import RewardConfig
from burnish.data.preferences import (
    ImportResult,
    read_columns_of_pairs,
    read_kinds_of_pairs,
    read_preferences,
)
from burnish.data.prompts import (
    PromptSplits,
    part_of,
    read_columns,
    read_kinds,
    read_prompts,
    split_pairs,
    split_prompts,
)
from burnish.data.store import LabelStore, Snapshot
from burnish.data.text import Rejected, printable
from burnish.distributed import collectives
from burnish.errors import ConfigError, DataError
from burnish.models.artefacts import load_policy
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.device import UNMEASURED_PRICE, traits
from burnish.models.load import Codec, find_device, find_dtype, load_model
from burnish.models.logprobs import Policy, make_policy
from burnish.models.memory import Memory, OnReduce, give_back
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers, Webhook
from burnish.records import Alert, Decision, Preference, Prompt, StepStats
from burnish.rehearse import grammar, world
from burnish.runs.directory import Checkpoint, RunDirectory, project_of, read_jsonl
from burnish.runs.files import atomic_write, read_json


@dataclass(frozen=True)
class Journal:
    """Records of one stage of a run: run directory, live view, trackers and webhook."""

    run: RunDirectory
    view: View
    trackers: Trackers
    stage: str = ""
    hook: Webhook | None = None
    profile: int = 0  # PPO updates to trace

    @property
    def path(self) -> Path:
        """Path of the run directory."""
        return self.run.path

    def of(self, stage: str) -> Journal:
        """Return the journal for another stage of the same run."""
        return replace(self, stage=stage)

    def log(self, name: str, stats: StepStats, extra: Mapping[str, Any] | None = None) -> None:
        """Write one update's figures to metrics/NAME.jsonl and the trackers."""
        self.run.append(f"metrics/{name}.jsonl", {**(extra or {}), **stats.as_row()})
        prefix = "/".join([name, *(str(v) for v in (extra or {}).values())])
        self.trackers.log(prefix, stats.step, stats.values)

    def alert(self, alert: Alert) -> None:
        """Record an alert in the run's events and show it."""
        self._event({"kind": "alert", "stage": self.stage, **alert.as_row()})
        self.view.alert(alert)

    def decide(self, step: int, decision: Decision) -> None:
        """Record a decision in the run's events and show it."""
        self._event({"kind": "decision", "stage": self.stage, "step": step, **decision.as_row()})
        self.view.decision(decision)

    def _event(self, row: Mapping[str, Any]) -> None:
        self.run.append_event(row)
        if self.hook is not None:
            self.hook.send(row)

    def less_at_once(self, what: str, rows: int, why: str) -> None:
        """Record that memory ran out and that `what` continues with `rows` rows at once."""
        reason = f"memory ran out ({why}): {what} continues with {rows} rows at once"
        self.decide(0, Decision("halve_micro_batch", reason, {"what": what, "rows": rows}))

    def reject(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write unusable rows with reasons to rejected/NAME.jsonl, atomically replacing earlier ones."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        atomic_write(self.path / "rejected" / f"{name}.jsonl", "".join(lines))

    def rejected(self, name: str) -> list[dict[str, Any]]:
        """Return the rows that `reject` has written."""
        file = self.path / "rejected" / f"{name}.jsonl"
        return list(read_jsonl(file)) if file.exists() else []

    def checkpoint(
        self,
        write: Callable[[Path], None] = lambda folder: None,
        state: Mapping[str, Any] | None = None,
        keep: frozenset[int] = frozenset(),
    ) -> int:
        """Save the next checkpoint (files of `write`, and `state`); return its number, from 1.

        Numbers count checkpoints, as a roll-back takes steps back. Older ones not in `keep` are deleted.
        """
        found = self.latest_checkpoint()
        number = found.step + 1 if found else 1
        self.run.checkpoint(self.stage, number, write, state or {}, keep | {number})
        return number

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the stage's latest checkpoint, or None."""
        return self.run.latest_checkpoint(self.stage)


DEVICE_FILE = "device.json"  # in a run: what its machine decided, so that it continues alike


@dataclass
class Models:
    """The base model and the policies of a run, loaded on first use.

    `fine_tuned` is the folder of the SFT policy, None if the model is used as given. `temperature` is
    that of every policy, unless the caller that samples sets another.
    """

    config: ModelConfig
    fine_tuned: Path | None
    temperature: float
    folder: Path | None = None  # for activations beyond the memory budget
    on_reduce: OnReduce = lambda what, rows, why: None  # called when rows are halved
    shard: bool = False  # whether frozen layers are sharded over the processes of the run
    # Called with new contents of DEVICE_FILE.
    on_settle: Callable[[dict[str, Any]], None] = lambda found: None

    @property
    def cut_over(self) -> bool:
        """Whether frozen layers are sharded over processes, which must then build the base together."""
        return self.shard and collectives.processes() > 1

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        if self.cut_over:
            base, codec = self._cut
            return base.lm, codec
        return self._load(self.fine_tuned)

    def _load(self, path: Path | None) -> tuple[PreTrainedModel, Codec]:
        """Load a model and its codec, into main memory if the model is to be sharded."""
        where = {"device": "cpu"} if self.cut_over else {}
        lm, codec = load_model(self.config.model_copy(update=where), path=path, as_held=True)
        limits = self.config
        wanted = limits.max_prompt_tokens + limits.max_response_tokens
        context = context_of(lm)
        if context is not None and wanted > context:
            raise ConfigError(
                f"model.max_prompt_tokens={limits.max_prompt_tokens} and model.max_response_tokens="
                f"{limits.max_response_tokens} make {wanted}, but {limits.path!r} takes {context} tokens; lower one"
            )
        return lm, codec

    @property
    def prompt_room(self) -> int | None:
        """Maximum number of prompt tokens before a response; None for a model without a limit."""
        context = context_of(self._loaded[0])
        return None if context is None else context - self.config.max_response_tokens

    @property
    def codec(self) -> Codec:
        """The model's codec, which converts between text and token ids."""
        return self._loaded[1]

    @cached_property
    def base(self) -> Backbone:
        """Backbone of the reference policy (the model as given or after SFT), divided as configured."""
        return self._cut[0] if self.cut_over else self._make_base(*self._loaded)

    def as_given(self) -> tuple[Backbone, Codec]:
        """Load the model before SFT; return its backbone and codec."""
        if self.cut_over:
            return self._made_by_all(None)
        lm, codec = self._load(None)
        return self._make_base(lm, codec), codec

    @cached_property
    def _cut(self) -> tuple[Backbone, Codec]:
        return self._made_by_all(self.fine_tuned)

    def _made_by_all(self, path: Path | None) -> tuple[Backbone, Codec]:
        """Build a sharded base; processes of a machine load in turn, as main memory fits one whole model."""
        if collectives.size() == 1:
            raise RuntimeError("a base sharded over processes was requested by one process alone")

        def made() -> tuple[Backbone, Codec]:
            lm, codec = self._load(path)
            return self._make_base(lm, codec), codec

        base, codec = collectives.in_turns(made)
        assert base.shards is not None
        base.shards.join(base)
        return base, codec

    def made_by_all(self) -> None:
        """Build the base in all processes before one of them needs it alone, and free unused bases."""
        give_back()
        collectives.tidy()
        _ = self.base

    def _make_base(self, lm: PreTrainedModel, codec: Codec) -> Backbone:
        config = self.config
        memory = Memory(int(config.cache_gib * 2**30), self.folder, lambda *less: self.on_reduce(*less))
        base = Backbone(
            lm, config.layers, config.lora, checkpointing=config.gradient_checkpointing, memory=memory
        )
        base.check(codec.pad_id)
        device, settled = find_device(config.device), self._settled()
        # On another kind of machine, a run with `auto` continues in the precision that it began with.
        dtype = settled.get("dtype", "auto") if config.dtype == "auto" else config.dtype
        base.hold(find_dtype(dtype, device, base.hidden_size))
        if self.cut_over:
            base.shard(device)
        if "pass_price" in settled:
            base.pass_price = settled["pass_price"]
        else:
            if self.cut_over:  # a pass needs all processes, which build their bases in turn
                base.pass_price = traits(device).pass_price or UNMEASURED_PRICE
            else:
                base.measure_price()
            self.on_settle({"dtype": str(base.dtype).partition(".")[2], "pass_price": base.pass_price})
        return base

    def _settled(self) -> dict[str, Any]:
        """Return the precision and the price of a pass that the run began with, on whatever machine."""
        file = None if self.folder is None else self.folder / DEVICE_FILE
        found: dict[str, Any] = {} if file is None or not file.exists() else read_json(file)
        return found

    def new_policy(self) -> Policy:
        """Return a trainable policy that starts as the reference policy."""
        return make_policy(TrainableLayers(self.base), self.codec.pad_id, self.temperature)

    def reference(self, temperature: float | None = None) -> Policy:
        """Return the frozen reference policy, which shares its weights with the base."""
        top = TrainableLayers(self.base, trainable=False)
        return make_policy(top, self.codec.pad_id, temperature or self.temperature)

    def saved_policy(self, folder: Path) -> Policy:
        """Load a policy of this run from its exported folder."""
        return make_policy(load_policy(self.base, folder), self.codec.pad_id, self.temperature)


def context_of(lm: PreTrainedModel) -> int | None:
    """Return the context length of a model in tokens, or None if its configuration gives no limit."""
    context = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    return None if context is None else int(context)


DEFAULT_STORIES = 2400

MIN_PAIRS = 8

SNAPSHOT = "labels.json"  # in a run: the state of its label store when its labels were complete


def fits(codec: Codec, limits: ModelConfig, prompt: Prompt, *responses: tuple[str, bool]) -> bool:
    """Check whether a model can read a prompt and each of its responses (text, whether it ended)."""
    return misfit(codec, limits, prompt, *responses) is None


def misfit(codec: Codec, limits: ModelConfig, prompt: Prompt, *responses: tuple[str, bool]) -> str | None:
    """Return why a model cannot read a prompt and responses (limits or chat template), or None."""
    try:
        asked = len(codec.encode_prompt(prompt))
    except DataError as error:
        return str(error)
    within = asked <= limits.max_prompt_tokens and all(
        len(codec.encode_response(text, end=ended, to=prompt)) <= limits.max_response_tokens
        for text, ended in responses
    )
    return None if within else "too long"


def label_store_of(run: Path, label: LabelConfig) -> Path | str:
    """Return the label store of a run: a file or a URL."""
    return project_of(run) / "labels.sqlite" if label.store is None else label.store


@dataclass
class Data:
    """Prompts and labels of a run, read on first use; unusable rows are recorded in rejected/."""

    config: DataConfig
    label: LabelConfig
    reward: RewardConfig
    examiner: bool  # whether the examiner is a reward model, which needs its own pairs
    models: Models
    journal: Journal
    seed: int

    @property
    def gold(self) -> Callable[[Prompt, str], float] | None:
        """A rehearsal's true preference, for simulated annotators and the report after the decision.

        It is None if labels are imported or prompts come from elsewhere.
        """
        ours = self.label.source == "simulated" or (
            self.label.source in ("judge", "people") and self.config.prompts == "stories"
        )
        return world.gold if ours else None

    @cached_property
    def store(self) -> LabelStore:
        """The label store of the run: its own, or one that it shares."""
        return LabelStore(label_store_of(self.journal.path, self.label))

    @property
    def snapshot(self) -> Snapshot | None:
        """State of the store that the run learns from; None before labelling ends and in older runs."""
        file = self.journal.path / SNAPSHOT
        return Snapshot(**read_json(file)) if file.exists() else None

    def close(self) -> None:
        """Release the label store, if it was opened."""
        if "store" in self.__dict__:
            self.store.close()

    @cached_property
    def imported(self) -> ImportResult:
        """The preference pairs that the configuration names."""
        if self.label.preferences is None:
            raise ConfigError(
                "label.source is 'imported' but label.preferences is not set; name a file or a datasets name"
            )
        read = self.read(
            self.label.preferences,
            self.label.split,
            max_pairs=self.label.max_pairs,
            limit=self.config.rejected_rows_limit,
            rejected_to=self.journal.path / "rejected" / "import.jsonl",
        )
        if read.rejected:
            why = ", ".join(f"{reason}: {n}" for reason, n in read.rejected.most_common(3))
            bad = read.rejected.total()
            self.journal.view.note(
                f"{bad} of {read.rows} rows of {self.label.preferences} cannot be used ({why})"
            )
        return read

    def read(self, source: str, split: str, **how: Any) -> ImportResult:
        """Read preference data with the run's format settings and model; `how` as in `read_preferences`."""
        return read_preferences(
            source,
            **how,
            split=split,
            misfit=self.misfit,
            decided_by=self.config.decided_by,
            columns=self.config.columns,
        )

    def kinds(self, column: str) -> dict[str, str]:
        """Return the kind of each prompt by its id: its value in a column of the prompts' data."""
        if self.config.prompts == "preferences":
            assert self.label.preferences is not None, "checked with the configuration"
            how = (self.config.decided_by, self.config.columns)
            return read_kinds_of_pairs(self.label.preferences, self.label.split, column, *how)
        return read_kinds(self.config.prompts, column)

    def columns(self) -> dict[str, dict[str, Any]]:
        """Return the columns of the prompts' data by prompt id; none for the rehearsal's stories."""
        if self.config.prompts == "stories":
            return {}
        wanted = {p.id for part in (self.splits.train, self.splits.selection, self.splits.test) for p in part}
        if self.config.prompts != "preferences":
            return read_columns(self.config.prompts, wanted)
        assert self.label.preferences is not None, "checked with the configuration"
        how = (self.config.decided_by, self.config.columns)
        return read_columns_of_pairs(self.label.preferences, self.label.split, wanted, *how)

    def misfit(self, pair: Preference) -> str | None:
        """Return why the run's models cannot read a pair, or None if they can."""
        sides = ((pair.chosen, pair.chosen_ended), (pair.rejected, pair.rejected_ended))
        return misfit(self.models.codec, self.models.config, pair.prompt, *sides)

    @cached_property
    def splits(self) -> PromptSplits:
        """Training, selection and test prompts, without those that the model cannot read (recorded)."""
        data, codec = self.config, self.models.codec
        unusable = Rejected()
        if data.prompts == "stories":
            prompts = grammar.prompts(data.n_prompts or DEFAULT_STORIES, self.seed)
        elif data.prompts == "preferences":
            prompts = list({p.prompt.id: p.prompt for p in self.imported.pairs}.values())
        else:
            prompts = read_prompts(data.prompts, rejected=unusable)
            rows = unusable.read + len(unusable.notes)
            unusable.check(data.prompts, rows, data.rejected_rows_limit, "mend the rows, or raise the limit")
        limit = self.models.config.max_prompt_tokens
        reasons = [misfit(codec, self.models.config, p) for p in prompts]
        short = [p for p, why in zip(prompts, reasons, strict=True) if why is None][: data.n_prompts]
        left_out = [
            {"prompt": printable(p.text[:80]), "reason": why}
            for p, why in zip(prompts, reasons, strict=True)
            if why is not None
        ]
        long = sum(row["reason"] == "too long" for row in left_out)
        if long:
            self.journal.view.note(
                f"{long} of {len(prompts)} prompts are over model.max_prompt_tokens={limit} and left out"
            )
        if len(left_out) > long:
            first = next(row["reason"] for row in left_out if row["reason"] != "too long")
            self.journal.view.note(f"{len(left_out) - long} of {len(prompts)} prompts are left out: {first}")
        if unusable.notes:
            self.journal.view.note(f"rows of {data.prompts} that cannot be used: {unusable.summary()}")
        if left_out or unusable.notes:
            self.journal.reject("prompts", [*unusable.notes, *left_out])
        splits = split_prompts(short, selection_share=data.selection_share, test_share=data.test_share)
        if not (splits.train and splits.selection and splits.test):
            raise DataError(
                f"data.prompts={data.prompts!r} leaves {len(splits.train)} training, {len(splits.selection)} "
                f"selection and {len(splits.test)} test prompts; each needs at least one: give more prompts"
            )
        return splits

    @cached_property
    def parts(self) -> dict[str, list[Preference]]:
        """Labelled pairs by role: members, watcher, validation and examiner.

        Available once labels are complete. Roles never share a prompt. Only the examiner gets pairs of the
        held-out prompts, on which policies are compared.
        """
        pairs = self._usable_pairs()
        held_out = {p.group for p in (*self.splits.selection, *self.splits.test)}
        free = [p for p in pairs if p.prompt.group not in held_out]
        # Only the examiner can use labels of held-out prompts; other pairs fill up its share.
        lacking = self.reward.examiner_share * len(pairs) - (len(pairs) - len(free))
        shares = self._shares(max(0.0, lacking / max(1, len(free))))
        parts = split_pairs(free, shares)
        if self.examiner:
            parts["examiner"] = parts["examiner"] + [p for p in pairs if p.prompt.group in held_out]
        for role, share in shares.items():
            needed = share or (role == "examiner" and self.examiner)
            if needed and len(parts[role]) < MIN_PAIRS:
                raise DataError(
                    f"only {len(parts[role])} of {len(pairs)} labelled pairs fall to the {role} "
                    f"(reward.{role}_share), at least {MIN_PAIRS} are needed: label more pairs"
                )
        return parts

    def _shares(self, examiner: float) -> dict[str, float]:
        shares = {
            "watcher": self.reward.watcher_share,
            "validation": self.reward.validation_share,
            "examiner": examiner if self.examiner else 0.0,
        }
        return shares | {"members": 1.0 - sum(shares.values())}

    def role(self, prompt: Prompt) -> str:
        """Return the role that learns from samples of a training prompt, the same in every round."""
        return part_of(prompt, self._shares(self.reward.examiner_share))

    def preferences(self) -> list[Preference]:
        """Return the run's labelled comparisons that have a winner."""
        return collectives.from_lead(self._preferences)

    def _preferences(self) -> list[Preference]:
        if self.label.consensus == "mean":
            return self.store.preferences(self.snapshot)
        from burnish.labels.consensus import consensus_of

        found = consensus_of(self.store.labels(at=self.snapshot), self.label.consensus)
        return self.store.preferences(self.snapshot, found)

    def _usable_pairs(self) -> list[Preference]:
        """Return the labelled pairs that the model can read; record the others in rejected/reward.jsonl."""
        kept: list[Preference] = []
        dropped = []
        for pair in self.preferences():
            why = self.misfit(pair)
            if why is None:
                kept.append(pair)
            else:
                dropped.append({"comparison": pair.comparison_id, "reason": why})
        if dropped:
            self.journal.reject("reward", dropped)
        if not kept:
            raise DataError(
                "there are no labelled pairs to train a reward model on; import some (label.preferences) or "
                "collect and label (collect.n_pairs)"
            )
        return kept


@dataclass(frozen=True)
class RunContext:
    """Configuration, models, data and journal that a run passes to its stages."""

    config: RunConfig
    models: Models
    data: Data
    journal: Journal

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        view: View,
        trackers: Trackers,
        hook: Webhook | None = None,
        profile: int = 0,
    ) -> RunContext:
        """Open the context of a run whose stages are executed."""
        config = run.config
        journal = Journal(run, view, trackers, hook=hook, profile=profile)
        fine_tuned = run.path / "sft" if config.sft.demonstrations is not None else None
        models = Models(config.model, fine_tuned, config.ppo.temperature, run.path, shard=config.scale.shard)
        examiner = config.evaluate.examiner == "reward_model"
        data = Data(config.data, config.label, config.reward, examiner, models, journal, config.seed)
        return cls(config, models, data, journal)

    @classmethod
    def alone(cls, run: RunDirectory) -> RunContext:
        """Open the context of a run that is only read: no view, no trackers."""
        return cls.of(run, View("", run.config.ppo.kl.target), Trackers({}, print))
