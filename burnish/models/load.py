"""Loading of causal language models and tokenizers; repairs of pad, end and chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from burnish.config.model import TINY_MODEL, ModelConfig
from burnish.distributed import collectives, heartbeats
from burnish.errors import ConfigError, DataError, ModelError, ran_out
from burnish.models.device import has_fast_bfloat16
from burnish.records import Prompt

PAD_TOKEN = "<|burnish_pad|>"
ENCODING = Lock()  # one thread at a time uses a tokenizer
MARK = "\ue0b7\ue0b8"  # private use: replaces a control token that occurs as text


@dataclass(frozen=True)
class Codec:
    """A codec between text and token ids.

    `pad_id` stands only for padding and is never sampled. It differs from text even for code that
    masks by token.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    eos_id: int
    eos_ids: frozenset[int]
    use_chat_template: bool | None
    turn_end: int | None = None  # token that ends a reply in the chat template, if it has one

    def templated(self, prompt: Prompt) -> bool:
        """Check whether a prompt goes through the chat template."""
        return self.use_chat_template if self.use_chat_template is not None else bool(prompt.messages)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt.

        A dialogue goes through the chat template, unless `use_chat_template` says always or never.
        Without the template, a dialogue is its plain text, up to the assistant's turn. Control
        tokens written in a prompt are encoded as text; those of the template stay control tokens.
        Raise DataError for a dialogue that the template refuses, or an empty prompt.
        """
        text = prompt.text
        if prompt.messages and not self.templated(prompt):
            text = f"{text}\n\nAssistant:"
        elif self.templated(prompt):
            turns = prompt.messages
            messages = [{"role": m.role, "content": m.content} for m in turns] or [
                {"role": "user", "content": prompt.text}
            ]
            if not self.tokenizer.chat_template:
                raise ModelError(
                    "the prompts are dialogues but the tokenizer has no chat template; use a chat model, set "
                    "model.use_chat_template to false (User: ... Assistant: ...), or give plain text"
                )
            return self._through_template(messages)
        ids = self._ids(text, plain=True, begin=True)
        # Some tokenizers end every text with EOS, but a prompt must be open to continue.
        while ids and ids[-1] in self.eos_ids:
            ids.pop()
        if not ids:
            raise DataError(f"prompt {prompt.id} is empty after tokenization; drop it")
        return ids

    def encode_response(self, text: str, *, end: bool = True, to: Prompt | None = None) -> list[int]:
        """Return the token ids of a response `to` a prompt.

        They end with the end-of-sequence token, or the chat template's own for a prompt that goes
        through it. With `end` False (a cut-off answer) there is no end token.
        """
        ids = self._plain(text)
        if not end:
            return ids
        own = self.turn_end if to is not None and self.templated(to) else None
        return [*ids, self.eos_id if own is None else own]

    def _plain(self, text: str) -> list[int]:
        """Return the token ids of a text, with control tokens encoded as text."""
        return self._ids(text, plain=True)

    def _ids(self, text: str, *, plain: bool = False, begin: bool = False) -> list[int]:
        """Return the token ids of a text.

        With `plain`, control tokens in it are encoded as text. With `begin`, the tokenizer adds its
        tokens before and after the text. The tokenizer keeps the choice as a state, so threads take
        turns.
        """
        with ENCODING:
            found = self.tokenizer(text, add_special_tokens=begin, split_special_tokens=plain)
        return list(found["input_ids"])

    def _through_template(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the token ids of a dialogue through the chat template.

        Control tokens in its contents are replaced while the template is rendered, and then each is
        encoded as text.
        """
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {str(t) for t in self.tokenizer.all_special_tokens} | {t.content for t in added if t.special}
        control = [t for t in tokens if any(t in m["content"] for m in messages)]
        aside: list[str] = []

        def put_aside(found: re.Match[str]) -> str:
            aside.append(found.group())
            return MARK

        if control:
            pattern = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))
            messages = [{**m, "content": pattern.sub(put_aside, m["content"])} for m in messages]
        try:
            text = str(
                self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            why = str(error).strip() or type(error).__name__
            raise DataError(f"the chat template refuses the dialogue: {why}") from error
        first, *rest = text.split(MARK) if control else [text]
        if len(rest) != len(aside):
            raise DataError(
                f"the chat template changes a dialogue that holds {control[0]!r} as text; leave the row out"
            )
        ids = self._ids(first)
        for token, part in zip(aside, rest, strict=True):
            ids += self._plain(token)
            ids += self._ids(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


EMBEDDED_MODEL = Path(str(files("burnish"))) / "rehearse" / "model"
"""Folder of the embedded model: weights, tokenizer, configuration."""


def resolve_path(path: str) -> str:
    """Return the folder of the embedded model, or the path or hub name itself."""
    if path != TINY_MODEL:
        return path
    return str(EMBEDDED_MODEL)


def load_model(
    config: ModelConfig, *, path: str | Path | None = None, weights: bool = True, as_held: bool = False
) -> tuple[PreTrainedModel, Codec]:
    """Return the model in float32 and eval mode, and its codec.

    `path` overrides the configured one (an exported policy). Without `weights` the model has shapes
    on the meta device, and only its configuration is read. With `as_held`, a model whose files are
    in bfloat16 and whose frozen weights are held so is loaded in bfloat16, straight to its device
    (see `Backbone`). Raise ModelError with the next step if it cannot be loaded.
    """
    source = resolve_path(config.path) if path is None else str(path)
    gguf = config.gguf_file if path is None else None
    extra: dict[str, Any] = {}
    disable_progress_bar()
    if gguf is not None:
        from transformers import GgufConfig

        extra = {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
    if path is None and config.revision is not None:
        extra["revision"] = config.revision
    if config.attn_implementation is not None:
        extra["attn_implementation"] = config.attn_implementation
    which = {k: extra[k] for k in ("gguf_file", "revision") if k in extra}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **which)
        if weights:
            place = {}
            if as_held and gguf is None and _in_bfloat16(AutoConfig.from_pretrained(source, **which), config):
                place = {"dtype": torch.bfloat16, "device_map": {"": find_device(config.device)}}
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                **{"dtype": torch.float32} | place,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `check_weights` refuses them, and names them
                **extra,
            )
            model, info = loaded
            check_weights(source, info)
        else:
            known = AutoConfig.from_pretrained(source, **which)
            attention = {k: extra[k] for k in ("attn_implementation",) if k in extra}
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(known, dtype=torch.float32, **attention)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if ran_out(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path={source!r} cannot be loaded: {first}. Give a folder with config.json and weights, or "
            "a hub name that is reachable from here; for a GGUF file set model.gguf_file"
        ) from error
    refuse_state(model)
    if weights:
        own_memory(model)
    codec = make_codec(tokenizer, model, config.use_chat_template)
    model.eval()
    if weights:
        model.to(find_device(config.device))
    return model, codec


def _in_bfloat16(known: Any, config: ModelConfig) -> bool:
    """Check whether a model's files are in bfloat16, and its frozen weights are to be held so."""
    size = int(known.get_text_config().hidden_size)
    held = find_dtype(config.dtype, find_device(config.device), size)
    return known.dtype == held == torch.bfloat16


HARMLESS = re.compile(
    r"(inv_freq|masked_bias|position_ids|attn\.bias|attention\.bias)$"
)  # buffers of old versions
NAMED = 4  # tensors that an error names


def check_weights(source: str, info: Mapping[str, Any]) -> None:
    """Raise ModelError unless the files hold exactly the model's tensors, in their shapes.

    A missing tensor would be random, and a file with other names belongs to another model.
    """
    found = {
        "are missing": sorted(info.get("missing_keys") or ()),
        "have another shape": sorted(str(name) for name, *_ in info.get("mismatched_keys") or ()),
        "belong to nothing in it": sorted(
            k for k in info.get("unexpected_keys") or () if not HARMLESS.search(k)
        ),
    }
    wrong = [
        f"{len(names)} tensors {what} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for what, names in found.items()
        if names
    ]
    if wrong:
        raise ModelError(
            f"model.path={source!r} holds the weights of another model: {'; '.join(wrong)}. Save it again as a causal "
            "language model (save_pretrained), or name the tensors as its config.json expects"
        )


def refuse_state(model: PreTrainedModel) -> None:
    """Raise ModelError for state-space models, whose state runs over all tokens, padding included."""
    if getattr(model, "_is_stateful", False):
        raise ModelError(
            f"a {type(model).__name__} keeps a state that padding changes, so batches of several lengths cannot be "
            "sampled and trained on alike; use a model with attention"
        )


def mend_generation_config(model: PreTrainedModel) -> None:
    """Set `do_sample` in a config with sampling values, which could not be saved without it."""
    config = model.generation_config
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


def find_device(name: str) -> torch.device:
    """Return the device that a configuration names.

    `auto` is the first available one of cuda, mps and cpu. Each process of a machine has a GPU of
    its own. Raise ConfigError for a device that is not available.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    device, several = torch.device(name), collectives.processes() > 1
    if device.type == "cuda" and device.index is None and several and there["cuda"]:
        device = torch.device("cuda", heartbeats.local() % torch.cuda.device_count())
    if not there[device.type] or (device.index or 0) >= max(1, torch.cuda.device_count()):
        found = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ConfigError(
            f"model.device={name!r}, but torch finds only {found} here; use one of these, or auto"
        )
    return device


WIDE = 512  # hidden size from which a processor gains by bfloat16; below, its overhead is as large


def find_dtype(name: str, device: torch.device, hidden_size: int) -> torch.dtype:
    """Return the configured precision of a model.

    `auto` is bfloat16 on a device that multiplies it in hardware, on a processor for models of
    hidden size `WIDE` or more. Otherwise it is float32.
    """
    if name == "auto":
        gains = has_fast_bfloat16(device) and (device.type != "cpu" or hidden_size >= WIDE)
        name = "bfloat16" if gains else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def own_memory(model: nn.Module) -> None:
    """Copy weights out of memory-mapped files.

    Aligned memory keeps matrix products bit-identical from run to run, at any offset in the file.
    """
    for parameter in model.parameters():  # tied ones come once
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def make_codec(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, use_chat_template: bool | None
) -> Codec:
    """Return the codec of a model, and give the model a dedicated pad id.

    The codec has every end-of-sequence id, including the chat template's. The pad id takes a new
    row if the model has none.
    """
    turn_end = template_end(tokenizer)
    ends = {tokenizer.eos_token_id, turn_end, *_ids(model.config.eos_token_id)}
    if model.generation_config is not None:
        ends |= set(_ids(model.generation_config.eos_token_id))
    ends.discard(None)
    if not ends:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so responses could never end; set eos_token in its "
            "tokenizer_config.json"
        )
    eos_ids = frozenset(int(i) for i in ends if i is not None)
    eos_id = int(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else min(eos_ids)
    own_pad = tokenizer.pad_token_id is None or tokenizer.pad_token_id in eos_ids | _used_specials(tokenizer)
    if own_pad:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    embedding: Any = model.get_input_embeddings()
    rows = max(tokenizer.get_vocab().values()) + 1
    if rows - own_pad > embedding.num_embeddings:
        raise ModelError(
            f"the tokenizer has {rows - own_pad} tokens, but the model {embedding.num_embeddings} rows for them: it is "
            "the tokenizer of another model, or the model was not resized; give the pair that belongs together"
        )
    grows = rows > embedding.num_embeddings
    if rows != embedding.num_embeddings:
        # Models may have rows beyond the tokenizer: these stand for no text and must not be sampled.
        model.resize_token_embeddings(rows, mean_resizing=False)
    if own_pad and grows:
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                matrix: Any = layer
                matrix.weight[tokenizer.pad_token_id].zero_()
    pad_id = int(tokenizer.pad_token_id)
    model.config.pad_token_id = pad_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = pad_id
        model.generation_config.eos_token_id = sorted(eos_ids)
        model.generation_config.suppress_tokens = [pad_id]
    mend_generation_config(model)
    if use_chat_template and not tokenizer.chat_template:
        raise ModelError(
            "model.use_chat_template is true but the tokenizer has no chat template; set it to false"
        )
    return Codec(tokenizer, pad_id, eos_id, eos_ids, use_chat_template, turn_end)


def template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template puts after a reply, or None.

    Examples are Gemma's `<end_of_turn>` and Llama 3's `<|eot_id|>`. It is None without a template,
    or if no special token ends a reply. The model's configuration does not always name it.
    """
    if not tokenizer.chat_template:
        return None
    reply = "the reply"
    turns = [{"role": "user", "content": "the question"}, {"role": "assistant", "content": reply}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer's chat template cannot render a reply to a user: {error}") from error
    after = str(text).rpartition(reply)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return int(ids[0]) if ids and ids[0] in special else None


def _ids(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _used_specials(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the special ids that occur in text, so that none of them can double as padding."""
    return {i for i in (tokenizer.bos_token_id, tokenizer.unk_token_id) if i is not None}
