"""The gate before PPO: stress tests of the reward, and whether best-of-n can optimise it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.config.ppo import PPOConfig
from burnish.distributed import collectives
from burnish.models.device import traits
from burnish.models.logprobs import token_logprobs
from burnish.models.sequences import Sequences
from burnish.monitor.texts import text_figures
from burnish.pipeline.answers import reference_answers, sample_repeatedly
from burnish.pipeline.context import Data, Journal, Models
from burnish.records import Decision, Interval, Prompt, Rollout
from burnish.reward.changes import STRESS, Change, Changed
from burnish.reward.ensemble import (
    RewardEnsemble,
    SavedWatcher,
    best_of,
    gather,
    load_ensemble,
    load_reference,
    reference_scores,
    scores_of_samples,
)
from burnish.reward.gate import GRAVE, gate
from burnish.reward.stress import stress, stress_best_of, summed_up
from burnish.runs.files import read_json, write_json
from burnish.stats import mean_interval
from burnish.textstats import repeated_ngram_share

UNUSUAL = 0.99  # quantile of length and repetition of the policy's own answers, above which one looks hacked

Worth = Callable[[Rollout], Sequence[float]]


def stress_ensemble(
    models: Models,
    ensemble: RewardEnsemble,
    score_sd: float,
    answers: Rollout,
    samples: Sequence[Rollout],
    *,
    references: tuple[Rollout | None, Rollout | None],
    kl_target: float,
    missing_eos_penalty: float,
    seed: int,
    worth: Worth | None = None,
    changes: Sequence[Change] = STRESS,
    looks: int = 1,
) -> dict[str, Any]:
    """Return the stress report: changes of `answers`, and the best of n among the `samples`.

    Chance alarms are limited over all changes and `looks`.

    Scores are the ensemble's as PPO gets them, in units of `score_sd`; other `ppo.rewards` are left
    out. `references` belong to the prompts of `answers` and of `samples` (see `reference_answers`).
    An answer that a change cuts off loses `missing_eos_penalty`. An answer that had not ended does
    not end after a change. `worth` is a judge that is not optimised against, in any unit.
    """
    pad_id = models.codec.pad_id
    sequences = Sequences.of(ensemble.base, answers, pad_id)
    anchor = reference_scores(ensemble, references[0], pad_id)
    before = (ensemble.score(sequences, anchor).scores / score_sd).tolist()
    limit, before_response = models.config.max_response_tokens, models.prompt_room
    context = sys.maxsize if before_response is None else before_response + limit

    def encode(rows: Sequence[int], made: Sequence[Changed]) -> list[list[int]]:
        """Return token ids of changed answers, an empty list for one that exceeds the model's context."""
        found = []
        for row, changed in zip(rows, made, strict=True):
            whole = models.codec.encode_response(changed.text, to=answers.prompts[row])
            text, end = whole[:-1], whole[-1]
            ends = changed.ends if answers.ended[row] else 0
            # A padded answer is read whole, even if it exceeds the policy's response limit.
            room = limit if changed.cut else context - len(answers.prompt_ids[row])
            fits = changed.cut or len(text) + ends <= room
            found.append([*text[: room - ends], *[end] * ends] if fits else [])
        return found

    def judge(rows: Sequence[int], made: Sequence[Changed]) -> list[float | None]:
        ids = encode(rows, made)
        reach = [k for k, row in enumerate(rows) if ids[k] and ids[k] != list(answers.response_ids[row])]
        scores: list[float | None] = [None] * len(rows)
        if reach:
            asked = Sequences(
                ensemble.base, [answers.prompt_ids[rows[k]] for k in reach], [ids[k] for k in reach], pad_id
            )
            own = None if anchor is None else anchor[[rows[k] for k in reach]]
            said = ensemble.score(asked, own).scores / score_sd
            for k, value in zip(reach, said.tolist(), strict=True):
                cut_off = answers.ended[rows[k]] and not made[k].ends
                scores[k] = value - cut_off * missing_eos_penalty / score_sd
        return scores

    def reach(rows: Sequence[int], made: Sequence[Changed]) -> tuple[list[float], list[float]]:
        prompts = [answers.prompt_ids[row] for row in rows]
        own = response_logprobs(models, prompts, [answers.response_ids[row] for row in rows])
        other = response_logprobs(models, prompts, encode(rows, made))
        return own.tolist(), other.tolist()

    report = stress(
        answers.prompts,
        answers.texts,
        before,
        judge,
        seed=seed,
        pull=math.sqrt(2 * kl_target),
        reach=reach,
        changes=changes,
        looks=looks,
    )
    report |= {"answers": len(answers), "kl_target": kl_target, "best_of": None}
    if len(samples) > 1 and len(samples[0]) > 1:
        scores = scores_of_samples(ensemble, samples, references[1], pad_id).T / score_sd
        valued = None if worth is None else np.array([list(worth(r)) for r in samples]).T.tolist()
        confidence = 1 - (1 - CONFIDENCE) / looks
        winners = stress_best_of(scores.tolist(), looks_hacked(samples), valued, confidence)
        report |= {"best_of": winners | {"prompts": len(samples[0])}} | summed_up(report["changes"], winners)
    return report


