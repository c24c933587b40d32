"""Policies and reward models on disk, and tops over a shared base made from them: whole Hugging Face models, or PEFT
adapters (with the reward model's head) where adapters are all that was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from burnish.checkpoints import atomic_folder
from burnish.errors import ModelError
from burnish.models.shared_base import Base, Top, shift

ADAPTER = "adapter_model.safetensors"
ADAPTED = "base_model.model."  # how PEFT begins the names of a model's weights
HEAD = "score.weight"


def is_saved(folder: Path) -> bool:
    """Whether a model of a run is there, in whichever form."""
    return (folder / "config.json").exists() or is_adapter(folder)


def is_adapter(folder: Path) -> bool:
    """Whether a saved model is an adapter."""
    return (folder / ADAPTER).exists()


def save_policy(top: Top, folder: Path, tokenizer: Any) -> None:
    """Write what was trained: an adapter of the base, or a plain model where there is none."""
    if _adapted(top):
        _save_adapter(top, None, folder, tokenizer)
    else:
        save_plain_policy(top, folder, tokenizer)


def save_reward_model(top: Top, head: nn.Linear, folder: Path, tokenizer: Any) -> None:
    """Write what was trained: an adapter with the head, or a plain model where there is none."""
    if _adapted(top):
        _save_adapter(top, head, folder, tokenizer)
    else:
        save_plain_reward_model(top, head, folder, tokenizer)


def save_plain_policy(top: Top, folder: Path, tokenizer: Any) -> None:
    """Write a plain Hugging Face causal LM with its tokenizer, adapters merged."""
    lm: Any = copy.deepcopy(top.base.lm).float()
    lm.base_model.load_state_dict(top.full_state())
    if top.output is not None:
        lm.get_output_embeddings().load_state_dict(top.output.state_dict())
    lm.tie_weights()
    _save(lm, folder, tokenizer)


def save_plain_reward_model(top: Top, head: nn.Linear, folder: Path, tokenizer: Any) -> None:
    """Write a plain `AutoModelForSequenceClassification(num_labels=1)` that gives raw scores, adapters merged."""
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


def _adapted(top: Top) -> bool:
    return hasattr(top.body, "peft_config")


def _save_adapter(top: Top, head: nn.Linear | None, folder: Path, tokenizer: Any) -> None:
    """Write a PEFT adapter of the whole model, the head as a module saved beside it."""
    base, body = top.base, top.body
    config = copy.deepcopy(body.peft_config["default"])
    config.base_model_name_or_path = base.lm.config.name_or_path
    config.task_type = "CAUSAL_LM" if head is None else "SEQ_CLS"
    state = {_adapter_name(base, n): p.detach().contiguous() for n, p in _adapter_weights(top)}
    if base.cut or not isinstance(config.target_modules, str):
        # By their names in the whole model, and in an order that is no set's.
        config.target_modules = sorted({n.removeprefix(ADAPTED).split(".lora_")[0] for n in state})
    if head is not None:
        config.modules_to_save = ["score"]
        state[ADAPTED + HEAD] = head.weight.detach()
    with atomic_folder(folder) as aside:
        config.save_pretrained(aside)
        save_file(state, aside / ADAPTER)
        tokenizer.save_pretrained(aside)


def _adapter_weights(top: Top) -> list[tuple[str, nn.Parameter]]:
    body: nn.Module = top.body
    return [(n, p) for n, p in body.named_parameters() if ".lora_" in n]


def _adapter_name(base: Base, name: str) -> str:
    """What PEFT calls an adapter's weight when the whole model is adapted, from its name in a top's body."""
    inside = shift(name.removeprefix(ADAPTED).replace(".default.", "."), base.cut)
    return f"{ADAPTED}{base.lm.base_model_prefix}.{inside}"


def _load_adapter(base: Base, state: dict[str, torch.Tensor], folder: Path) -> Top:
    top = Top(base)
    own = {_adapter_name(base, n): p for n, p in _adapter_weights(top)} if _adapted(top) else {}
    saved = {n for n in state if ".lora_" in n}
    if own.keys() != saved:
        odd = next(iter(sorted(own.keys() ^ saved)), "nothing")
        raise ModelError(f"{folder} holds adapters of another kind ({odd}); was model.layers changed?")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
    return top


def load_policy(base: Base, folder: Path) -> Top:
    """The frozen top of a saved policy; what lies below the base's cut, or under adapters, is the base's own."""
    state = _read_weights(folder)
    if is_adapter(folder):
        return _load_adapter(base, state, folder).requires_grad_(False)
    top = _load_top(base, state, folder, trainable=False)
    if not base.cut and not base.tied:
        name = next(n for n, m in base.lm.named_modules() if m is base.lm.get_output_embeddings())
        output = top.own_output()
        output.load_state_dict({n: state[f"{name}.{n}"] for n in output.state_dict()})
    return top


def load_reward_model(base: Base, folder: Path, *, trainable: bool = False) -> tuple[Top, nn.Linear]:
    """The top and raw scalar head of a saved reward model; what lies below the base's cut, or under adapters, is the
    base's own. `trainable` for a whole model only."""
    state = _read_weights(folder)
    name = HEAD
    if is_adapter(folder):
        assert not trainable
        name = ADAPTED + HEAD
        top = _load_adapter(base, state, folder).requires_grad_(False)
    else:
        top = _load_top(base, state, folder, trainable=trainable)
    head = nn.Linear(base.hidden_size, 1, bias=False, device=base.device)
    with torch.no_grad():
        head.weight.copy_(state[name])
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
    # A trained copy and no more: the base's own weights are in there too, and stay as they are.
    return top if trainable else top.requires_grad_(False)
