"""Looks at the policy on held-out prompts during PPO, and the checkpoint that a held-out judge prefers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from burnish.distributed import collectives
from burnish.models.generate import sample_rollout
from burnish.models.logprobs import Policy
from burnish.policy.ppo import PPO
from burnish.policy.rollouts import kl_to_reference
from burnish.records import Decision, Prompt, Rollout, StepStats
from burnish.stats import clustered_error, earliest_near_best

Measure = Callable[[Rollout], Mapping[str, Sequence[float]]]
"""Function that gives each response of a rollout a number, for each judge by its name."""


@dataclass
class Looks:
    """Looks at PPO's policy on the same held-out prompts, every `every` updates and at the end.

    All looks use the same random numbers, so that two of them differ by the policy alone. If `measure`
    has the judge `judge`, the weights of every look are kept in `folder`, and `best` chooses among them.
    `seen` has one row for each look: step, attempt, KL and the judge's values.
    """

    prompts: Sequence[Prompt]
    measure: Measure
    judge: str | None
    every: int
    folder: Path
    plain: Callable[[Rollout], Rollout] | None = None  # removes an instruction before judges read
    sets: Callable[[Policy], Mapping[str, float]] | None = None  # figures of other prompts, by name
    seen: list[dict[str, Any]] = field(default_factory=list)

    def due(self, ppo: PPO) -> bool:
        """Return whether to look after this update."""
        return ppo.step % self.every == 0 or ppo.done

    def look(self, ppo: PPO) -> StepStats:
        """Sample one response to every prompt, and return the means by judge, KL and lengths.

        The KL to the reference is exact over the vocabulary at every token, in nats per response.
        """
        rollout = sample_rollout(
            ppo.policy,
            ppo.codec,
            self.prompts,
            max_tokens=ppo.max_tokens,
            batch_size=ppo.config.batch_size,
            seed=ppo.seed,
            where=("look",),
        )
        values = self.measure(rollout if self.plain is None else self.plain(rollout))
        kl = kl_to_reference(ppo.policy, ppo.reference, rollout).tolist()
        found = {"kl": kl, "length": [float(n) for n in rollout.lengths], **values}
        figures = {name: sum(v) / len(v) for name, v in found.items()}
        figures["truncated"] = 1.0 - sum(rollout.ended) / len(rollout)
        figures |= {} if self.sets is None else self.sets(ppo.policy)
        groups = [p.group for p in self.prompts]
        if self.judge is not None and len(set(groups)) > 1:
            figures[f"{self.judge}_se"] = clustered_error(values[self.judge], groups)
        figures = collectives.leaders(figures)
        if self.judge is not None:
            row = {"step": ppo.step, "attempt": ppo.attempt, "kl": figures["kl"]}
            self.seen.append(row | {"values": collectives.leaders(list(values[self.judge]))})
            collectives.by_lead(partial(self._keep, ppo.policy.top.trained_state(), self._file(row)))()
        return StepStats(ppo.step, ppo.attempt, figures)

    def best(self) -> dict[str, Any] | None:
        """Return the row of the earliest look within one standard error of the best; None without looks.

        The error is that of the difference to the best, paired by prompt and clustered by group. The best
        of noisy looks is in part luck, and an earlier policy has spent less KL.
        """
        groups = [p.group for p in self.prompts]
        if not self.seen or len(set(groups)) < 2:
            return None
        return self.seen[earliest_near_best([row["values"] for row in self.seen], groups)]

    def weights(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the trained weights of a look."""
        return load_file(self._file(row))

    def chosen(self, row: Mapping[str, Any]) -> Decision:
        """Return the decision that makes a look a candidate."""
        looks = {f"{r['attempt']}/{r['step']}": sum(r["values"]) / len(r["values"]) for r in self.seen}
        best, own = max(looks.values()), sum(row["values"]) / len(row["values"])
        text = (
            f"the policy after update {row['step']} is a candidate: of {len(looks)} looks at {len(self.prompts)} "
            f"held-out prompts it is the earliest within one standard error of the best by the {self.judge} "
            f"({own:.2f} sd at {row['kl']:.2f} nats, best {best:.2f})"
        )
        return Decision("best_checkpoint", text, {"step": row["step"], "kl": row["kl"], "looks": looks})

    def _file(self, row: Mapping[str, Any]) -> Path:
        return self.folder / f"{row['attempt']}-{row['step']}.safetensors"

    def _keep(self, state: dict[str, torch.Tensor], file: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(state, file)