def response_logprobs(
    models: Models, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the log-probability (N,) of each response under the reference policy, in nats."""
    policy = models.reference()
    base = policy.top.base
    sequences = Sequences(base, prompt_ids, response_ids, models.codec.pad_id)
    return sequences.read(
        lambda batch: token_logprobs(policy, batch).sum(1),
        traits(base.device).rows,
        range(len(sequences)),
        "log-probabilities",
    )


def looks_hacked(samples: Sequence[Rollout]) -> list[list[bool]]:
    """Return whether each answer looks like a known hack, as (prompts, samples).

    Such an answer is cut off, empty, or surely in another language than its prompt. Or it is longer or
    more repetitive than all but 1 % of the policy's own answers.
    """
    lengths = [n for r in samples for n in r.lengths]
    repeats = [repeated_ngram_share(t) for r in samples for t in r.texts]
    longest, most = float(np.quantile(lengths, UNUSUAL)), max(float(np.quantile(repeats, UNUSUAL)), 0.1)

    def one(rollout: Rollout, i: int) -> bool:
        text = rollout.texts[i]
        foreign = text_figures([rollout.prompts[i].text], [text]).get("foreign", 0.0)
        return (
            not rollout.ended[i]
            or not text.strip()
            or foreign > 0
            or rollout.lengths[i] > longest
            or repeated_ngram_share(text) > most
        )

    return [[one(rollout, i) for rollout in samples] for i in range(len(samples[0]))]


GATE_PROMPTS = 64
FIRST_PROMPTS = 32  # of the gate's first look
GATE_ANSWERS = 8
FEWEST = 16
CONFIDENCE = 0.95

STRESSED = "stress.json"


def pass_gate(
    models: Models, data: Data, journal: Journal, config: PPOConfig, watch: SavedWatcher | None, seed: int
) -> str | None:
    """Record whether PPO is worth trying, write stress.json, and return why not (else None).

    There are two looks: at the answers to `FIRST_PROMPTS` prompts, and at those to all, for what the
    first has not settled. Each has half of the error probability (Bonferroni), so the verdict's error
    is that of one look at all.
    """
    rewards = journal.path / "reward"
    examined = read_json(rewards / "examination.json")
    ensemble, prompts = load_ensemble(models.base, rewards), unlearned(data)
    look = Look(models, ensemble, rewards, watch, config, seed)
    first = prompts[:FIRST_PROMPTS] if len(prompts) >= FIRST_PROMPTS + FEWEST else prompts
    look.looks = 1 if len(first) == len(prompts) else 2
    journal.view.note(f"align: {GATE_ANSWERS} answers of SFT to {len(first)} prompts, for the gate")
    lift, stressed = look.at(first)
    if look.looks == 2:
        lift, stressed = look.again(prompts, lift, stressed, journal.view.note)
    write_json(journal.path / STRESSED, stressed)
    hacks = stressed["reasons"]["stop"]
    journal.decide(0, stress_decision(stressed))
    outcome, decision = gate(*held_out_figures(examined), sum(examined["pairs"].values()), lift, hacks)
    ignored = outcome == "stop" and config.gate == "ignored"
    if ignored:
        decision = replace(
            decision, reason=f"{decision.reason}; PPO is tried all the same (ppo.gate: ignored)"
        )
    journal.decide(0, decision)
    return decision.reason if outcome == "stop" and not ignored else None


@dataclass
class Look:
    """Looks of the gate at SFT's answers: the watcher's lift and the stress report.

    `looks` is their number, among which error probabilities are divided.
    """

    models: Models
    ensemble: RewardEnsemble
    rewards: Path
    watch: SavedWatcher | None
    config: PPOConfig
    seed: int
    looks: int = 1
    samples: list[Rollout] = field(default_factory=list)  # of the first look

    def at(self, prompts: Sequence[Prompt]) -> tuple[Interval | None, dict[str, Any]]:
        """Look at several answers to each prompt."""
        self.samples = self._sampled(prompts, GATE_ANSWERS, "gate")
        reference = self._reference(prompts, "gate")
        return self._lift(self.samples, reference), self._stressed(self.samples, reference)

    def again(
        self,
        prompts: Sequence[Prompt],
        lift: Interval | None,
        stressed: dict[str, Any],
        on_progress: Callable[[str], None],
    ) -> tuple[Interval | None, dict[str, Any]]:
        """Add answers to the other prompts for what is not settled; return lift and report.

        One answer to a prompt decides on the changes. Lift and best of n need several.
        """
        others = prompts[len(self.samples[0]) :]
        undecided = [row["name"] for row in stressed["changes"] if not row["settled"]]
        best_open = not (stressed["best_of"] or {"settled": True})["settled"]
        lift_open = lift is not None and lift.ci_low <= 0 <= lift.ci_high
        undecided, best_open, lift_open = collectives.leaders((undecided, best_open, lift_open))
        stressed["undecided"] = undecided
        if not (undecided or best_open or lift_open):
            return lift, stressed
        answers = GATE_ANSWERS if best_open or lift_open else 1
        on_progress(
            f"align: {answers} more for each of {len(others)} prompts: {len(undecided)} changes are open"
        )
        more = self._sampled(others, answers, "gate, second look")
        places = [*((0, i) for i in range(len(self.samples[0]))), *((1, i) for i in range(len(others)))]
        together = [gather([self.samples[k], more[k]], places) for k in range(answers)]
        reference = self._reference(prompts, "gate, second look")
        if lift_open:
            lift = self._lift(together, reference)
        changes = [change for change in STRESS if change.name in undecided]
        again = self._stressed(together, reference, changes)
        rows = {row["name"]: row for row in (*stressed["changes"], *again["changes"])}
        best = again["best_of"] if best_open else stressed["best_of"]
        report = stressed | {"changes": list(rows.values()), "answers": len(prompts), "best_of": best}
        return lift, report | summed_up(report["changes"], best)

    def _sampled(self, prompts: Sequence[Prompt], answers: int, where: str) -> list[Rollout]:
        size = max(self.config.batch_size, GATE_PROMPTS)
        return sample_repeatedly(self.models, prompts, answers, size, self.seed, where)

    def _reference(self, prompts: Sequence[Prompt], where: str) -> Rollout | None:
        size = max(self.config.batch_size, GATE_PROMPTS)
        return reference_answers(self.models, self.ensemble, prompts, size, self.seed, where)

    def _lift(self, samples: Sequence[Rollout], reference: Rollout | None) -> Interval | None:
        if self.watch is None or not self.watch.armed or len(samples[0]) < 2:
            return None
        pad_id, confidence = self.models.codec.pad_id, 1 - (1 - CONFIDENCE) / self.looks
        return watchers_lift(self.ensemble, self.watch, samples, reference, pad_id, confidence)

    def _stressed(
        self, samples: Sequence[Rollout], reference: Rollout | None, changes: Sequence[Change] = STRESS
    ) -> dict[str, Any]:
        return stress_ensemble(
            self.models,
            self.ensemble,
            load_reference(self.ensemble, self.rewards)[1],
            samples[0],
            samples,
            references=(reference, reference),
            kl_target=self.config.kl.target,
            missing_eos_penalty=self.config.missing_eos_penalty,
            seed=self.seed,
            changes=changes,
            looks=self.looks,
        )


def held_out_figures(examined: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, float]]:
    """Return the accuracy that the gate decides on, and the trivial rules that it must beat.

    With a length correction, the accuracy is that of the corrected score, which PPO gets. The length
    rules are then left out, because the correction removes the annotators' preference for length.
    """
    length = examined.get("length") or {"how": "none"}
    if length["how"] == "none":
        return examined["accuracy"], dict(examined["baselines"])
    found = length.get("corrected_accuracy") or examined["accuracy"]  # odin: corrected while training
    return found, {k: v for k, v in examined["baselines"].items() if k not in ("longer", "shorter")}


def unlearned(data: Data) -> list[Prompt]:
    """Return training prompts that neither members nor watcher learned from, or any if too few."""
    learned = {p.prompt.group for role in ("members", "watcher") for p in data.parts[role]}
    fresh = [p for p in data.splits.train if p.group not in learned]
    return (fresh if len(fresh) >= FEWEST else data.splits.train)[:GATE_PROMPTS]


def stress_decision(stressed: Mapping[str, Any]) -> Decision:
    """Return the decision that states the outcome of the stress tests."""
    outcome, reasons = stressed["outcome"], [r for kind in GRAVE for r in stressed["reasons"][kind]]
    tried = sum(row["outcome"] != "too few" for row in stressed["changes"])
    open_changes = stressed.get("undecided")
    summary = "; ".join(reasons) or f"{tried} of {len(stressed['changes'])} changes tried, none is rewarded"
    if open_changes is not None:
        early = len(stressed["changes"]) - len(open_changes)
        summary += f"; {early} of {len(stressed['changes'])} changes were decided on the first {FIRST_PROMPTS} answers"
    evidence = {row["name"]: row["rise"] and row["rise"]["value"] for row in stressed["changes"]}
    return Decision(f"stress_{outcome.replace(' ', '_')}", f"stress tests: {outcome}: {summary}", evidence)


def watchers_lift(
    ensemble: RewardEnsemble,
    watch: SavedWatcher,
    samples: Sequence[Rollout],
    reference: Rollout | None,
    pad_id: int,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the watcher's mean score of the ensemble's picks above the mean of all SFT answers.

    The ensemble picks among several SFT answers to prompts that its members did not learn from.
    """
    picked = best_of(ensemble, samples, reference, pad_id)
    usual = torch.stack([watch.scores(r, pad_id) for r in samples]).mean(0)
    return mean_interval((watch.scores(picked, pad_id) - usual).tolist(), confidence)


def barely_moved(rows: Sequence[Mapping[str, Any]], attempt: int, config: PPOConfig) -> Decision | None:
    """Return a decision if PPO ended far below its KL target or its score did not rise, else None."""
    rows = [row for row in rows if row["attempt"] == attempt]
    few = max(1, min(5, len(rows) // 3))
    first, last = ([row for row in part if "score" in row] for part in (rows[:few], rows[-few:]))
    if not (first and last and len(rows) >= 3):
        return None
    kl = sum(row["kl"] for row in last) / len(last)
    rise = sum(r["score"] for r in last) / len(last) - sum(r["score"] for r in first) / len(first)
    target = last[-1].get("kl_target", config.kl.target)  # the guard may have lowered it
    evidence = {"kl": kl, "score_rise": rise, "kl_target": target}
    if kl < target / 10:
        text = (
            f"PPO hardly moved: {kl:.2f} nats of a target of {target:g}. Its steps are too small or too few: "
            "raise ppo.learning_rate or ppo.updates, or leave ppo.adaptive_rate on"
        )
        return Decision("hardly_moved", text, evidence)
    if rise <= 0:
        text = (
            f"PPO moved {kl:.2f} nats and its score did not rise ({rise:+.2f}): what it learned from is noise. Take "
            "more answers an update (ppo.batch_size, ppo.samples_per_prompt), or a smaller ppo.kl.target"
        )
        return Decision("score_did_not_rise", text, evidence)
    return None
