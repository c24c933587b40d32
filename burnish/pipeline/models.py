"""The models of a run: one frozen base, its codec, and the policies that are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from burnish import spmd
from burnish.config.model import ModelConfig
from burnish.errors import ConfigError
from burnish.models.artefacts import load_policy
from burnish.models.load import Codec, find_device, find_dtype, load_model
from burnish.models.logprobs import Policy, make_policy
from burnish.models.memory import Memory, Told, give_back
from burnish.models.shared_base import Base, Top


@dataclass
class Models:
    """Loaded when first asked for. `fine_tuned` is where SFT leaves the reference policy, None when the model is taken
    as given; `temperature` that of every policy, unless who samples sets another."""

    config: ModelConfig
    fine_tuned: Path | None
    temperature: float
    folder: Path | None = None  # for activations that memory does not hold
    told: Told = lambda what, rows, why: None  # who hears that less is done at once
    shard: bool = False  # whether frozen layers are cut over the processes of the run

    @property
    def cut_over(self) -> bool:
        """Whether frozen layers are cut over processes: then the base is to be made by all of them."""
        return self.shard and spmd.processes() > 1

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        if self.cut_over:
            base, codec = self._cut
            return base.lm, codec
        return self._load(self.fine_tuned)

    def _load(self, path: Path | None) -> tuple[PreTrainedModel, Codec]:
        """A model that is to be cut comes to the main memory first."""
        where = {"device": "cpu"} if self.cut_over else {}
        lm, codec = load_model(self.config.model_copy(update=where), path=path)
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
        """Tokens that a prompt may have before a response; None for a model without a limit."""
        context = context_of(self._loaded[0])
        return None if context is None else context - self.config.max_response_tokens

    @property
    def codec(self) -> Codec:
        return self._loaded[1]

    @cached_property
    def base(self) -> Base:
        """The reference policy (the model as given, or as SFT left it), cut as the configuration says."""
        return self._cut[0] if self.cut_over else self._make_base(*self._loaded)

    def as_given(self) -> tuple[Base, Codec]:
        """The model before SFT."""
        if self.cut_over:
            return self._made_by_all(None)
        lm, codec = self._load(None)
        return self._make_base(lm, codec), codec

    @cached_property
    def _cut(self) -> tuple[Base, Codec]:
        return self._made_by_all(self.fine_tuned)

    def _made_by_all(self, path: Path | None) -> tuple[Base, Codec]:
        """A base of which each process keeps its part: on a machine one process loads after the other, so that its main
        memory holds one whole model at a time."""
        if spmd.size() == 1:
            raise RuntimeError("a base that is cut over processes was asked for by one of them alone")

        def made() -> tuple[Base, Codec]:
            lm, codec = self._load(path)
            return self._make_base(lm, codec), codec

        base, codec = spmd.in_turns(made)
        assert base.shards is not None
        base.shards.join(base)
        return base, codec

    def made_by_all(self) -> None:
        """Make the base now, by all processes, before one of them needs it alone; those that nobody uses any more take
        no room from now on."""
        give_back()
        spmd.tidy()
        _ = self.base

    def _make_base(self, lm: PreTrainedModel, codec: Codec) -> Base:
        config = self.config
        memory = Memory(int(config.cache_gib * 2**30), self.folder, lambda *less: self.told(*less))
        base = Base(
            lm, config.layers, config.lora, checkpointing=config.gradient_checkpointing, memory=memory
        )
        base.check(codec.pad_id)
        device = find_device(config.device)
        base.hold(find_dtype(config.dtype, device))
        if self.cut_over:
            base.shard(device)
        return base

    def new_policy(self) -> Policy:
        """A trainable policy that starts as the reference."""
        return make_policy(Top(self.base), self.codec.pad_id, self.temperature)

    def reference(self, temperature: float | None = None) -> Policy:
        """The frozen reference policy; shares its weights with the base."""
        top = Top(self.base, trainable=False)
        return make_policy(top, self.codec.pad_id, temperature or self.temperature)

    def saved_policy(self, folder: Path) -> Policy:
        """A policy of this run, from its exported folder."""
        return make_policy(load_policy(self.base, folder), self.codec.pad_id, self.temperature)


def context_of(lm: PreTrainedModel) -> int | None:
    """Tokens that a model takes; None where it names no limit."""
    context = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    return None if context is None else int(context)
