"""Frozen layers that are sharded over the processes of a run.

Each process keeps a part of every layer. A layer is gathered while a process computes with it.

A frozen weight is one tensor for all models that share it (backbones, references, adapted policies
and reward models). The code therefore frees and fills the memory of the tensor, not a module. A
layer stays from its forward pass until the next layer is needed; a backward pass gathers it again.
A process asks for the layer it needs (`collectives.ask`), so processes need not run the same layers
in the same order or equally often, as FSDP requires.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from burnish.distributed import collectives
from burnish.errors import ModelError

M = TypeVar("M", bound=nn.Module)


def linear_weights(block: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a block's linear layers, each once; these are most of its size."""
    linear = (module for module in block.modules() if isinstance(module, nn.Linear | Conv1D))
    return list(dict.fromkeys(p for module in linear for p in module.parameters(recurse=False)))


class Shards:
    """The linear layers of `blocks`, sharded over the processes of the run and on `device`.

    All processes must create it, each from its own copy of the same model.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.rank, self.world = collectives.rank(), collectives.size()
        self.block_of: dict[int, int] = {}  # by `id` of a weight
        self._weights: list[list[nn.Parameter]] = []  # keeps weights alive, so that ids stay valid
        self._own: list[torch.Tensor] = []
        self._whole: list[torch.Tensor] = []
        self.here: int | None = None  # the block that is gathered
        for block in blocks:
            weights = linear_weights(block)
            if len({p.dtype for p in weights}) != 1 or any(id(p) in self.block_of for p in weights):
                raise ModelError(
                    f"scale.shard=true, but a {type(block).__name__} has no linear layers of one precision and of its "
                    "own, so it cannot be sharded over processes; set it to false"
                )
            self.block_of |= {id(p): len(self._weights) for p in weights}
            self._weights.append(weights)
            self._cut(weights, device)
        self.number: int | None = None

    def join(self, owner: object) -> None:
        """Take part whenever another process needs a layer, as long as `owner` exists.

        All processes must call this, with no other collective in between.
        """
        self.number = collectives.lend(self._give, owner)

    @torch.no_grad()
    def _cut(self, weights: Sequence[nn.Parameter], device: torch.device) -> None:
        sizes = [p.numel() for p in weights]
        part = -(-sum(sizes) // self.world)
        whole = torch.zeros(part * self.world, dtype=weights[0].dtype, device=weights[0].device)
        whole[: sum(sizes)] = torch.cat([p.detach().reshape(-1) for p in weights])
        self._own.append(whole[part * self.rank : part * (self.rank + 1)].clone().to(device))
        if whole.device != device:
            whole = torch.empty(whole.shape, dtype=whole.dtype, device=device)
        for p, values in zip(weights, torch.split(whole[: sum(sizes)], sizes), strict=True):
            p.data = values.view(p.shape)
        self._whole.append(whole)
        _drop(whole)

    @property
    def bytes_kept(self) -> int:
        """Bytes of this process's parts of all blocks."""
        return sum(own.numel() * own.element_size() for own in self._own)

    def need(self, block: int) -> None:
        """Gather a block and free any other; raise PeerFailed if another process does not answer."""
        if self.here != block:
            self.let_go()
            assert self.number is not None, "join() has not been called"
            collectives.ask(self.number, block)

    def let_go(self) -> None:
        """Free the gathered block, if there is one."""
        if self.here is not None:
            _drop(self._whole[self.here])
            self.here = None

    def _give(self, block: int, keep: bool) -> None:
        """Gather a block with all other processes; this one holds it only if `keep` is set."""
        if block == self.here:
            # Another process asked for it, and this one still holds it from an earlier pass.
            collectives.put_together(self._own[block], torch.empty_like(self._whole[block]))
            return
        whole = self._whole[block]
        whole.untyped_storage().resize_(whole.numel() * whole.element_size())
        collectives.put_together(self._own[block], whole)
        if keep:
            self.here = block
        else:
            _drop(whole)

    def watch(self, layers: Sequence[nn.Module]) -> None:
        """Gather the sharded weights of these layers in their forward and backward passes.

        A copy of a layer with weights of its own gathers nothing.
        """

        def before(layer: nn.Module, _inputs: Any) -> None:
            block = self._block(layer)
            if block is not None:
                self.need(block)

        def after(layer: nn.Module, _inputs: Any, outputs: Any) -> None:
            block = self._block(layer)
            given = outputs[0] if isinstance(outputs, tuple) else outputs
            if block is not None and given.requires_grad:
                given.register_hook(self._fetched(block))

        for layer in layers:
            layer.register_forward_pre_hook(before)
            layer.register_forward_hook(after)

    def _fetched(self, block: int) -> Callable[[torch.Tensor], None]:
        def fetch(_gradient: torch.Tensor) -> None:
            self.need(block)

        return fetch

    def _block(self, layer: nn.Module) -> int | None:
        return next((self.block_of[id(p)] for p in layer.parameters() if id(p) in self.block_of), None)

    @torch.no_grad()
    def copies(self, module: nn.Module, device: torch.device | None = None) -> dict[int, nn.Parameter]:
        """Return full copies of a module's sharded weights by identity, as a memo for `deepcopy`."""
        wanted = [p for p in module.parameters() if id(p) in self.block_of]
        made: dict[int, nn.Parameter] = {}
        for p in sorted(wanted, key=lambda p: self.block_of[id(p)]):
            self.need(self.block_of[id(p)])
            made[id(p)] = nn.Parameter(p.detach().clone().to(device or p.device), requires_grad=False)
        return made


def _drop(whole: torch.Tensor) -> None:
    whole.untyped_storage().resize_(0)


def copied(module: M, shards: Shards | None, device: torch.device | None = None) -> M:
    """Return a deep copy of a module with its own tensors; sharded weights are gathered for it."""
    return copy.deepcopy(module, shards.copies(module, device) if shards is not None else {})


def state_of(module: nn.Module, shards: Shards | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and uncopied tensors of a module's state; sharded ones gathered in main memory."""
    whole = shards.copies(module, torch.device("cpu")) if shards is not None else {}
    named = dict(module.named_parameters(remove_duplicate=False))
    for name, tensor in module.state_dict().items():
        yield name, whole[id(named[name])] if name in named and id(named[name]) in whole else tensor.detach()
