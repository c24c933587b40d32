"""The models of a run as far as they can be known without their weights: shapes on no device, and slices of them with
random weights, to be timed."""

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
    """Models without weights: codec and shapes are real, and no policy of them can say anything. `device` is where the
    run is to be; nothing is put there."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        return load_model(self.config, weights=False)

    def _make_base(self, lm: PreTrainedModel, codec: Codec) -> Backbone:
        base = Backbone(
            lm, self.config.layers, self.config.lora, checkpointing=self.config.gradient_checkpointing
        )
        base.hold(find_dtype(self.config.dtype, self.device))
        return base

    @property
    def trained_layers(self) -> int:
        """How many layers a policy trains."""
        return self.base.depth - self.base.cut

    def training(self, layers: str) -> SketchedModels:
        """The same models, of which these layers are trained."""
        other = replace(self, config=self.config.model_copy(update={"layers": layers}))
        other.__dict__["_loaded"] = self._loaded
        return other

    def slice(self, frozen: int, trained: int) -> Models:
        """A model of so many layers below the cut and above it, of the true widths, with random weights."""
        lm = self._loaded[0]
        known = copy.deepcopy(lm.config)
        text = known.get_text_config()
        text.num_hidden_layers = frozen + trained
        if isinstance(vars(text).get("layer_types"), list):  # of some it follows from the number of layers
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
    """Models of what is in memory already."""

    given: tuple[PreTrainedModel, Codec] | None = None

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Codec]:
        assert self.given is not None
        return self.given
