"""Fixtures every test may use. One thread a worker: two spinning ones would slow each other down."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from burnish.config.model import ModelConfig
from burnish.models.load import Codec, load_model
from burnish.models.shared_base import Base
from burnish.records import Prompt

torch.set_num_threads(1)

# The same examples on every machine, however slow it is.
settings.register_profile("burnish", deadline=None, derandomize=True)
settings.load_profile("burnish")


@pytest.fixture(scope="session")
def tiny() -> tuple[object, Codec]:
    """The embedded model and its codec; never trained in place (tops copy or freeze it)."""
    return load_model(ModelConfig())


@pytest.fixture(scope="session")
def codec(tiny: tuple[object, Codec]) -> Codec:
    return tiny[1]


@pytest.fixture(scope="session")
def base(tiny: tuple[object, Codec]) -> Base:
    return Base(tiny[0])


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Prompts of mixed length."""
    from burnish.rehearse.grammar import prompts

    return prompts(64, seed=7)
