"""Randomness is passed, never global: every draw comes from a seed derived from where it happens."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *where: str | int) -> int:
    """A 63-bit seed for one place, e.g. `derive_seed(0, "ppo", attempt, step)`; the same place, the same seed."""
    text = "\x1f".join(str(part) for part in (seed, *where))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *where: str | int) -> torch.Generator:
    """A torch generator for one place."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, *where))
