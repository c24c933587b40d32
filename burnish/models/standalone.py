"""Best-of-n sampling with the model in this folder.

Sample several answers of the model and print the one that the reward models next to it score
highest:

    python generate.py "Once upon a time"

The script needs only numpy, torch, transformers and safetensors. `aggregate` is also the rule of the
run that made the model.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

HERE = Path(__file__).parent


def aggregate(
    members: torch.Tensor,
    reference: torch.Tensor,
    how: str,
    *,
    uwo_lambda: float = 0.1,
    std_lambda: float = 0.5,
    reference_variance: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine normalised member scores (B, K) into scores (B,) and their deviation (B,).

    Bradley-Terry scores have a free offset for each prompt. Members are therefore compared after
    subtracting their own score of a reference response to the same prompt:
    d_k = r_k(x, y) - r_k(x, y_ref), with `reference` (B, K).

    - mean, weights: the mean of the members; weights has one member, whose weights were averaged before.
    - min: min_k d_k plus the mean reference score (Coste et al. 2023, WCO without the offset).
    - uwo: mean - lambda * Var_k(d) / reference variance (Coste et al. Eq. 5, biased variance).
    - mean_std: mean - lambda * sd_k(d) / reference sd (Eisenstein et al. 2023).
    """
    assert members.shape == reference.shape
    mean = members.mean(1)
    difference = members - reference
    variance = difference.var(1, unbiased=False)
    if how in ("mean", "weights"):
        scores = mean
    elif how == "min":
        scores = difference.min(1).values + reference.mean(1)
    elif how == "uwo":
        scores = mean - uwo_lambda * variance / reference_variance
    else:
        scores = mean - std_lambda * (variance / reference_variance).sqrt()
    return scores, variance.sqrt()


class Member:
    """A reward model that reads the last token of a response, or the mean over its tokens."""

    def __init__(self, folder: Path) -> None:
        head = folder / "head.safetensors"
        self.weight = load_file(head)["score.weight"][0] if head.exists() else None
        reading = folder / "reading.json"
        self.last = reading.exists() and json.loads(reading.read_text(encoding="utf-8"))["pooling"] == "last"
        kind = AutoModelForSequenceClassification if self.weight is None else AutoModel
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()

    def score(self, prompt_ids: list[int], response_ids: list[int]) -> float:
        """Return the raw score of a response."""
        output = self.model(input_ids=torch.tensor([[*prompt_ids, *response_ids]]))
        if self.weight is None:
            return float(output.logits[0, 0])
        said = output.last_hidden_state[0, len(prompt_ids) :]
        return float((said[-1] if self.last else said.mean(0)) @ self.weight)


class BestOf:
    """A policy and its reward ensemble, as they were evaluated together."""

    def __init__(self, folder: Path = HERE) -> None:
        self.settings = json.loads((folder / "best_of.json").read_text(encoding="utf-8"))
        self.ensemble = json.loads((folder / "reward" / "ensemble.json").read_text(encoding="utf-8"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.policy: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        names = self.ensemble["folders"]
        self.members = [Member(folder / "reward" / name) for name in names]

    def encode(self, prompt: str | list[dict[str, str]]) -> list[int]:
        """Return the token ids of a text, or of a dialogue given as a list of messages."""
        templated = self.settings["use_chat_template"]
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        if templated or (templated is None and isinstance(prompt, list)):
            text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if isinstance(prompt, list):
            said = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns]
            prompt = "\n\n".join([*said, "Assistant:"])
        ids = list(self.tokenizer(prompt, split_special_tokens=True)["input_ids"])
        while ids and ids[-1] in self.settings["eos_ids"]:
            ids.pop()
        return ids

    @torch.no_grad()
    def answers(self, prompt: str | list[dict[str, str]]) -> list[tuple[float, str]]:
        """Return all `n` answers with their scores, the best first."""
        ids = self.encode(prompt)
        n = self.settings["n"] + 1  # the last one is the reference, not a candidate
        sampled = self.policy.generate(
            torch.tensor([ids] * n),
            attention_mask=torch.ones(n, len(ids), dtype=torch.long),
            # Ignore the model's own settings: the run sampled from the unchanged distribution.
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=self.settings["temperature"],
                top_k=0,
                top_p=1.0,
                max_new_tokens=self.settings["max_new_tokens"],
                eos_token_id=self.settings["eos_ids"],
                pad_token_id=self.tokenizer.pad_token_id,
                suppress_tokens=[self.tokenizer.pad_token_id],
            ),
        )
        *responses, reference = [self.until_end(row[len(ids) :].tolist()) for row in sampled]
        texts = [str(self.tokenizer.decode(r, skip_special_tokens=True)) for r in responses]
        return sorted(zip(self.scores(ids, responses, reference), texts, strict=True), reverse=True)

    def until_end(self, ids: list[int]) -> list[int]:
        """Return a response without padding, its end-of-sequence token included."""
        ends = [i for i, token in enumerate(ids) if token in self.settings["eos_ids"]]
        return ids[: ends[0] + 1] if ends else ids

    def scores(self, prompt_ids: list[int], responses: list[list[int]], reference: list[int]) -> list[float]:
        """Return one score per response, as in the run that made this folder.

        Members are in standard deviations of the policy's answers. Some aggregations compare
        members after subtracting their scores of the reference answer.
        """
        raw = torch.tensor([[m.score(prompt_ids, r) for m in self.members] for r in [*responses, reference]])
        normalised = (raw - torch.tensor(self.ensemble["mean"])) / torch.tensor(self.ensemble["sd"])
        members = normalised[:-1]
        scores, _ = aggregate(
            members,
            normalised[-1].expand_as(members),
            self.ensemble["aggregate"],
            uwo_lambda=self.ensemble["uwo_lambda"],
            std_lambda=self.ensemble.get("std_lambda", 0.5),
            reference_variance=self.ensemble["reference_variance"],
        )
        lengths = [len(ids) for ids in responses]
        return [self.at_length(s, n) for s, n in zip(scores.tolist(), lengths, strict=True)]

    def at_length(self, score: float, length: int) -> float:
        """Return the score without the effect of the response's length, if the run removed it."""
        fit = self.ensemble.get("length")
        if fit is None:
            return score
        if fit["how"] == "sqrt":
            weight = math.sqrt(max(length, fit["shortest"]) / fit["typical"])
            above = score - fit["zero"]
            score = above / weight if above > 0 else above * weight
        elif fit["how"] == "penalty":
            score -= fit["slope"] * (length - fit["typical"])
        else:
            score -= float(np.interp(length, fit["lengths"], fit["fitted"]))
        return float((score - fit["center"]) * fit["gain"] + fit["mean"])


def main() -> None:
    """Print the best answer to the prompt on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    print(BestOf().answers(arguments.prompt)[0][1])


if __name__ == "__main__":
    main()
