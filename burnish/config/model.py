"""Which model is aligned, and which of its weights are trained."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from burnish.config.strict import Section

TINY_MODEL = "embedded"  # the tiny story model inside the package


def _known_layers(value: str) -> str:
    if value in ("auto", "all", "lora") or re.fullmatch(r"(lora_)?top:[1-9]\d*", value):
        return value
    raise ValueError(
        f"{value!r} is not a way to train: use 'auto', 'all', 'lora', 'top:N' (the top N layers) or 'lora_top:N' "
        "(adapters on them)"
    )


Layers = Annotated[str, AfterValidator(_known_layers)]


def _known_device(value: str) -> str:
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        return value
    raise ValueError(f"{value!r} is no device: use auto, cpu, cuda, cuda:N or mps")


Device = Annotated[str, AfterValidator(_known_device)]


class LoraConfig(Section):
    """Low-rank adapters (used when `model.layers` is `lora` or `lora_top:N`)."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class ModelConfig(Section):
    """The policy to align: `embedded`, a folder, or a hub name; `gguf_file` names a GGUF file inside it."""

    path: str = TINY_MODEL
    gguf_file: str | None = None
    revision: str | None = None  # of a hub name: a branch, a tag or a commit
    device: Device = "auto"  # auto: cuda, then mps, then cpu; or cuda:N
    # In which the linear layers that are not trained are held; auto: bfloat16 on a GPU that has it, else float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False  # activations computed twice in place of being kept
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = (
        None  # None: the model's own choice
    )
    # What is trained: top:N, all, lora, lora_top:N; auto: the top fifth where that can be cut, else all.
    layers: Layers = "auto"
    lora: LoraConfig = LoraConfig()
    cache_gib: float = Field(
        4.0, ge=0
    )  # of activations below a cut that are kept in memory, the rest in a file
    max_prompt_tokens: int = Field(64, ge=1)
    max_response_tokens: int = Field(56, ge=1)
    trust_remote_code: Literal[False] = False
    use_chat_template: bool | None = None  # None: as the tokenizer has one and the prompt has messages
