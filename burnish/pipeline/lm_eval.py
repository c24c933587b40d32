"""Tasks of EleutherAI's lm-eval as regression sets: the harness scores a policy's answers.

The policy uses the base that all policies share. Likelihoods are compared at temperature 1. Text
is generated greedily unless the task says otherwise.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from burnish.config.evaluate import EvaluateConfig, RegressionSet
from burnish.errors import ConfigError, DataError
from burnish.models.batches import CPU
from burnish.models.device import traits
from burnish.models.generate import sample_ids
from burnish.models.logprobs import Policy, likelihood_and_greedy
from burnish.models.memory import first_line
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Models, context_of
from burnish.randomness import generator

GREEDY = 1e-4  # temperature: still distinguishes logits that differ by a ten-thousandth
NO_LIMIT = 2048  # context in tokens of a model that gives no limit
LONGEST_ANSWER = 256  # tokens, if the task gives no limit
Marks = dict[tuple[str, int], float]


def marks_of(
    models: Models, policies: Sequence[Policy], given: RegressionSet, config: EvaluateConfig
) -> list[Marks]:
    """Return every policy's mark for each question of a task, by (task, question); higher is better."""
    assert given.task is not None
    manager = knowing(given.task, given.include)
    return [asked(Answers(models, policy, config), manager, given) for policy in policies]


def knowing(task: str, include: str | None) -> TaskManager:
    """Return a task manager for the task: of the user's folder, or of lm-eval (which takes seconds)."""
    for own in (True, False):
        if own and include is None:
            continue
        manager = TaskManager(include_path=include, include_defaults=not own)
        if task in {*manager.all_tasks, *manager.all_groups, *manager.all_tags}:
            return manager
    raise ConfigError(
        f"evaluate.regression_sets: lm-eval knows no task {task!r}; `lm-eval ls tasks` lists them, and `include` is a "
        "folder with tasks of your own"
    )


def asked(answers: Answers, manager: TaskManager, given: RegressionSet) -> Marks:
    """Run a task on one policy and return its marks; raise DataError if the task cannot run."""
    templated = bool(answers.tokenizer.chat_template) and answers.models.codec.use_chat_template is not False
    loudness = logging.getLogger("lm_eval").level
    try:
        found: Any = simple_evaluate(
            answers,
            tasks=[given.task],
            limit=given.limit,
            task_manager=manager,
            bootstrap_iters=0,
            apply_chat_template=templated,
            verbosity="ERROR",
        )
    except (OSError, ValueError) as error:  # no data, no network, or the task has code of its own
        raise DataError(
            f"lm-eval's task {given.task!r} could not be run: {first_line(error)}; is its data here? "
            "`lm-eval validate --tasks NAME` says more"
        ) from error
    finally:
        logging.getLogger("lm_eval").setLevel(loudness)
    return {
        (name, int(row["doc_id"])): value
        for name, rows in found["samples"].items()
        for row, value in marked(name, rows, found["higher_is_better"].get(name, {}), given.metric)
    }


def marked(
    name: str, rows: Sequence[Mapping[str, Any]], better: Mapping[str, bool | None], metric: str | None
) -> list[tuple[Mapping[str, Any], float]]:
    """Return a task's rows with their values, by one metric and filter ("exact_match,strict-match")."""
    wanted, _, chosen = (metric or "").partition(",")
    offered = [m for m in (rows[0]["metrics"] if rows else []) if better.get(m) is not None]
    if wanted:
        offered = [m for m in offered if m == wanted]
    filters = list(dict.fromkeys(row["filter"] for row in rows))
    if chosen:
        filters = [f for f in filters if f == chosen]
    for m in offered:
        own = [row for row in rows if row["filter"] == filters[0]] if filters else []
        if own and all(isinstance(row[m], int | float) and math.isfinite(row[m]) for row in own):
            sign = 1.0 if better[m] else -1.0
            return [(row, sign * float(row[m])) for row in own]
    have = sorted({m for row in rows for m in row["metrics"]})
    raise ConfigError(
        f"evaluate.regression_sets: task {name!r} has no figure for each question"
        f"{f' called {metric!r}' if metric else ''}; it has {', '.join(have) or 'none'}. Set `metric` to one that "
        "gives every question a value"
    )


