"""How much memory a run needs, found out before anything is loaded: parameters by shapes on no device, what the layers
keep for the backward pass by running them there, the rest by counting.

Every stage holds something all the time (its models) and something for a while (sampling, a micro-batch, a checkpoint):
its peak is the first plus the largest of the second.
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
from burnish.models.heads import new_reward_head
from burnish.models.logprobs import CHUNK_ELEMENTS, CHUNK_ELSEWHERE
from burnish.models.memory import AT_ONCE
from burnish.models.sequences import PROMPTS_AT_ONCE
from burnish.models.shards import linear_weights
from burnish.pipeline.gate import GATE_ANSWERS, GATE_PROMPTS

SINGLE = 4  # bytes of a float32
MOMENTS = 2  # that Adam keeps of every trained weight
NAME_OF_EXPERTS = "_experts_implementation"  # in a configuration of transformers
PROBE_TOKENS = 40  # on which layers are run: no other size has it twice in a row
BOOTSTRAPPED = 0.63  # of what is drawn as often as there is, this share is different
INSIDE = 3  # copies of what a layer's MLP computes: both its products, and theirs
SAMPLING_ROWS = 4  # copies of the logits of one token a slot: themselves, exponentials, sums, products
CHUNK_COPIES = 3  # of a chunk of logits: themselves, their maxima's differences, the product with the weights


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and of responses, on average and at most."""

    prompt: float
    response: float
    longest_prompt: int
    longest_response: int

    @property
    def mean(self) -> float:
        return self.prompt + self.response

    @property
    def longest(self) -> int:
        return self.longest_prompt + self.longest_response

    @property
    def usual(self) -> float:
        """Of the rows of a forward pass, padding included: neighbours in length go together."""
        return (self.mean + self.longest) / 2


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one stage on one device: what it holds throughout, and what it needs for a while, one at a time."""

    held: dict[str, int]
    passing: dict[str, int]

    @property
    def largest(self) -> str:
        """What of the passing needs most."""
        return max(self.passing, key=lambda name: self.passing[name])

    @property
    def peak(self) -> int:
        return sum(self.held.values()) + max(self.passing.values(), default=0)


@dataclass
class Shapes:
    """Sizes of the models of a configuration, from a backbone without weights."""

    base: Backbone  # on the meta device
    config: RunConfig
    device: torch.device  # that it is to run on

    @cached_property
    def fast(self) -> bool:
        """Whether the CPU engine is likely to run it: it decides by what the weights compute."""
        built = self.device.type == "cpu" and engine.is_llama_like(self.base.lm)
        return built and (self.base.dtype == torch.float32 or bool(self.base.cut))

    @property
    def vocabulary(self) -> int:
        return int(self.base.lm.get_output_embeddings().weight.shape[0])

    @cached_property
    def weights(self) -> int:
        """Bytes of the frozen base."""
        return sum(p.numel() * p.element_size() for p in self.base.lm.parameters())

    @cached_property
    def blocks(self) -> list[int]:
        """Bytes of the linear layers of every block that can be cut over processes."""
        return [sum(p.numel() * p.element_size() for p in linear_weights(b)) for b in self.base.blocks]

    def base_weights(self, world: int) -> int:
        """Bytes of the frozen base on each of `world` devices: whole, or its part of every block that is cut over them,
        with one that is put together for itself and one for another."""
        if world == 1 or not self.config.scale.shard:
            return self.weights
        cut = sum(self.blocks)
        return self.weights - cut + cut // world + 2 * max(self.blocks, default=0)

    @cached_property
    def parameters(self) -> int:
        """Weights of the base."""
        return sum(p.numel() for p in self.base.lm.parameters())

    @cached_property
    def embedding(self) -> int:
        """Weights of the embedding, which a pass forward looks up."""
        weight: torch.Tensor = self.base.lm.get_input_embeddings().weight
        return weight.numel()

    @cached_property
    def policy(self) -> int:
        """Weights that a policy trains, its own output layer included."""
        trained = sum(p.numel() for p in TrainableLayers(self.base).trained_parameters())
        own_output = self.base.layers == "all" and not self.base.tied
        return trained + (self.base.lm.get_output_embeddings().weight.numel() if own_output else 0)

    @cached_property
    def member_base(self) -> Backbone:
        return self.base.at(self.base.depth, self.config.reward.layers)

    @cached_property
    def member(self) -> int:
        """Weights that a reward model trains: of as many layers wherever it reads."""
        head = new_reward_head(self.member_base, 0, "plan", layers=self.member_base.layers, dropout=0.0)
        return sum(p.numel() for p in head.trained())

    @cached_property
    def value(self) -> int:
        """Weights that the value function trains; 0 without one."""
        if self.config.ppo.advantage not in ("auto", "gae"):
            return 0
        top, layers = TrainableLayers(self.base), self.config.ppo.value_layers
        if layers is not None and self.fast:
            top.train_only(layers)
        return sum(p.numel() for p in top.trained_parameters())

    @cached_property
    def layer_bytes(self) -> float:
        """Bytes a token that the layers of a policy keep for the backward pass."""
        return kept_by(TrainableLayers(self.base), checkpointing=self.base.checkpointing)

    @cached_property
    def member_layer_bytes(self) -> float:
        """The same of a reward model."""
        return kept_by(TrainableLayers(self.member_base), checkpointing=self.base.checkpointing)

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes a token of keys and values in all layers."""
        body: Any = self.base.lm.base_model
        size = self.base.dtype.itemsize
        if not hasattr(body, "layers"):
            return 2 * self.base.depth * self.base.hidden_size * size
        projections = [getattr(getattr(layer, "self_attn", None), "k_proj", None) for layer in body.layers]
        width = sum(p.out_features if p is not None else self.base.hidden_size for p in projections)
        return 2 * width * size

    @cached_property
    def widest(self) -> int:
        """Of what a layer computes inside, numbers a token: those of its MLP."""
        body: Any = self.base.lm.base_model
        layers = getattr(body, "layers", [body])
        return max((n for p in linear_weights(layers[0]) for n in p.shape), default=0)

    @property
    def chunk(self) -> int:
        """Bytes of the logits that are held at once."""
        on_cpu = self.device.type == "cpu"
        tokens = max(1, (CHUNK_ELEMENTS if on_cpu else CHUNK_ELSEWHERE) // self.vocabulary)
        return tokens * self.vocabulary * SINGLE * CHUNK_COPIES

    @property
    def merged(self) -> int:
        """Bytes of weights that sampling makes: adapters are merged into copies by the engine."""
        if not (self.fast and self.base.layers.startswith("lora")):
            return 0
        body: Any = self.base.lm.base_model
        return sum(p.numel() for layer in body.layers[self.base.cut :] for p in layer.parameters()) * SINGLE

    def cuts(self) -> int:
        """At how many depths activations are kept in PPO: of policy, and of reward models and value function."""
        return len({self.base.cut, self.member_base.cut} - {0})

    def sampling(self, slots: int, lengths: Lengths) -> int:
        """Bytes that so many responses at once need while they are sampled."""
        cache = slots * lengths.longest * self.cache_bytes
        logits = slots * self.vocabulary * SINGLE * SAMPLING_ROWS
        return cache + logits + self.merged

    def features(self, rows: float, lengths: Lengths, cuts: int) -> int:
        """Bytes of activations of so many rows below `cuts` cuts, as far as they are kept in memory."""
        wanted = rows * lengths.mean * self.base.hidden_size * SINGLE * cuts
        return int(min(wanted, self.config.model.cache_gib * 2**30))

    def reading(self, lengths: Lengths) -> int:
        """Bytes while rows are read, nothing kept for a backward pass: of one layer, inside and out, or with what
        leaves every layer by a model's own pass. Where memory runs out on a GPU, fewer rows are read at once."""
        rows = AT_ONCE["cpu"] if self.device.type == "cpu" else PROMPTS_AT_ONCE
        states = 2 if self.fast else self.base.depth + 1
        wide = states * self.base.hidden_size + INSIDE * self.widest
        return int(rows * lengths.usual * wide * SINGLE)

    def training(self, rows: int, lengths: Lengths, layer_bytes: float) -> int:
        """Bytes of a micro-batch while its gradient is taken."""
        entered = self.base.hidden_size * SINGLE
        return int(rows * lengths.usual * (layer_bytes + entered) + self.chunk)


def kept_by(top: TrainableLayers, *, checkpointing: bool) -> float:
    """Bytes a token that the layers of a top on the meta device keep for the backward pass. Attention matrices are left
    out: kernels that do without them are used wherever the model allows it."""
    base, body = top.base, engine.inner(top.body)
    size = base.hidden_size
    if checkpointing:
        layers = len(body.layers) if hasattr(body, "layers") else base.depth
        return float((layers * size + 16 * size) * SINGLE)
    if engine.is_llama_like(base.lm):
        return _kept(top, lambda x, ones, places: engine.hidden_at(top.body, x, ones, places, slice(None)))
    failed: list[Exception] = []
    with _experts_in_batches(top.body):
        # A whole mask first: transformers looks at the numbers of any other, and here there are none. Models that make
        # their own, or have no attention, take none.
        for masked in (True, False):
            mask = torch.ones(1, 1, PROBE_TOKENS, PROBE_TOKENS, dtype=torch.bool, device="meta").tril()
            more = {"attention_mask": mask} if masked else {}
            try:
                return _kept(top, lambda x, *_, more=more: top.body(inputs_embeds=x, use_cache=False, **more))
            except (RuntimeError, ValueError) as error:  # of a mask that it does not take, or looks into
                failed.append(error)
    raise EstimateError(
        f"what the layers of a {type(base.lm).__name__} keep for the backward pass cannot be estimated "
        f"({str(failed[0]).splitlines()[0]})"
    ) from failed[0]


@contextmanager
def _experts_in_batches(body: nn.Module) -> Iterator[None]:
    """Within it the experts of a mixture are computed by products of batches, which need no numbers."""
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
    """Bytes a token that `run` (inputs, mask, positions) keeps for the backward pass, without weights and attention
    matrices."""
    base, size = top.base, top.base.hidden_size
    own = {p.untyped_storage()._cdata for p in (*top.parameters(), *base.lm.parameters())}
    kept: dict[int, tuple[int, Any]] = {}  # the storage too, so that no other gets its place

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
    """By stage, bytes on each of `world` devices; `answers` to `asked` prompts are labelled. `program` bytes are taken
    by the program itself before anything is loaded, `libraries` of them later; weights come from a `file` of so
    many."""
    config, ppo = shapes.config, shapes.config.ppo
    mine = -(-ppo.batch_size // world)
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
    # What is drawn twice into a bootstrap is read once.
    drawn = BOOTSTRAPPED if config.reward.bootstrap else 1.0
    rows = min(
        config.reward.micro_batch, round(2 * config.reward.batch_size * drawn * max(1.0, per_prompt / 2))
    )
    one = shapes.training(rows, lengths, shapes.member_layer_bytes)
    # Side by side on a CPU, in turns elsewhere.
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
    # What the engine samples, it has the activations of; others compute them a round at a time.
    gated = min(GATE_PROMPTS, asked) * (GATE_ANSWERS if shapes.fast else 1)
    held = common | {
        "policy": state * shapes.policy,
        "value function": (state - SINGLE) * shapes.value + policy if shapes.value else 0,
        "reward models": heads,
        "activations kept": shapes.features(mine, lengths, shapes.cuts()),
    }
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
            "sampling": shapes.sampling(mine, lengths),
            "training": shapes.training(batch, lengths, both),
            "activations": shapes.reading(lengths),
            "saving": saving + SINGLE * MOMENTS * shapes.value,
            # Before there is a policy that learns: as much as it is more than what is held later.
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
    sampled = examined * (1 + config.evaluate.best_of_n) / world
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
