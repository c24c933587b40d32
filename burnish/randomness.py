"""Random generators without global state: each draw has a seed derived from its place."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *where: str | int) -> int:
    """Derive the fixed 63-bit seed of one place, e.g. `derive_seed(0, "ppo", attempt, step)`."""
    text = "\x1f".join(str(part) for part in (seed, *where))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *where: str | int) -> torch.Generator:
    """Return a torch generator for one place."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, *where))
