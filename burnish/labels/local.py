"""Judge in this process, by the log-probabilities of the verdict's letters."""

from __future__ import annotations

from pathlib import Path

import torch

from burnish.config.judge import JudgeConfig
from burnish.config.model import ModelConfig
from burnish.errors import ConfigError
from burnish.labels.ledger import Answer
from burnish.models.load import load_model
from burnish.records import Message, Prompt
from burnish.runs.inputs import content_hash

LEAST_SHARE = 0.01  # probability that A and B together need as the next token


class LocalJudge:
    """Judge by a causal language model, prompted through its chat template if it has one."""

    def __init__(self, config: JudgeConfig) -> None:
        if config.model is None:
            raise ConfigError("judge.model is not set; give a folder or hub name, or judge.endpoint")
        self.path = config.model
        self.lm, self.codec = load_model(ModelConfig(path=config.model, gguf_file=config.gguf_file))
        self.templated = bool(self.codec.tokenizer.chat_template)
        self.context = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        self.letters = [self._first_ids(letter) for letter in "AB"]

    @property
    def name(self) -> str:
        """Folder or hub name of the model."""
        return self.path

    @property
    def settings(self) -> str:
        """Hash of the weights, because another model may replace them in the same folder."""
        folder = Path(self.path)
        return content_hash(folder) if folder.exists() else ""

    def _first_ids(self, letter: str) -> list[int]:
        """Return the ids of a letter's spellings that are a single token."""
        spellings = (letter, f" {letter}")
        ids = [self.codec.tokenizer(s, add_special_tokens=False)["input_ids"] for s in spellings]
        return sorted({found[0] for found in ids if len(found) == 1})

    async def close(self) -> None:
        """Do nothing; there are no connections to close."""

    async def ask(self, question: str) -> Answer:
        """Return the log-odds of A against B as the next token, or an abstention."""
        prompt = (
            Prompt.from_messages([Message("user", question)]) if self.templated else Prompt(question + "\n\n")
        )
        ids = self.codec.encode_prompt(prompt)
        if self.context is not None and len(ids) >= self.context:
            return Answer(why=f"the question has {len(ids)} tokens, the model takes {self.context}")
        if not all(self.letters):
            return Answer(why="the tokenizer has no token for the letters A and B")
        with torch.no_grad():  # not as a decorator: that would end before the coroutine runs
            logits = self.lm(input_ids=torch.tensor([ids], device=self.lm.device)).logits[0, -1].float()
        a, b = (torch.logsumexp(logits[spellings], 0) for spellings in self.letters)
        share = float((torch.logaddexp(a, b) - torch.logsumexp(logits, 0)).exp())
        if share < LEAST_SHARE:
            return Answer(why="the model does not answer with a letter", tokens_in=len(ids), tokens_out=1)
        return Answer(log_odds=float(a - b), tokens_in=len(ids), tokens_out=1)
