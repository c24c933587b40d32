"""Memory of a run, estimated before anything is loaded.

Parameters are counted by shapes on the meta device. What layers keep for the backward pass is found
by running them there. The rest is counted.

Every stage holds something all the time (its models) and something for a while (sampling, a
micro-batch, a checkpoint). Its peak is the first plus the largest of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from burnish.config import RunConfig
from burnish.errors import EstimateError
from burnish.models import engine
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.device import traits
from burnish.models.heads import new_reward_head
from burnish.models.sequences import PROMPTS_AT_ONCE
from burnish.models.shards import linear_weights
from burnish.pipeline.gate import GATE_ANSWERS, GATE_PROMPTS

SINGLE = 4  # bytes of a float32
MOMENTS = 2  # moments that Adam keeps per trained weight
NAME_OF_EXPERTS = "_experts_implementation"  # key in a transformers configuration
PROBE_TOKENS = 40  # tokens to run layers on; only attention matrices have this size twice in a row
BOOTSTRAPPED = 0.63  # share of distinct items in a bootstrap sample
INSIDE = 3  # copies of an MLP's activations: its two products, and their product
SAMPLING_ROWS = 4  # copies of one token's logits per slot: logits, exponentials, sums, products
CHUNK_COPIES = 3  # copies of a chunk of logits: logits, differences from maxima, product with weights


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and of responses, on average and at most."""

    prompt: float
    response: float
    longest_prompt: int
    longest_response: int

    @property
    def mean(self) -> float:
        """Average tokens of a prompt with its response."""
        return self.prompt + self.response

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response."""
        return self.longest_prompt + self.longest_response

    @property
    def usual(self) -> float:
        """Tokens of a row in a forward pass with padding; rows of similar length share a batch."""
        return (self.mean + self.longest) / 2


@dataclass(frozen=True)
class StageMemory:
    """Memory of one stage on one device, in bytes by part.

    Parts in `held` are allocated during the whole stage. Parts in `passing` are allocated one at a
    time.
    """

    held: dict[str, int]
    passing: dict[str, int]

    @property
    def largest(self) -> str:
        """Name of the largest passing part."""
        return max(self.passing, key=lambda name: self.passing[name])

    @property
    def peak(self) -> int:
        """Peak memory in bytes: all parts in `held` plus the largest part in `passing`."""
        return sum(self.held.values()) + max(self.passing.values(), default=0)


@dataclass
class Shapes:
    """Sizes of the models of a configuration, from a backbone without weights."""

    base: Backbone  # on the meta device
    config: RunConfig
    device: torch.device  # device of the run

    @cached_property
    def fast(self) -> bool:
        """True if the engine probably runs the model; its own check needs the weights."""
        return not self.config.scale.shard and engine.is_llama_like(self.base.lm)

    @property
    def vocabulary(self) -> int:
        """Rows of the output layer."""
        return int(self.base.lm.get_output_embeddings().weight.shape[0])

    @cached_property
    def weights(self) -> int:
        """Bytes of the frozen base."""
        return sum(p.numel() * p.element_size() for p in self.base.lm.parameters())

    @cached_property
    def blocks(self) -> list[int]:
        """Bytes of the linear layers of every block that can be sharded over processes."""
        return [sum(p.numel() * p.element_size() for p in linear_weights(b)) for b in self.base.blocks]

    def base_weights(self, world: int) -> int:
        """Return the bytes of the frozen base on each of `world` devices.

        That is all of it, or with sharding a part of every block. Sharding adds one gathered block for the
        device itself and one for another.
        """
        if world == 1 or not self.config.scale.shard:
            return self.weights
        cut = sum(self.blocks)
        return self.weights - cut + cut // world + 2 * max(self.blocks, default=0)

    @cached_property
    def parameters(self) -> int:
        """Number of weights of the base."""
        return sum(p.numel() for p in self.base.lm.parameters())

    @cached_property
    def embedding(self) -> int:
        """Number of weights of the embedding, which a forward pass looks up."""
        weight: torch.Tensor = self.base.lm.get_input_embeddings().weight
        return weight.numel()

    @cached_property
    def policy(self) -> int:
        """Number of weights that a policy trains, its own output layer included."""
        trained = sum(p.numel() for p in TrainableLayers(self.base).trained_parameters())
        own_output = self.base.layers == "all" and not self.base.tied
        return trained + (self.base.lm.get_output_embeddings().weight.numel() if own_output else 0)

    @cached_property
    def member_base(self) -> Backbone:
        """Backbone of full depth with the layers that a reward model trains."""
        return self.base.at(self.base.depth, self.config.reward.layers)

    @cached_property
    def member(self) -> int:
        """Number of weights that a reward model trains; the same wherever it reads."""
        head = new_reward_head(self.member_base, 0, "plan", layers=self.member_base.layers, dropout=0.0)
        return sum(p.numel() for p in head.trained())

    @cached_property
    def value(self) -> int:
        """Number of weights that the value function trains; 0 without one."""
        if self.config.training.advantage not in ("auto", "gae"):
            return 0
        top, layers = TrainableLayers(self.base), self.config.ppo.value_layers
        if layers is not None and self.fast:
            top.train_only(layers)
        return sum(p.numel() for p in top.trained_parameters())

    @cached_property
    def layer_bytes(self) -> float:
        """Bytes per token that the layers of a policy keep for the backward pass."""
        return kept_by(TrainableLayers(self.base), checkpointing=self.base.checkpointing)

    @cached_property
    def member_layer_bytes(self) -> float:
        """Bytes per token that the layers of a reward model keep for the backward pass."""
        return kept_by(TrainableLayers(self.member_base), checkpointing=self.base.checkpointing)

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes per token of keys and values in all layers."""
        body: Any = self.base.lm.base_model
        size = self.base.dtype.itemsize
        if not hasattr(body, "layers"):
            return 2 * self.base.depth * self.base.hidden_size * size
        projections = [getattr(getattr(layer, "self_attn", None), "k_proj", None) for layer in body.layers]
        width = sum(p.out_features if p is not None else self.base.hidden_size for p in projections)
        return 2 * width * size

    @cached_property
    def widest(self) -> int:
        """Numbers per token in the widest part of a layer, its MLP."""
        body: Any = self.base.lm.base_model
        layers = getattr(body, "layers", [body])
        return max((n for p in linear_weights(layers[0]) for n in p.shape), default=0)

    @property
    def chunk(self) -> int:
        """Bytes of the logits that are held at once."""
        tokens = max(1, traits(self.device).logits // self.vocabulary)
        return tokens * self.vocabulary * SINGLE * CHUNK_COPIES

    @property
    def merged(self) -> int:
        """Bytes of the copies that the engine makes of trained layers for sampling.

        Adapters are merged in them, and in bfloat16 trained weights are cast.
        """
        size = self.base.dtype.itemsize
        if not self.fast or not (self.base.layers.startswith("lora") or size < SINGLE):
            return 0
        body: Any = self.base.lm.base_model
        return sum(p.numel() for layer in body.layers[self.base.cut :] for p in layer.parameters()) * size

    def cuts(self) -> int:
        """Count the depths at which PPO keeps activations: the policy's, and that of rewards and value."""
        return len({self.base.cut, self.member_base.cut} - {0})

    def sampling(self, slots: int, lengths: Lengths) -> int:
        """Return the bytes needed to sample `slots` responses at once."""
        cache = slots * lengths.longest * self.cache_bytes
        logits = slots * self.vocabulary * SINGLE * SAMPLING_ROWS
        return cache + logits + self.merged

    def features(self, rows: float, lengths: Lengths, cuts: int) -> int:
        """Return the bytes of `rows` rows' activations below `cuts` cuts, as far as memory keeps them."""
        wanted = rows * lengths.mean * self.base.hidden_size * SINGLE * cuts
        return int(min(wanted, self.config.model.cache_gib * 2**30))

    def reading(self, lengths: Lengths) -> int:
        """Return the bytes of a forward pass that keeps nothing for a backward pass.

        These are one layer, inside and out, or with a model's own pass the outputs of every layer. If
        memory runs out on a GPU, fewer rows are read at once.
        """
        rows = traits(self.device).rows if self.device.type == "cpu" else PROMPTS_AT_ONCE
        states = 2 if self.fast else self.base.depth + 1
        wide = states * self.base.hidden_size + INSIDE * self.widest
        return int(rows * lengths.usual * wide * SINGLE)

    def training(self, rows: int, lengths: Lengths, layer_bytes: float) -> int:
        """Return the bytes of a micro-batch while its gradient is computed."""
        entered = self.base.hidden_size * SINGLE
        return int(rows * lengths.usual * (layer_bytes + entered) + self.chunk)


def kept_by(top: TrainableLayers, *, checkpointing: bool) -> float:
    """Return the bytes per token that the layers of a top keep for the backward pass.

    The top is on the meta device. Attention matrices are left out: kernels without them are used
    wherever the model allows it. Raises EstimateError if the layers cannot be run there.
    """
    base, body = top.base, engine.inner(top.body)
    size = base.hidden_size
    if checkpointing:
        layers = len(body.layers) if hasattr(body, "layers") else base.depth
        return float((layers * size + 16 * size) * SINGLE)
    if engine.is_llama_like(base.lm):
        return _kept(top, lambda x, ones, places: engine.hidden_at(top.body, x, ones, places, slice(None)))
    failed: list[Exception] = []
    with _experts_in_batches(top.body):
        # Try a full mask first: transformers reads the values of any other, and meta tensors have none.
        # Models that make their own mask, or have no attention, take none.
        for masked in (True, False):
            mask = torch.ones(1, 1, PROBE_TOKENS, PROBE_TOKENS, dtype=torch.bool, device="meta").tril()
            more = {"attention_mask": mask} if masked else {}
            try:
                return _kept(top, lambda x, *_, more=more: top.body(inputs_embeds=x, use_cache=False, **more))
            except (RuntimeError, ValueError) as error:  # the model takes no mask, or reads its values
                failed.append(error)
    raise EstimateError(
        f"what the layers of a {type(base.lm).__name__} keep for the backward pass cannot be estimated "
        f"({str(failed[0]).splitlines()[0]})"
    ) from failed[0]


@contextmanager
def _experts_in_batches(body: nn.Module) -> Iterator[None]:
    """Compute the experts of a mixture by batched products in the block; they need no values."""
    configs = {id(c): c for m in body.modules() if hasattr(c := getattr(m, "config", None), NAME_OF_EXPERTS)}
    before = {i: getattr(config, NAME_OF_EXPERTS) for i, config in configs.items()}
    for config in configs.values():
        setattr(config, NAME_OF_EXPERTS, "batched_mm")
    try:
        yield
    finally:
        for i, config in configs.items():
            setattr(config, NAME_OF_EXPERTS, before[i])


def _kept(top: TrainableLayers, run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]) -> float:
    """Return the bytes per token that `run` (inputs, mask, positions) keeps for the backward pass.

    Weights and attention matrices are left out.
    """
    base, size = top.base, top.base.hidden_size
    own = {p.untyped_storage()._cdata for p in (*top.parameters(), *base.lm.parameters())}
    kept: dict[int, tuple[int, Any]] = {}  # keeps the storage alive, so its address is not reused

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        square = x.dim() > 2 and x.shape[-1] == x.shape[-2] == PROBE_TOKENS
        if storage._cdata not in own and not square:
            kept[storage._cdata] = (storage.nbytes(), storage)
        return x

    meta = torch.device("meta")
    x = torch.zeros(1, PROBE_TOKENS, size, device=meta)
    ones = torch.ones(1, PROBE_TOKENS, dtype=torch.long, device=meta)
    places = torch.arange(PROBE_TOKENS, device=meta)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run(x, ones, places)
    return sum(n for n, _ in kept.values()) / PROBE_TOKENS


