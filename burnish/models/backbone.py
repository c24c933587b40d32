"""The frozen base that all models of a run share, and the trainable layers on top of it.

`all` trains a full copy. `lora` shares every frozen weight and trains adapters. `top:N` shares
everything below the top N layers, whose activations are computed once and reused
(`Backbone.features`). `lora_top:N` trains adapters on those N layers and shares their frozen
weights too.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from burnish.config.model import LoraConfig
from burnish.errors import ModelError
from burnish.models import engine
from burnish.models.batches import Batch, Positions, pad_batch, precise, read
from burnish.models.device import UNMEASURED_PRICE, pass_price, sums_in_float32, traits
from burnish.models.engine import inner, lay_out
from burnish.models.memory import Memory
from burnish.models.shards import Shards, copied, state_of

TOP_SHARE = 5  # by default, one in this many layers is trained
FAST_TOLERANCE = 1e-3  # relative to the largest hidden state


class Backbone:
    """The frozen language model of a run, cut at `layers`.

    Tops made from it share its frozen tensors. With `checkpointing`, a forward pass with gradient
    keeps only the inputs of each layer and computes the rest again. A model that was loaded in
    bfloat16 is held so from the start (`hold`).
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        layers: str = "all",
        lora: LoraConfig | None = None,
        *,
        checkpointing: bool = False,
        memory: Memory | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.memory = memory or Memory()
        self.shards = shards  # the layers that are sharded over processes
        self.lm = lm.requires_grad_(False).eval()
        self.dtype = self._loaded_in(lm)  # of the linear layers that are never trained
        self.pass_price = traits(self.device).pass_price or UNMEASURED_PRICE  # see `micro_batches`
        self.checkpointing = checkpointing
        if checkpointing:
            lm.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        self.layers = self._suited() if layers == "auto" else layers
        self.lora = lora or LoraConfig()
        self.cut = self._cut(self.layers)
        self.cuts = {self.cut} - {0}  # cuts where sampling keeps activations, of frozen layers only
        self.whole: Backbone = self  # the base that this one is a part of
        self._parts: dict[tuple[int, str], Backbone] = {}
        self.bottom = self.body_of(slice(0, self.cut)) if self.cut else None
        if shards is None:
            lay_out(self.lm.base_model)

    @property
    def device(self) -> torch.device:
        """Device of the model and of everything computed with it."""
        return self.lm.get_input_embeddings().weight.device

    @property
    def tied(self) -> bool:
        """True if the output layer is the embedding."""
        return self.lm.get_output_embeddings().weight is self.lm.get_input_embeddings().weight

    @property
    def hidden_size(self) -> int:
        """Size of the hidden states."""
        return int(self.lm.config.get_text_config().hidden_size)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.lm.config.get_text_config().num_hidden_layers)

    def depths_of(self, layers: str) -> list[int]:
        """Return how many of the lowest layers can form a model of their own (`at`).

        Each depth exceeds the number of trained layers. A model that cannot be cut has only its
        full depth.
        """
        trained = int(layers.split(":")[1]) if ":" in layers else 0
        return list(range(trained + 1, self.depth + 1)) if self._can_be_cut else [self.depth]

    def _span(self, layers: str) -> str:
        depths = self.depths_of(layers)
        return f"one of {depths[0]} to {depths[-1]}" if depths else "fewer trained layers"

    def at(self, depth: int, layers: str | None = None) -> Backbone:
        """Return the base without its layers above `depth`, with the final norm kept.

        `layers` of it are trained, by default as in the whole. It shares every tensor, and sampling
        from the whole keeps the activations that it needs. Raise ModelError for a depth that the
        model does not allow.
        """
        layers = self.layers if layers in (None, "auto") else layers
        assert layers is not None
        if (depth, layers) == (self.depth, self.layers):
            return self
        if depth not in self.depths_of(layers):
            raise ModelError(
                f"a depth of {depth} does not suit a {type(self.lm).__name__} of {self.depth} layers with "
                f"layers={layers!r} trained; use {self._span(layers)}"
            )
        if (depth, layers) not in self._parts:
            lm: Any = copy.deepcopy(self.lm, self._shared())
            if depth < self.depth:
                _keep_layers(lm.base_model, slice(0, depth))
            part = Backbone(
                lm,
                layers,
                self.lora,
                checkpointing=self.checkpointing,
                memory=self.memory,
                shards=self.shards,
            )
            part.dtype, part.whole, part.pass_price = self.dtype, self.whole, self.pass_price
            part.__dict__["_fast"] = self._fast
            # Above its own cut, a policy runs its own layers, so their outputs are not the base's.
            self.whole.cuts |= {cut for cut in part.cuts if cut <= self.whole.cut}
            self._parts[depth, layers] = part
        return self._parts[depth, layers]

    def _shared(self) -> dict[int, Any]:
        """Return a memo with which `deepcopy` copies modules but shares their tensors."""
        return {id(t): t for t in (*self.lm.parameters(), *self.lm.buffers())}

    def _suited(self) -> str:
        """Return the layers that `auto` means here: the top fifth, at least two.

        A model that cannot be cut, or has at most two layers, is trained whole.
        """
        depth = len(self.lm.base_model.layers) if self._can_be_cut else 0
        return f"top:{max(2, depth // TOP_SHARE)}" if depth > 2 else "all"

    @property
    def _can_be_cut(self) -> bool:
        body = self.lm.base_model
        return hasattr(body, "layers") and hasattr(body, "norm") and hasattr(body, "embed_tokens")

    def _cut(self, layers: str) -> int:
        if ":" not in layers:
            return 0
        body: Any = self.lm.base_model
        if not self._can_be_cut:
            raise ModelError(
                f"model.layers={layers!r} cannot cut a {type(self.lm).__name__}; use 'lora' or 'all'"
            )
        n = int(layers.split(":")[1])
        depth = len(body.layers)
        if n >= depth:
            raise ModelError(f"model.layers={layers!r} but the model has {depth} layers; use 'all'")
        return depth - n

    def body_of(self, part: slice) -> nn.Module:
        """Return the transformer body with some of its layers, sharing every tensor with the base.

        A part that ends below the top layer has no final norm.
        """
        body: Any = copy.deepcopy(self.lm.base_model, self._shared())
        if self.cut:
            body.config = copy.deepcopy(body.config)
            if part.stop is not None:
                body.norm = nn.Identity()
            _keep_layers(body, part)
        return body.eval()

    def _loaded_in(self, lm: PreTrainedModel) -> torch.dtype:
        """Return the precision of a loaded model; cast to float32 what is never held in another."""
        if lm.get_input_embeddings().weight.dtype != torch.bfloat16:
            return torch.float32
        output = lm.get_output_embeddings()
        for module in lm.modules():
            if module is output or not isinstance(module, nn.Linear | Conv1D):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.float()
        return torch.bfloat16

    @cached_property
    def _sketch(self) -> Backbone:
        """A few layers of a model that was loaded in bfloat16, in float32, to check how it is built.

        They are the lowest two, and one of each other kind: layers whose modules have other settings,
        such as one without a rotary embedding.
        """
        lm: Any = copy.deepcopy(self.lm, self._shared())
        if self._can_be_cut:
            kinds = [_kind_of(lm.base_model, number) for number in range(self.depth)]
            _keep_layers(lm.base_model, [n for n, kind in enumerate(kinds) if n < 2 or kind not in kinds[:n]])
        return Backbone(copy.deepcopy(lm).float(), "top:1" if self.cut and self.depth > 1 else "all")

    @torch.no_grad()
    def hold(self, dtype: torch.dtype, device: torch.device | None = None) -> None:
        """Convert the base's linear layers below the cut, or all of them without a cut, to `dtype`.

        So are the embedding and the output layer, if the engine runs the model on a device whose
        products return float32 sums.
        Norms and the activations between layers stay in float32. Policies created afterwards start
        from the rounded weights, so that KL to the reference starts at 0. `device` is that of the
        run, if the weights are not there.
        """
        body: Any = self.lm.base_model
        if dtype == torch.float32:
            if self.dtype != dtype:
                self.lm.float()
                self.dtype = dtype
                lay_out(body)
            return
        fast = self.fast  # decided by what the model computes in float32
        if self.device.type == "meta":
            fast = engine.is_llama_like(self.lm)
        self.dtype = dtype
        # A model's own pass would add to an embedding in bfloat16, and keep its activations so.
        if fast and sums_in_float32(device or self.device, dtype):
            for module in (self.lm.get_input_embeddings(), self.lm.get_output_embeddings()):
                module.to(dtype)
        for part in body.layers[: self.cut] if self.cut else [body]:
            for module in part.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    module.to(dtype)
        lay_out(body)

    @torch.no_grad()
    def measure_price(self) -> None:
        """Measure the price of one more forward pass on this device, where it is not known."""
        if traits(self.device).pass_price is not None:
            return
        top = TrainableLayers(self, trainable=False)

        def forward(tokens: int) -> torch.Tensor:
            words = self.lm.get_input_embeddings().num_embeddings
            ids = [[(7 * i + row) % words for i in range(32)] for row in range(tokens // 32)]
            batch = pad_batch(ids, [[]] * len(ids), 0, self.device)
            return top.hidden_at(batch, slice(-1, None))

        self.pass_price = pass_price(forward, self.device)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Frozen layers that can be sharded over processes: those below the cut, or all with LoRA."""
        body: Any = self.lm.base_model
        layers = getattr(body, "layers", ())
        return layers[: self.cut] if self.cut else () if self.layers == "all" else layers

    def shard(self, device: torch.device) -> None:
        """Shard the frozen layers over processes and keep only this process's part.

        These are the layers below the cut, or all layers with LoRA. The part and all other tensors move
        to `device`. All processes of a run must call this after `hold`, before anything is created from
        this base, and must then call `shards.join`. Raise ModelError for a model without a list of frozen
        layers.
        """
        body: Any = self.lm.base_model
        if not self.blocks:
            raise ModelError(
                f"scale.shard=true, but a {type(self.lm).__name__} at model.layers={self.layers!r} has no list of "
                "frozen layers to shard over processes; train lora or top:N, or set it to false"
            )
        self.shards = Shards(self.blocks, device)
        with torch.no_grad():
            for tensor in self._shared().values():
                if id(tensor) not in self.shards.block_of:
                    tensor.data = tensor.data.to(device)
        self.shards.watch(body.layers)  # copies of the layers keep the hooks
        self.__dict__["_fast"] = False  # the engine calls no layer as a whole, so no hook would run
        self.bottom = self.body_of(slice(0, self.cut)) if self.cut else None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision of products: that of the held weights, or that of a model loaded in float64."""
        return self.dtype if self.dtype != torch.float32 else self.lm.get_input_embeddings().weight.dtype

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Compute products in the held weights' precision, casting trained weights."""
        if self.dtype == torch.float32 or self.device.type == "meta":  # which autocast does not know
            yield
            return
        with torch.autocast(self.device.type, self.dtype):
            yield

    @torch.no_grad()
    def features(self, batch: Batch) -> torch.Tensor | None:
        """Return activations (B, P + T, D) below the cut, or None without a cut."""
        if self.bottom is None:
            return None
        if self.fast:
            x = precise(self.lm.get_input_embeddings()(batch.input_ids))
            with self.precision():
                return engine.hidden_at(self.bottom, x, batch.attention_mask, batch.position_ids, slice(None))
        return self._own_features(batch)

    def _own_features(self, batch: Batch) -> torch.Tensor:
        """Compute `features` with the model's own forward pass."""
        return precise(self._own_pass(self.bottom, batch, hidden_states=False).last_hidden_state)

    def _own_pass(self, body: Any, batch: Batch, *, hidden_states: bool) -> Any:
        where = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
        with self.precision():
            return body(
                input_ids=batch.input_ids, **where, output_hidden_states=hidden_states, use_cache=False
            )

    @torch.no_grad()
    def row_features(
        self,
        prompt_ids: Sequence[Sequence[int]],
        response_ids: Sequence[Sequence[int]],
        pad_id: int,
        cuts: Collection[int],
    ) -> dict[int, list[torch.Tensor]]:
        """Return a mapping from each number of layers in `cuts` to the hidden states after them.

        Each row has one tensor (length, D). A prompt that several rows share is computed once if the
        model allows it. The states after the last layer include the final norm, unless the engine
        computes them.
        """
        if self._fast:
            with self.precision():
                return engine.features(self.lm.base_model, prompt_ids, response_ids, cuts)
        batch = pad_batch(prompt_ids, response_ids, pad_id, self.device)
        body = self.bottom if max(cuts) <= self.cut else self.lm.base_model
        states = self._own_pass(body, batch, hidden_states=True).hidden_states
        masks = batch.attention_mask.bool()
        return {
            cut: [precise(row[mask]) for row, mask in zip(states[cut], masks, strict=True)] for cut in cuts
        }

    def normed(self, depth: int) -> bool:
        """Check whether `row_features` returns the output at `depth` after the final norm."""
        return depth == self.depth and not self._fast

    @property
    def fast(self) -> bool:
        """True if the engine may run this model.

        The model must be built like Llama, and in float32 the engine must give the same hidden
        states as the model's own forward pass.
        """
        return self._fast

    @cached_property
    def _fast(self) -> bool:
        if self.device.type == "meta" or not engine.is_llama_like(self.lm):
            return False
        if self.dtype != torch.float32:
            return self._sketch._fast
        batch = self._sample_batch(0)
        real = batch.attention_mask.bool()
        with torch.no_grad():
            top = TrainableLayers(self, trainable=False)
            if self.cut:
                below = self._own_features(batch)
                batch = batch.with_features(below)
            own = top.hidden(batch)[real]
            ours = engine.hidden_at(
                top.body, top.inputs(batch), batch.attention_mask, batch.position_ids, slice(None)
            )[real]
            if self.cut:
                own = torch.cat([own, below[real]])
                rows = engine.features(self.lm.base_model, *_sample_rows(self.lm), {self.cut})[self.cut]
                ours = torch.cat([ours, *rows])
        return float((own - ours).abs().max()) <= FAST_TOLERANCE * max(1.0, float(own.abs().max()))

    def _sample_batch(self, pad_id: int) -> Batch:
        return pad_batch(*_sample_rows(self.lm), pad_id, self.device)

    @torch.no_grad()
    def check(self, pad_id: int, tolerance: float = 1e-3) -> None:
        """Raise ModelError unless bottom, top and output layer together give the whole model's logits."""
        if self.dtype != torch.float32:
            self._sketch.check(pad_id, tolerance)
            _ = self._fast
            del self._sketch
            return
        batch = self._sample_batch(pad_id)
        real = batch.attention_mask.bool()
        whole = self.lm(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
        ).logits[real]
        hidden = TrainableLayers(self, trainable=False).hidden(batch.with_features(self.features(batch)))
        parts = self.lm.get_output_embeddings()(hidden)[real]
        gap, scale = float((whole - parts).abs().max()), float(whole.abs().max())
        if not gap <= tolerance * max(scale, 1.0):
            body = self.lm.base_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
            ).last_hidden_state
            plain = float((whole - self.lm.get_output_embeddings()(body)[real]).abs().max())
            scaled = plain > tolerance * max(scale, 1.0)
            hint = "it post-processes its logits; use another model" if scaled else "use 'lora' or 'all'"
            raise ModelError(
                f"a {type(self.lm).__name__} at model.layers={self.layers!r} taken apart gives logits that are "
                f"{gap:.2g} off: {hint}"
            )


class TrainableLayers(nn.Module):
    """The layers above the cut, as a body of their own.

    With `trainable` False they share the base's weights (the reference policy, at no memory cost).
    Adapters are drawn from `seed`.
    """

    def __init__(
        self, base: Backbone, *, trainable: bool = True, layers: str | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.base_ref = (base,)  # a tuple keeps the frozen base out of parameters()
        self.mode = layers or base.layers
        body: Any = base.body_of(slice(base.cut, None))
        if trainable and self.mode.startswith("lora"):
            body = _with_lora(body, base.lora, seed)
        elif trainable and base.cut:
            body.layers = precise(copied(body.layers, base.shards)).requires_grad_(True)
            body.norm = precise(copy.deepcopy(body.norm)).requires_grad_(True)
        elif trainable:
            body = precise(copied(base.lm.base_model, base.shards)).requires_grad_(True)
        if trainable and not self.mode.startswith("lora"):
            lay_out(body)
        self.body = body
        self.output: nn.Linear | None = None  # an output layer of its own, see `own_output`

    @property
    def base(self) -> Backbone:
        """The frozen base below these layers."""
        return self.base_ref[0]

    def own_output(self) -> nn.Linear:
        """Copy the base's output layer and train it like the other layers.

        Only a policy that trains all of a model with untied embeddings needs it.
        """
        if self.output is None:
            trained = any(p.requires_grad for p in self.parameters())
            output: nn.Linear = precise(copy.deepcopy(self.base.lm.get_output_embeddings()))
            self.output = output.requires_grad_(trained)
        return self.output

    def forward(self, **inputs: Any) -> Any:
        """Run the body on its inputs."""
        return self.body(**inputs)

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Return the input (B, P + T, D) of the lowest layer."""
        if batch.features is not None:
            return batch.features
        if not self.base.cut:
            return precise(inner(self.body).embed_tokens(batch.input_ids))
        features = self.base.features(batch)
        assert features is not None
        return features

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Return the last hidden states (B, P + T, D) from the model's own forward pass."""
        assert not batch.layers_done, "a forward pass runs every layer"
        where = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
        what = {"inputs_embeds": self.inputs(batch)} if self.base.cut else {"input_ids": batch.input_ids}
        with self.base.precision(), self._recomputed():
            # Recomputed layers would fill a cache twice.
            hidden: torch.Tensor = self.body(**what, **where, use_cache=False).last_hidden_state
        return precise(hidden)

    @contextmanager
    def _recomputed(self) -> Iterator[None]:
        """Keep only the inputs of layers while a gradient is needed and the base asks for it.

        transformers does this only for layers in training mode. Their submodules stay in eval mode,
        so no dropout is applied.
        """
        wanted = self.base.checkpointing and torch.is_grad_enabled()
        layers = (
            [m for m in self.body.modules() if isinstance(m, GradientCheckpointingLayer)] if wanted else []
        )
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def hidden_at(self, batch: Batch, at: Positions) -> torch.Tensor:
        """Return last hidden states (B, Q, D) at the positions, computing little else if possible."""
        if not self.base.fast:
            return read(self.hidden(batch), at)
        where = (batch.attention_mask, batch.position_ids, at)
        with self.base.precision():
            return engine.hidden_at(self.body, self.inputs(batch), *where, first=batch.layers_done)

    @property
    def frozen_layers(self) -> int:
        """Number of frozen layers below the lowest trained one."""
        layers = inner(self.body).layers
        trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
        return trained.index(True) if True in trained else len(trained)

    def run_frozen(self, batch: Batch) -> torch.Tensor:
        """Compute the input (B, P + T, D) of the lowest trained layer."""
        where = (batch.attention_mask, batch.position_ids)
        with self.base.precision():
            return engine.run_frozen(self.body, self.frozen_layers, self.inputs(batch), *where)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def train_only(self, layers: int) -> None:
        """Freeze everything below the top `layers` layers, so that no gradient flows there."""
        body = inner(self.body)
        kept = {id(p) for part in (*body.layers[-layers:], body.norm) for p in part.parameters()}
        for parameter in self.trained_parameters():
            parameter.requires_grad_(id(parameter) in kept)

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return the trained tensors by name; the rest of a checkpoint is the frozen base."""
        return {n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad}

    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Load the tensors of `trained_state`; raise ModelError if their names differ."""
        own = dict(self.named_parameters())
        expected = {n for n, p in own.items() if p.requires_grad}
        if set(state) != expected:
            odd = sorted(set(state) ^ expected)[:3]
            raise ModelError(
                f"the checkpoint does not fit this model: {odd} differ; was model.layers changed?"
            )
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return the whole body's state (bottom, merged adapters), named as in the plain model."""
        body: Any = self.body
        # No single device holds all of a sharded base.
        place = self.base.device if self.base.shards is None else torch.device("cpu")
        if hasattr(body, "peft_config"):
            # In float32: adapters often change a rounded weight by less than its rounding error.
            body = copied(body, self.base.shards, place).to(place).float().merge_and_unload()
        state = dict(state_of(self.base.lm.base_model, self.base.shards))
        for name, value in state_of(body, self.base.shards):
            state[shift(name, self.base.cut)] = value
        return state


def _sample_rows(lm: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts and responses of different lengths, with ids from the whole vocabulary."""
    vocabulary = lm.get_input_embeddings().num_embeddings
    ids = [[(31 * i + 17 * row) % vocabulary for i in range(8 + 3 * row)] for row in range(3)]
    return [row[:5] for row in ids], [row[5:] for row in ids]


def _kind_of(body: Any, number: int) -> tuple[Any, ...]:
    """Return what tells a kind of layer from others: its type in the configuration, and plain settings."""
    types = getattr(body.config, "layer_types", None)
    settings = sorted(
        (name, key, str(value))
        for name, module in body.layers[number].named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and key != "layer_idx"
    )
    return types[number] if types else None, *settings


def _keep_layers(body: Any, part: slice | Sequence[int]) -> None:
    """Keep only the layers `part` of a body, and update its configuration."""
    numbers = range(len(body.layers))[part] if isinstance(part, slice) else part
    if getattr(body.config, "layer_types", None):
        body.config.layer_types = [body.config.layer_types[n] for n in numbers]
    body.layers = nn.ModuleList([body.layers[n] for n in numbers])
    body.config.num_hidden_layers = len(body.layers)
    for index, layer in enumerate(body.layers):
        layer.self_attn.layer_idx = index


def shift(name: str, by: int) -> str:
    """Rename `layers.0.x` of a top to `layers.<cut>.x`, its name in the whole model."""
    parts = name.split(".")
    if by and parts[0] == "layers":
        parts[1] = str(int(parts[1]) + by)
    return ".".join(parts)


def _with_lora(body: Any, config: LoraConfig, seed: int) -> Any:
    """Return `body` with adapters that start at zero (B is 0); A is drawn from `seed`."""
    from peft import LoraConfig as PeftLora, get_peft_model

    targets = config.target_modules
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(
            body,
            PeftLora(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=0.0,
                fan_in_fan_out=any(isinstance(m, Conv1D) for m in body.modules()),
                target_modules=targets if isinstance(targets, str) else list(targets),
            ),
        )
