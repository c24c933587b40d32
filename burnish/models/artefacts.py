"""Policies and reward models on disk: plain Hugging Face folders, and tops over a shared base made from them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from burnish.checkpoints import atomic_folder
from burnish.errors import ModelError
from burnish.models.shared_base import Base, Top, shift


def save_policy(top: Top, folder: Path, tokenizer: Any) -> None:
    """Write a plain Hugging Face causal LM with its tokenizer."""
    lm: Any = copy.deepcopy(top.base.lm).float()
    lm.base_model.load_state_dict(top.full_state())
    if top.output is not None:
        lm.get_output_embeddings().load_state_dict(top.output.state_dict())
    lm.tie_weights()
    _save(lm, folder, tokenizer)


def save_reward_model(top: Top, head: nn.Linear, folder: Path, tokenizer: Any) -> None:
    """Write a plain `AutoModelForSequenceClassification(num_labels=1)` that gives raw scores."""
    config = copy.deepcopy(top.base.lm.config)
    config.num_labels = 1
    config.problem_type = "regression"
    model: Any = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(top.full_state())
    with torch.no_grad():
        model.score.weight.copy_(head.weight)
    _save(model, folder, tokenizer)


def _save(model: Any, folder: Path, tokenizer: Any) -> None:
    with atomic_folder(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def load_policy(base: Base, folder: Path) -> Top:
    """The frozen top of a saved policy; what lies below the base's cut is the base's own."""
    state = _read_weights(folder)
    top = _load_top(base, state, folder, trainable=False)
    if not base.cut and not base.tied:
        name = next(n for n, m in base.lm.named_modules() if m is base.lm.get_output_embeddings())
        output = top.own_output()
        output.load_state_dict({n: state[f"{name}.{n}"] for n in output.state_dict()})
    return top


def load_reward_model(base: Base, folder: Path, *, trainable: bool = False) -> tuple[Top, nn.Linear]:
    """The top and raw scalar head of a saved reward model; what lies below the base's cut is the base's own."""
    state = _read_weights(folder)
    top = _load_top(base, state, folder, trainable=trainable)
    head = nn.Linear(base.hidden_size, 1, bias=False, device=base.device)
    with torch.no_grad():
        head.weight.copy_(state["score.weight"])
    return top, head.requires_grad_(trainable)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    if not state:
        raise ModelError(f"{folder} holds no safetensors weights; run the stage that makes it again")
    return state


def _load_top(base: Base, state: dict[str, torch.Tensor], folder: Path, *, trainable: bool) -> Top:
    top = Top(base, layers="all")
    prefix = base.lm.base_model_prefix + "."
    with torch.no_grad():
        for name, parameter in top.named_parameters():
            if parameter.requires_grad:
                saved = prefix + shift(name.removeprefix("body."), base.cut)
                if saved not in state:
                    raise ModelError(f"{folder} lacks {saved}; it belongs to another model")
                parameter.copy_(state[saved])
    return top.requires_grad_(trainable)
