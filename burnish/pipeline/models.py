"""The models of a run: one frozen base, its codec, and the policies that are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from burnish.config.model import ModelConfig
from burnish.errors import ConfigError
from burnish.models.artefacts import load_policy
from burnish.models.load import Codec, find_dtype, load_model
from burnish.models.logprobs import Policy, make_policy
from burnish.models.memory import Memory, Told
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

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        lm, codec = load_model(self.config, path=self.fine_tuned)
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
        return self._make_base(*self._loaded)

    def as_given(self) -> tuple[Base, Codec]:
        """The model before SFT."""
        lm, codec = load_model(self.config)
        return self._make_base(lm, codec), codec

    def _make_base(self, lm: PreTrainedModel, codec: Codec) -> Base:
        config = self.config
        memory = Memory(int(config.cache_gib * 2**30), self.folder, lambda *less: self.told(*less))
        base = Base(
            lm, config.layers, config.lora, checkpointing=config.gradient_checkpointing, memory=memory
        )
        base.check(codec.pad_id)
        base.hold(find_dtype(config.dtype, base.device))
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