class Answers(TemplateLM):  # type: ignore[misc]
    """A policy with the interface that lm-eval expects of a model."""

    def __init__(self, models: Models, policy: Policy, config: EvaluateConfig) -> None:
        super().__init__()
        self.models, self.policy, self.batch_size = models, replace(policy), config.batch_size  # own settings
        self.tokenizer: Any = models.codec.tokenizer
        self.room = context_of(models.base.lm) or NO_LIMIT

    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-sequence token."""
        return self.models.codec.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token before a text without context: the start token, else the end-of-sequence token."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a chat history as text with the tokenizer's chat template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text without a second start token or a trailing end-of-sequence token."""
        if add_special_tokens is None:
            start = self.tokenizer.bos_token
            add_special_tokens = not (start and string.startswith(start))
        ids = list(self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"])
        while add_special_tokens and ids and ids[-1] in self.models.codec.eos_ids:
            ids.pop()
        return ids

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihoods as `TemplateLM` does, by default without its progress bar."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of every continuation in nats, and whether it is the greedy one."""
        prompts, continuations = [], []
        for _text, before, after in requests:
            kept = after[-(self.room - 1) :]
            prompts.append(before[-(self.room - len(kept)) :])
            continuations.append(kept)
        codec, policy, base = self.models.codec, self.policy, self.models.base
        policy.temperature = 1.0
        sequences = Sequences(base, prompts, continuations, codec.pad_id)

        def read(size: int) -> dict[int, tuple[float, bool]]:
            found = dict[int, tuple[float, bool]]()
            for rows, batch in sequences.batches(size):
                nats, greedy = likelihood_and_greedy(policy, batch)
                found |= dict(zip(rows, zip(nats.tolist(), greedy.tolist(), strict=True), strict=True))
            return found

        by_row = base.memory.fit("regression sets", min(self.batch_size, traits(base.device).rows), read)
        return [by_row[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts in nats, in windows of the model's context."""
        windows = [
            [
                make_disjoint_window(w)
                for w in get_rolling_token_windows(
                    self.tok_encode(request.args[0], add_special_tokens=False),
                    self.prefix_token_id,
                    self.room - 1,  # one more token precedes each window
                    1,
                )
            ]
            for request in requests
        ]
        said = iter(self._loglikelihood_tokens([(None, a, b) for each in windows for a, b in each]))
        return [sum(next(said)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate texts and cut them off before the first stop string of the task."""
        together = defaultdict[tuple[int, float], list[int]](list)
        for i, request in enumerate(requests):
            asked: dict[str, Any] = request.args[1]
            tokens = int(asked.get("max_gen_toks", LONGEST_ANSWER))
            heat = float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0
            together[min(tokens, self.room // 2), heat or GREEDY].append(i)
        texts = [""] * len(requests)
        for (tokens, heat), rows in together.items():
            encoded = [self.tok_encode(requests[i].args[0])[-(self.room - tokens) :] for i in rows]
            self.policy.temperature = heat
            draws = torch.rand(
                len(rows), tokens, generator=generator(0, "lm-eval", tokens), dtype=torch.float64, device=CPU
            )
            found = self.models.base.memory.fit(
                "sampling",
                self.batch_size,
                partial(sample_ids, self.policy, self.models.codec, encoded, draws),
            )
            for i, ids in zip(rows, found.ids, strict=True):
                texts[i] = self.models.codec.decode(ids)
        return [
            cut_off(text, request.args[1].get("until")) for text, request in zip(texts, requests, strict=True)
        ]


def cut_off(text: str, until: str | Sequence[str] | None) -> str:
    """Return a text up to the first of the `until` strings."""
    for end in [until] if isinstance(until, str) else until or []:
        if end:
            text = text.partition(end)[0]
    return text