def memory_of(
    shapes: Shapes,
    lengths: Lengths,
    *,
    answers: int,
    asked: int,
    world: int = 1,
    program: int = 0,
    libraries: int = 0,
    file: int = 0,
) -> dict[str, StageMemory]:
    """Return the bytes of each stage on each of `world` devices.

    `answers` to `asked` prompts are labelled. The program takes `program` bytes, of which `libraries`
    only after loading. Weights come from a `file` of so many bytes.
    """
    config, ppo = shapes.config, shapes.config.ppo
    mine = -(-ppo.most_answers // world)
    found: dict[str, StageMemory] = {}
    per_prompt = answers / max(1, asked)
    common = {"program": program, "model": shapes.base_weights(world)}
    state = SINGLE * (1 + 1 + MOMENTS)  # a trained weight, its gradient, its moments
    policy = SINGLE * shapes.policy
    saving = SINGLE * shapes.policy * MOMENTS
    found["loading"] = StageMemory(
        {"program": program - libraries, "model": SINGLE * shapes.parameters}, {"file": file}
    )
    if config.sft.demonstrations is not None:
        found["sft"] = StageMemory(
            common | {"policy": state * shapes.policy},
            {
                "training": shapes.training(config.sft.micro_batch, lengths, shapes.layer_bytes),
                "activations": shapes.reading(lengths),
                "saving": saving,
            },
        )
    collecting = min(2 * config.collect.batch_size, 2 * max(1, config.collect.n_pairs))
    if config.label.source != "imported" and config.collect.n_pairs:
        slots = -(-collecting // world)
        found["collect"] = StageMemory(
            common | {"activations kept": shapes.features(slots, lengths, shapes.cuts())},
            {"sampling": shapes.sampling(slots, lengths)},
        )
    members = -(-config.reward.members // world)
    # A pair drawn twice into a bootstrap sample is read once.
    drawn = BOOTSTRAPPED if config.reward.bootstrap else 1.0
    rows = min(
        config.reward.micro_batch, round(2 * config.reward.batch_size * drawn * max(1.0, per_prompt / 2))
    )
    one = shapes.training(rows, lengths, shapes.member_layer_bytes)
    # Members train side by side on a CPU, one after another elsewhere.
    at_once = members if shapes.device.type == "cpu" else 1
    found["reward"] = StageMemory(
        common
        | {
            "reward models": members * state * shapes.member,
            "activations kept": shapes.features(answers, lengths, 1 if shapes.member_base.cut else 0),
        },
        {"training": at_once * one, "activations": shapes.reading(lengths)},
    )
    heads = (config.reward.members + 1) * SINGLE * shapes.member
    # The engine keeps activations while it samples; other models compute them one round at a time.
    gated = min(GATE_PROMPTS, asked) * (GATE_ANSWERS if shapes.fast else 1)
    held = common | {
        "policy": state * shapes.policy,
        "value function": (state - SINGLE) * shapes.value + policy if shapes.value else 0,
        "reward models": heads,
        "activations kept": shapes.features(mine, lengths, shapes.cuts()),
    }
    averaged = ppo.averaged(whole=shapes.base.layers == "all") > 0
    if averaged:
        held["average of the policy"] = policy
    if shapes.value and shapes.fast and shapes.base.cut:
        held["activations of the value function"] = shapes.features(mine, lengths, 1)
    gate = {
        **common,
        "reward models": heads,
        "answers": shapes.features(gated / world, lengths, shapes.cuts()),
        "sampling": shapes.sampling(-(-max(ppo.batch_size, GATE_PROMPTS) // world), lengths),
    }
    batch = min(ppo.micro_batch, mine)
    both = shapes.layer_bytes + (shapes.member_layer_bytes if shapes.value else 0)
    found["align"] = StageMemory(
        held,
        {
            "sampling": shapes.sampling(-(-ppo.batch_size // world), lengths),
            "training": shapes.training(batch, lengths, both),
            "activations": shapes.reading(lengths),
            "saving": saving + SINGLE * MOMENTS * shapes.value,
            # The gate runs before the policy exists; count only what exceeds the memory held later.
            "gate": max(0, sum(gate.values()) - sum(held.values())) if ppo.ensemble_weight else 0,
        },
    )
    if config.dpo.when == "always":
        rows = min(config.dpo.micro_batch, 2 * config.dpo.batch_size)
        found["align (dpo)"] = StageMemory(
            common
            | {
                "policy": state * shapes.policy,
                "reward models": heads,
                "activations kept": shapes.features(answers / world, lengths, 1 if shapes.base.cut else 0),
            },
            {"training": shapes.training(rows, lengths, shapes.layer_bytes), "saving": saving},
        )
    examined = config.evaluate.n_selection + config.evaluate.n_test
    slots = -(-min(config.evaluate.batch_size, examined) // world)
    others = (
        1
        + (averaged and config.examines_average)
        + (config.looks_every > 0)
        + (config.dpo.when == "always")
        + (config.distill.when == "always")
    )
    sampled = examined * (others * config.evaluate.answers + config.evaluate.sft_answers) / world
    found["evaluate"] = StageMemory(
        common
        | {
            "policy": policy,
            "reward models": heads,
            "activations kept": shapes.features(sampled, lengths, shapes.cuts()),
        },
        {"sampling": shapes.sampling(slots, lengths), "activations": shapes.reading(lengths)},
    )
    return found
