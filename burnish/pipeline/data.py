"""The data of a run: prompts and their splits, imported pairs, the label store, and who learns from which labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from burnish import spmd
from burnish.checkpoints import read_json
from burnish.config.data import DataConfig
from burnish.config.label import LabelConfig
from burnish.config.model import ModelConfig
from burnish.config.reward import RewardConfig
from burnish.data.preferences import ImportResult, read_preferences
from burnish.data.prompts import PromptSplits, part_of, read_prompts, split_pairs, split_prompts
from burnish.data.store import LabelStore, Snapshot
from burnish.data.text import Rejected, printable
from burnish.errors import ConfigError, DataError
from burnish.models.load import Codec
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.records import Preference, Prompt
from burnish.rehearse import grammar, world
from burnish.runs import project_of

DEFAULT_STORIES = 2400
MIN_PAIRS = 8
SNAPSHOT = "labels.json"  # in a run: how far its store had come when its labels were complete


def fits(codec: Codec, limits: ModelConfig, prompt: Prompt, *responses: tuple[str, bool]) -> bool:
    """Whether a model can read a prompt and each of its responses (text, whether it ended)."""
    return misfit(codec, limits, prompt, *responses) is None


def misfit(codec: Codec, limits: ModelConfig, prompt: Prompt, *responses: tuple[str, bool]) -> str | None:
    """Why a model cannot read a prompt and each of its responses: they are over their limits in tokens, or its chat
    template refuses the dialogue. None where it can."""
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
    """Where the labels of a run are: a file, or a URL."""
    return project_of(run) / "labels.sqlite" if label.store is None else label.store


@dataclass
class Data:
    """Read when first asked for; what cannot be used is counted in files of its own."""

    config: DataConfig
    label: LabelConfig
    reward: RewardConfig
    examiner: bool  # whether a reward model is the examiner, and needs pairs of its own
    models: Models
    journal: Journal
    seed: int

    @property
    def gold(self) -> Callable[[Prompt, str], float] | None:
        """A rehearsal's true preference: for the simulated annotators, and for the account given after the
        decision. None when labels are imported, or of prompts from elsewhere."""
        ours = self.label.source == "simulated" or (
            self.label.source in ("judge", "people") and self.config.prompts == "stories"
        )
        return world.gold if ours else None

    @cached_property
    def store(self) -> LabelStore:
        """The run's own labels, or those of a store that it shares."""
        return LabelStore(label_store_of(self.journal.path, self.label))

    @property
    def snapshot(self) -> Snapshot | None:
        """What of the store the run learns from: as far as it had come when the label stage was done. None before, and
        in runs of before snapshots."""
        file = self.journal.path / SNAPSHOT
        return Snapshot(**read_json(file)) if file.exists() else None

    def close(self) -> None:
        """Release the label store, if it was opened."""
        if "store" in self.__dict__:
            self.store.close()

    @cached_property
    def imported(self) -> ImportResult:
        """The preference pairs the configuration names."""
        if self.label.preferences is None:
            raise ConfigError(
                "label.source is 'imported' but label.preferences is not set; name a file or a datasets name"
            )
        read = read_preferences(
            self.label.preferences,
            split=self.label.split,
            max_pairs=self.label.max_pairs,
            limit=self.config.rejected_rows_limit,
            rejected_to=self.journal.path / "rejected" / "import.jsonl",
            misfit=self.misfit,
        )
        if read.rejected:
            why = ", ".join(f"{reason}: {n}" for reason, n in read.rejected.most_common(3))
            bad = read.rejected.total()
            self.journal.view.note(
                f"{bad} of {read.rows} rows of {self.label.preferences} cannot be used ({why})"
            )
        return read

    def misfit(self, pair: Preference) -> str | None:
        """Why the run's models cannot read a pair, None where they can."""
        sides = ((pair.chosen, pair.chosen_ended), (pair.rejected, pair.rejected_ended))
        return misfit(self.models.codec, self.models.config, pair.prompt, *sides)

    @cached_property
    def splits(self) -> PromptSplits:
        """Train, selection and test prompts; those too long for the model are left out, counted and named."""
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
        """Who learns from which labelled pairs: members, watcher, validation and examiner never share a prompt, and no
        member or watcher sees a prompt that the policies are examined on. To be asked when labels are complete."""
        pairs = self._usable_pairs()
        held_out = {p.group for p in (*self.splits.selection, *self.splits.test)}
        free = [p for p in pairs if p.prompt.group not in held_out]
        # Labels of held-out prompts are of no use to anybody else; only what they lack of its share comes on top.
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
        """Who learns from what is sampled for a training prompt: in every round the same."""
        return part_of(prompt, self._shares(self.reward.examiner_share))

    def preferences(self) -> list[Preference]:
        """What the run's labels come to: labelled comparisons with a winner."""
        return spmd.from_lead(self._preferences)

    def _preferences(self) -> list[Preference]:
        if self.label.consensus == "mean":
            return self.store.preferences(self.snapshot)
        from burnish.labels.consensus import consensus_of

        found = consensus_of(self.store.labels(at=self.snapshot), self.label.consensus)
        return self.store.preferences(self.snapshot, found)

    def _usable_pairs(self) -> list[Preference]:
        """Labelled pairs with a side that won and a length the model can take; the rest is counted in a file."""
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
