"""Models of a run without their weights: shapes on the meta device, and random slices to time."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from burnish.models.backbone import Backbone
from burnish.models.load import Codec, find_dtype, load_model
from burnish.pipeline.context import Models


@dataclass
class SketchedModels(Models):
    """Models without weights: codec and shapes are real, but no policy can generate.

    `device` is the device of the run; nothing is put there.
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        return load_model(self.config, weights=False)

    def _make_base(self, lm: PreTrainedModel, codec: Codec) -> Backbone:
        base = Backbone(
            lm, self.config.layers, self.config.lora, checkpointing=self.config.gradient_checkpointing
        )
        base.hold(find_dtype(self.config.dtype, self.device, base.hidden_size), self.device)
        return base

    @property
    def trained_layers(self) -> int:
        """Number of layers that a policy trains."""
        return self.base.depth - self.base.cut

    def training(self, layers: str) -> SketchedModels:
        """Return the same models with `layers` as the trained layers."""
        other = replace(self, config=self.config.model_copy(update={"layers": layers}))
        other.__dict__["_loaded"] = self._loaded
        return other

    def slice(self, frozen: int, trained: int) -> Models:
        """Return a model with `frozen` and `trained` layers of true width and random weights."""
        lm = self._loaded[0]
        known = copy.deepcopy(lm.config)
        text = known.get_text_config()
        text.num_hidden_layers = frozen + trained
        if isinstance(vars(text).get("layer_types"), list):  # some models derive it from the depth
            text.layer_types = text.layer_types[: frozen + trained]
        kind = self.base.layers.partition(":")[0]
        layers = f"{kind}:{trained}" if frozen else kind
        config = self.config.model_copy(update={"layers": layers})
        with self.device, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random: Any = AutoModelForCausalLM.from_config(known, dtype=torch.float32)
        return GivenModels(config, None, self.temperature, given=(random.eval(), self.codec))


@dataclass
class GivenModels(Models):
    """Models built from a model and a codec in memory."""

    given: tuple[PreTrainedModel, Codec] | None = None

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        assert self.given is not None
        return self.given
