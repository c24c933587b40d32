"""Published reward models as terms of PPO's reward: sequence classifiers with one label and their own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from burnish.errors import ConfigError, TrainingError
from burnish.records import Prompt

HEADS = ("score.", "classifier.", "classification_head.", "v_head.")


class PublishedReward:
    """A Hugging Face `AutoModelForSequenceClassification` with one label.

    A response is scored after its prompt, in the model's own chat template if it has one, as a
    conversation of a user's and an assistant's turn. Without a template the texts are joined. Scores
    equal those of a plain transformers call on the same text. Raises ConfigError if the model cannot be
    loaded, has another number of labels, or lacks its head.
    """

    def __init__(self, name: str, device: torch.device, dtype: str, batch_size: int) -> None:
        self.name, self.device, self.batch_size = name, device, batch_size
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                name, dtype="auto" if dtype == "auto" else getattr(torch, dtype), output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"ppo.rewards names the model {name!r}, which cannot be loaded "
                f"({str(error).strip().splitlines()[0]}); give a folder or a hub name of a sequence classifier"
            ) from error
        model, info = loaded
        if model.config.num_labels != 1:
            raise ConfigError(
                f"ppo.rewards names the model {name!r}, which has {model.config.num_labels} labels; a reward model has "
                "one"
            )
        missing = sorted(str(key) for key in info["missing_keys"])
        if missing:
            head = any(key.startswith(HEADS) for key in missing)
            raise ConfigError(
                f"ppo.rewards names the model {name!r}, whose files lack {missing[0]!r}"
                + (": it is a language model without a reward head" if head else "")
                + "; give a reward model"
            )
        self.model: Any = model.to(device).eval()
        self.config = model.config.get_text_config()
        self.context = getattr(self.config, "max_position_embeddings", None)

    def ids(self, prompt: Prompt, response: str) -> list[int]:
        """Return the token ids of a prompt with its response; the template alone adds special tokens, if any."""
        if self.tokenizer.chat_template is None:
            asked = prompt.text if not prompt.messages else f"{prompt.text}\n\nAssistant: "
            return list(self.tokenizer(asked + response)["input_ids"])
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        turns = turns or [{"role": "user", "content": prompt.text}]
        text = self.tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": response}], tokenize=False
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def scores(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[float]:
        """Return one score for each response; raises TrainingError for a text that exceeds the model's context."""
        rows = [self.ids(p, r) for p, r in zip(prompts, responses, strict=True)]
        longest = max(map(len, rows), default=0)
        if self.context is not None and longest > self.context:
            raise TrainingError(
                f"a prompt with its response has {longest} tokens of {self.name!r}, which reads {self.context}; lower "
                "model.max_prompt_tokens or model.max_response_tokens"
            )
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = [0.0] * len(rows)
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            for i, value in zip(chosen, self.logits([rows[i] for i in chosen]).tolist(), strict=True):
                found[i] = value
        return found

    def logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the scores (B,) of rows of token ids, padded on the right.

        Classifiers read the last token that is not the pad token. A model without one gets a token that
        no row has, so that it reads the last token, as it does for a row alone.
        """
        own = self.config.pad_token_id
        pad = own
        if pad is None:
            used = {token for row in rows for token in row}
            pad = next(token for token in range(len(used) + 1) if token not in used)
        ids = torch.full((len(rows), max(map(len, rows))), pad, device=self.device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, device=self.device)
            mask[i, : len(row)] = 1
        self.config.pad_token_id = pad
        try:
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits[:, 0]
        finally:
            self.config.pad_token_id = own
        return logits.float()
