"""What the stages of one run share: configuration, run directory, model, prompts, label store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from burnish.checkpoints import atomic_write
from burnish.config import RunConfig
from burnish.config.rates import Job, learning_rate
from burnish.data.preferences import ImportResult, read_preferences
from burnish.data.prompts import PromptSplits, read_prompts, split_prompts
from burnish.data.store import LabelStore
from burnish.errors import ConfigError, DataError
from burnish.models.artefacts import load_policy
from burnish.models.load import Codec, load_model
from burnish.models.logprobs import Policy, make_policy
from burnish.models.shared_base import Base, Top
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.records import Alert, Decision, Prompt, StepStats
from burnish.rehearse import grammar, world
from burnish.runs import RunDirectory

DEFAULT_STORIES = 2400


@dataclass
class Context:
    """Handed to every stage. Heavy things (model, prompts) are loaded when first asked for."""

    config: RunConfig
    run: RunDirectory
    view: View
    trackers: Trackers

    @property
    def gold(self) -> Callable[[Prompt, str], float] | None:
        """A rehearsal's true preference: for the simulated annotators, and for the account given after the
        decision. None when labels are real."""
        return world.gold if self.config.label.source == "simulated" else None

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        fine_tuned = self.config.sft.demonstrations is not None
        lm, codec = load_model(self.config.model, path=self.run.path / "sft" if fine_tuned else None)
        limits = self.config.model
        wanted = limits.max_prompt_tokens + limits.max_response_tokens
        context = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and wanted > context:
            raise ConfigError(
                f"model.max_prompt_tokens={limits.max_prompt_tokens} and model.max_response_tokens="
                f"{limits.max_response_tokens} make {wanted}, but {limits.path!r} takes {context} tokens; lower one"
            )
        return lm, codec

    @property
    def codec(self) -> Codec:
        return self._loaded[1]

    @cached_property
    def base(self) -> Base:
        """The reference policy (the model as given, or as SFT left it), cut as the configuration says."""
        return self.make_base(*self._loaded)

    def make_base(self, lm: PreTrainedModel, codec: Codec) -> Base:
        base = Base(lm, self.config.model.layers, self.config.model.lora)
        base.check(codec.pad_id)
        if self.config.model.frozen_dtype == "bfloat16":
            base.halve_frozen()
        return base

    def new_policy(self) -> Policy:
        """A trainable policy that starts as the reference."""
        return make_policy(Top(self.base), self.codec.pad_id, self.config.ppo.temperature)

    def reference(self) -> Policy:
        """The frozen reference policy; shares its weights with the base."""
        return make_policy(Top(self.base, trainable=False), self.codec.pad_id, self.config.ppo.temperature)

    def saved_policy(self, folder: Path) -> Policy:
        """A policy of this run, from its exported folder."""
        return make_policy(load_policy(self.base, folder), self.codec.pad_id, self.config.ppo.temperature)

    def rate(self, job: Job, given: float | None) -> float:
        """The configured learning rate, or the default for this job and model."""
        return learning_rate(job, self.config.model) if given is None else given

    @cached_property
    def store(self) -> LabelStore:
        return LabelStore(self.run.path / "labels.sqlite")

    def close(self) -> None:
        """Release the label store, if it was opened."""
        if "store" in self.__dict__:
            self.store.close()

    @cached_property
    def imported(self) -> ImportResult:
        """The preference pairs the configuration names; rows that cannot be used are counted in a file."""
        label = self.config.label
        if label.preferences is None:
            raise ConfigError(
                "label.source is 'imported' but label.preferences is not set; name a file or a datasets name"
            )
        return read_preferences(
            label.preferences,
            split=label.split,
            max_pairs=label.max_pairs,
            limit=self.config.data.rejected_rows_limit,
            rejected_to=self.run.path / "rejected" / "import.jsonl",
            token_length=self._pair_tokens,
            max_tokens=self.config.model.max_prompt_tokens + self.config.model.max_response_tokens,
        )

    def _pair_tokens(self, prompt: Prompt, response: str) -> int:
        """Tokens of a pair; infinite-like when either part is over its own limit."""
        n_prompt, n_response = (
            len(self.codec.encode_prompt(prompt)),
            len(self.codec.encode_response(response)),
        )
        limits = self.config.model
        over = n_prompt > limits.max_prompt_tokens or n_response > limits.max_response_tokens
        return n_prompt + n_response + (limits.max_prompt_tokens + limits.max_response_tokens if over else 0)

    @cached_property
    def splits(self) -> PromptSplits:
        """Train, selection and test prompts; those too long for the model are left out, counted and named."""
        data = self.config.data
        if data.prompts == "stories":
            prompts = grammar.prompts(data.n_prompts or DEFAULT_STORIES, self.config.seed)
        elif data.prompts == "preferences":
            prompts = list({p.prompt.id: p.prompt for p in self.imported.pairs}.values())
        else:
            prompts = read_prompts(data.prompts)
        limit = self.config.model.max_prompt_tokens
        lengths = [len(self.codec.encode_prompt(p)) for p in prompts]
        fits = [p for p, n in zip(prompts, lengths, strict=True) if n <= limit][: data.n_prompts]
        long = [
            {"prompt": p.text[:80], "reason": "too long", "tokens": n}
            for p, n in zip(prompts, lengths, strict=True)
            if n > limit
        ]
        if long:
            self.view.note(
                f"{len(long)} of {len(prompts)} prompts are over model.max_prompt_tokens={limit} and left out"
            )
            self.reject("prompts", long)
        splits = split_prompts(fits, selection_share=data.selection_share, test_share=data.test_share)
        if not (splits.train and splits.selection and splits.test):
            raise DataError(
                f"data.prompts={data.prompts!r} leaves {len(splits.train)} training, {len(splits.selection)} "
                f"selection and {len(splits.test)} test prompts; each needs at least one: give more prompts"
            )
        return splits

    def log(self, stage: str, stats: StepStats, extra: dict[str, Any] | None = None) -> None:
        """One update's figures to the run directory, the trackers and the view."""
        self.run.append(f"metrics/{stage}.jsonl", {**(extra or {}), **stats.as_row()})
        prefix = "/".join([stage, *(str(v) for v in (extra or {}).values())])
        self.trackers.log(prefix, stats.step, stats.values)

    def alert(self, stage: str, alert: Alert) -> None:
        self.run.append_event({"kind": "alert", "stage": stage, **alert.as_row()})
        self.view.alert(alert)

    def decide(self, stage: str, step: int, decision: Decision) -> None:
        self.run.append_event({"kind": "decision", "stage": stage, "step": step, **decision.as_row()})
        self.view.decision(decision)

    def reject(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Rows a stage could not use, with their reasons, in a file of their own: nothing is dropped in silence.
        Written whole, so that a stage that looks twice counts once."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        atomic_write(self.run.path / "rejected" / f"{stage}.jsonl", "".join(lines))
