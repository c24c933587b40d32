"""A first configuration for a model and a file of preferences, with limits taken from both."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from burnish.config.data import DataConfig
from burnish.config.evaluate import EvaluateConfig
from burnish.config.model import ModelConfig
from burnish.data.preferences import read_preferences
from burnish.errors import DataError
from burnish.models.load import Codec, load_model
from burnish.pipeline.context import context_of
from burnish.records import Prompt

SHARE = 0.95  # share of prompts, and of answers, within the limits
MEASURED = 4000  # prompts and answers whose tokens are counted, at most
UPDATE_SECONDS = 60  # of PPO; its 36 updates then take about half an hour
STEP = 16  # tokens; limits are rounded up to a multiple of it


def prompt_tokens(codec: Codec, prompt: Prompt) -> int | None:
    """Return the length of a prompt, or None if the chat template refuses its dialogue.

    A run counts such dialogues and leaves them out.
    """
    try:
        return len(codec.encode_prompt(prompt))
    except DataError:
        return None


def suited_settings(path: str, gguf_file: str | None, preferences: str) -> tuple[dict[str, Any], str]:
    """Return settings by section for a model and its preferences, and a line on their source.

    Raises ModelError or DataError for files that cannot be read. Raises DataError if the chat template
    refuses every prompt, or if there are too few prompts.
    """
    config = ModelConfig(path=path, gguf_file=gguf_file)
    lm, codec = load_model(config, weights=False)
    pairs = read_preferences(preferences).pairs
    templated = bool(codec.tokenizer.chat_template)
    codec = replace(codec, use_chat_template=templated)
    prompts = {p.prompt.id: p.prompt for p in pairs}
    answers = {(p.prompt.id, text): p.prompt for p in pairs for text in (p.chosen, p.rejected)}
    rng = random.Random(0)
    some = rng.sample(list(prompts.values()), min(len(prompts), MEASURED))
    replies = rng.sample(list(answers.items()), min(len(answers), MEASURED))
    lengths = [n for p in some if (n := prompt_tokens(codec, p)) is not None]
    if not lengths:
        codec.encode_prompt(some[0])  # raises an error with the reason
    asked = limit(lengths)
    said = limit([len(codec.encode_response(text, to=p)) for (_, text), p in replies])
    context = context_of(lm)
    if context is not None and asked + said > context:
        said = min(said, context // 2)
        asked = context - said
    groups = len({p.group for p in prompts.values()})
    shares, wanted = DataConfig(), EvaluateConfig()
    n_selection, n_test = (
        min(most, int(share * groups))
        for share, most in (
            (shares.selection_share, wanted.n_selection),
            (shares.test_share, wanted.n_test),
        )
    )
    if min(n_selection, n_test) < 8:
        raise DataError(
            f"{preferences} has {groups} different prompts; too few to hold some back for an examination: give 60 at "
            "least"
        )
    settings = {
        "model": {
            "path": path,
            **({"gguf_file": gguf_file} if gguf_file else {}),
            "max_prompt_tokens": asked,
            "max_response_tokens": said,
            "use_chat_template": templated,
        },
        "data": {"prompts": "preferences"},
        "label": {"source": "imported", "preferences": preferences},
        "ppo": {"update_seconds": UPDATE_SECONDS},
        "evaluate": {"examiner": "reward_model", "n_selection": n_selection, "n_test": n_test},
    }
    return settings, (
        f"{len(pairs)} pairs on {groups} prompts; {SHARE:.0%} of prompts and of answers are within the limits, "
        f"the model takes {context or 'any number of'} tokens"
    )


def limit(lengths: Sequence[int]) -> int:
    """Return the number of tokens within which `SHARE` of the lengths lie, rounded up to `STEP`."""
    longest = sorted(lengths)[math.ceil(SHARE * len(lengths)) - 1]
    return math.ceil(longest / STEP) * STEP


def head(settings: dict[str, Any], source: str) -> str:
    """Return the beginning of the configuration file: its source as a comment, and the settings."""
    body = yaml.safe_dump({"name": "align", **settings}, sort_keys=False, allow_unicode=True)
    return f"# {source}.\n{body}"
