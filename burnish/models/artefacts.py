"""Policies and reward models on disk, and how to load them onto a shared base.

They are whole Hugging Face models, or PEFT adapters (with the reward model's head) where only
adapters were trained.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from burnish.distributed import collectives
from burnish.errors import ModelError
from burnish.models.backbone import Backbone, TrainableLayers, shift
from burnish.models.heads import Reading, ScalarHead
from burnish.models.shards import copied
from burnish.runs.files import atomic_folder, read_json, write_json

ADAPTER = "adapter_model.safetensors"
ADAPTED = "base_model.model."  # prefix of a model's weights in PEFT
HEAD = "score.weight"


def is_saved(folder: Path) -> bool:
    """Check whether a folder holds a model of a run, in either form."""
    return (folder / "config.json").exists() or is_adapter(folder)


def is_adapter(folder: Path) -> bool:
    """Check whether a saved model is an adapter."""
    return (folder / ADAPTER).exists()


@collectives.by_lead
def save_policy(top: TrainableLayers, folder: Path, tokenizer: Any) -> None:
    """Write a policy: an adapter of the base, or a plain model if it has no adapter."""
    if _adapted(top):
        _save_adapter(top, None, folder, tokenizer)
    else:
        save_plain_policy(top, folder, tokenizer)


@collectives.by_lead
def save_reward_model(model: ScalarHead, folder: Path, tokenizer: Any) -> None:
    """Write a reward model: an adapter with the head, or a plain model if it has no adapter.

    The file reading.json says where the head reads.
    """
    if _adapted(model.top):
        _save_adapter(model.top, model, folder, tokenizer)
    else:
        save_plain_reward_model(model, folder, tokenizer)


@collectives.by_lead
def save_plain_policy(top: TrainableLayers, folder: Path, tokenizer: Any) -> None:
    """Write a plain Hugging Face causal LM with its tokenizer, adapters merged."""
    base = top.base
    place = base.device if base.shards is None else torch.device("cpu")
    lm: Any = copied(base.lm, base.shards, place).to(place).float()
    lm.base_model.load_state_dict(top.full_state())
    if top.output is not None:
        lm.get_output_embeddings().load_state_dict(top.output.state_dict())
    lm.tie_weights()
    with atomic_folder(folder) as aside:
        _save(lm, aside, tokenizer)


READINGS = {
    "mean": ("the mean over the response's tokens", "hidden[len(prompt_ids) :].mean(0)"),
    "last": ("the last token of the response", "hidden[-1]"),
}
CARD = """# A reward model that reads WHAT

The raw score of a response to a prompt, both as token ids (the prompt through its chat template, where it has one; the
response with its end-of-sequence token when it has ended):

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModel

model = AutoModel.from_pretrained(FOLDER)
weight = load_file(f"{FOLDER}/head.safetensors")["score.weight"][0]


@torch.no_grad()
def score(prompt_ids, response_ids):
    hidden = model(torch.tensor([[*prompt_ids, *response_ids]])).last_hidden_state[0]
    return POOLED @ weight
