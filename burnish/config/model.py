"""Section `model`: the model to align, and the weights that are trained."""

import re
from typing import Annotated, ClassVar, Literal

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
    """Low-rank adapters, used where `model.layers` is `lora` or `lora_top:N`."""

    rank: int = Field(
        16, ge=1, description="Rank of the adapters. Raise it where training cannot fit the preferences."
    )
    alpha: int = Field(
        32, ge=1, description="Scale of the adapters: their output is multiplied by alpha / rank."
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear modules that get adapters, as in PEFT."
    )


class ModelConfig(Section):
    """The policy to align."""

    trust_remote_code: ClassVar[bool] = False  # code of a model repository is never run

    path: str = Field(
        TINY_MODEL,
        description="`embedded` (the rehearsal's tiny model), a folder, or a name on the Hugging Face hub.",
    )
    gguf_file: str | None = Field(None, description="GGUF file inside the folder or repository.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub name.")
    device: Device = Field(
        "auto", description="`auto` takes cuda, else mps, else cpu; or cpu, mps, cuda, cuda:N."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of products, and of the frozen linear layers; trained weights are float32. `auto` is "
        "bfloat16 where the hardware multiplies it (on a processor from hidden size 512), else float32. bfloat16 "
        "halves the memory of the frozen layers.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass. It saves memory and costs a forward pass.",
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="Attention kernel, as in transformers; null: the model's default."
    )
    layers: Layers = Field(
        "auto",
        description="What is trained: top:N (the top N layers), all, lora, or lora_top:N (adapters on the top N). "
        "`auto` is the top fifth of the layers (at least two) where the architecture can be cut, else all. Frozen "
        "layers are held once for policy, reference, value function and reward models.",
    )
    lora: LoraConfig = LoraConfig()
    cache_gib: float = Field(
        4.0,
        ge=0,
        description="GiB of memory for activations of the frozen layers, which are computed once per sequence; the "
        "rest is written to a file.",
    )
    max_prompt_tokens: int = Field(
        64, ge=1, description="Longest prompt in tokens. Longer prompts are left out and counted."
    )
    max_response_tokens: int = Field(
        56,
        ge=1,
        description="Longest response in tokens, sampled or trained on. Set it to what your data needs.",
    )
    use_chat_template: bool | None = Field(
        None,
        description="Whether prompts are formatted with the tokenizer's chat template; null: where the tokenizer "
        "has one and the prompt consists of messages.",
    )
