"""Optimiser state as safetensors, never pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Write every parameter's slots (moments, step counts) as `<parameter index>.<slot>`."""
    state = optimizer.state_dict()["state"]
    save_file(
        {f"{i}.{name}": t.contiguous() for i, slots in state.items() for name, t in slots.items()}, file
    )


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Restore the slots; rates and other settings stay the optimiser's own."""
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