```
"""


@collectives.by_lead
def save_plain_reward_model(model: ScalarHead, folder: Path, tokenizer: Any) -> None:
    """Write a whole model that gives raw scores, adapters merged.

    A head that reads the last token is written as an
    `AutoModelForSequenceClassification(num_labels=1)`, where transformers has such a class.
    Otherwise the model is an `AutoModel`, with the head in a file of its own and a card with the
    code that loads them.
    """
    top = model.top
    config = copy.deepcopy(top.base.lm.config)
    last = model.pooling == "last" and type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if last:
        config.num_labels = 1
        config.problem_type = "regression"
    kind: Any = AutoModelForSequenceClassification if last else AutoModel
    whole = kind.from_config(config, dtype=torch.float32)
    whole.base_model.load_state_dict(top.full_state())
    if last:
        with torch.no_grad():
            whole.score.weight.copy_(model.head.weight)
    with atomic_folder(folder) as aside:
        _save(whole, aside, tokenizer)
        _save_reading(model, aside)
        if not last:
            save_file({HEAD: model.head.weight.detach().cpu()}, aside / "head.safetensors")
            read = READINGS[model.pooling]
            (aside / "README.md").write_text(
                CARD.replace("WHAT", read[0]).replace("POOLED", read[1]), encoding="utf-8"
            )


def saved_reading(folder: Path) -> Reading | None:
    """Return where a saved reward model reads, or None for one of an older version.

    Older versions read the last token of the whole model.
    """
    file = folder / "reading.json"
    return Reading(**read_json(file)) if file.exists() else None


def _save_reading(model: ScalarHead, folder: Path) -> None:
    write_json(
        folder / "reading.json", asdict(Reading(model.top.base.depth, model.pooling, model.top.base.layers))
    )


def _save(model: Any, folder: Path, tokenizer: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _adapted(top: TrainableLayers) -> bool:
    return hasattr(top.body, "peft_config")


def _save_adapter(top: TrainableLayers, model: ScalarHead | None, folder: Path, tokenizer: Any) -> None:
    """Write a PEFT adapter of the whole model, with a reward model's head as a saved module."""
    base, body = top.base, top.body
    config = copy.deepcopy(body.peft_config["default"])
    config.base_model_name_or_path = base.lm.config.name_or_path
    config.task_type = "CAUSAL_LM" if model is None else "SEQ_CLS"
    state = {_adapter_name(base, n): p.detach().contiguous() for n, p in _adapter_weights(top)}
    if base.cut or not isinstance(config.target_modules, str):
        # By their names in the whole model, sorted because a set has no fixed order.
        config.target_modules = sorted({n.removeprefix(ADAPTED).split(".lora_")[0] for n in state})
    if model is not None:
        config.modules_to_save = ["score"]
        state[ADAPTED + HEAD] = model.head.weight.detach()
    with atomic_folder(folder) as aside:
        if model is not None:
            _save_reading(model, aside)
        config.save_pretrained(aside)
        save_file(state, aside / ADAPTER)
        tokenizer.save_pretrained(aside)


def _adapter_weights(top: TrainableLayers) -> list[tuple[str, nn.Parameter]]:
    body: nn.Module = top.body
    return [(n, p) for n, p in body.named_parameters() if ".lora_" in n]


def _adapter_name(base: Backbone, name: str) -> str:
    """Return PEFT's name for an adapter weight of a top's body in the adapted whole model."""
    inside = shift(name.removeprefix(ADAPTED).replace(".default.", "."), base.cut)
    return f"{ADAPTED}{base.lm.base_model_prefix}.{inside}"


def _load_adapter(base: Backbone, state: dict[str, torch.Tensor], folder: Path) -> TrainableLayers:
    top = TrainableLayers(base)
    own = {_adapter_name(base, n): p for n, p in _adapter_weights(top)} if _adapted(top) else {}
    saved = {n for n in state if ".lora_" in n}
    if own.keys() != saved:
        odd = next(iter(sorted(own.keys() ^ saved)), "nothing")
        raise ModelError(f"{folder} holds adapters of another kind ({odd}); was model.layers changed?")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
    return top


def load_policy(base: Backbone, folder: Path) -> TrainableLayers:
    """Return the frozen top of a saved policy; weights below the cut or adapters are the base's."""
    state = _read_weights(folder)
    if is_adapter(folder):
        return _load_adapter(base, state, folder).requires_grad_(False)
    top = _load_top(base, state, folder, trainable=False)
    if not base.cut and not base.tied:
        name = next(n for n, m in base.lm.named_modules() if m is base.lm.get_output_embeddings())
        output = top.own_output()
        if f"{name}.weight" in state:
            own = output.state_dict()
            output.load_state_dict({n: _cut(state[f"{name}.{n}"], p) for n, p in own.items()})
        else:  # under another name in files
            saved: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            output.load_state_dict(saved.get_output_embeddings().state_dict())
    return top


def load_reward_model(base: Backbone, folder: Path, *, trainable: bool = False) -> ScalarHead:
    """Load a saved reward model onto the layers of the base that it uses.

    Weights below the cut, or under adapters, are shared with the base. Adapters cannot be loaded
    with `trainable`.
    """
    state = _read_weights(folder)
    reading = saved_reading(folder) or Reading(base.depth, "last", base.layers)
    base = base.at(reading.depth, reading.layers)
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
    return ScalarHead(top, head.requires_grad_(trainable), pooling=reading.pooling).eval()


def _cut(saved: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Drop rows beyond the tokenizer, which older versions saved in embeddings and output layers."""
    longer = saved.shape[1:] == own.shape[1:] and saved.shape[0] > own.shape[0]
    return saved[: own.shape[0]] if longer else saved


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    if not state:
        raise ModelError(f"{folder} holds no safetensors weights; run the stage that makes it again")
    return state


def _load_top(
    base: Backbone, state: dict[str, torch.Tensor], folder: Path, *, trainable: bool
) -> TrainableLayers:
    top = TrainableLayers(base, layers="all")
    prefix = base.lm.base_model_prefix + "."
    if not any(name.startswith(prefix) for name in state):  # a body without a head
        prefix = ""
    own = {
        prefix + shift(name.removeprefix("body."), base.cut): parameter
        for name, parameter in top.named_parameters()
        if parameter.requires_grad
    }
    if own.keys() - state.keys():
        # transformers gives some weights other names in files, such as one for each expert of a mixture.
        loaded: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        body, info = loaded
        if info["missing_keys"]:
            raise ModelError(f"{folder} lacks {sorted(info['missing_keys'])[0]}; it belongs to another model")
        state = {prefix + name: weight for name, weight in body.state_dict().items()}
    embedding = None if base.cut else top.body.get_input_embeddings().weight
    with torch.no_grad():
        for name, parameter in own.items():
            if name not in state:
                raise ModelError(f"{folder} lacks {name}; it belongs to another model")
            if parameter is embedding:
                state[name] = _cut(state[name], parameter)
            if state[name].shape != parameter.shape:
                raise ModelError(
                    f"{folder} has {name} with shape {tuple(state[name].shape)}, not {tuple(parameter.shape)}; it "
                    "belongs to another model"
                )
            parameter.copy_(state[name])
    # If trainable, only the trained copy is: the top also holds weights of the base, which stay frozen.
    return top if trainable else top.requires_grad_(False)
