"""The evaluate stage: every candidate against SFT on held-out prompts, and the champion rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from burnish.config.evaluate import EvaluateConfig
from burnish.distributed import collectives
from burnish.errors import DataError, RunError
from burnish.evaluation.champion import BEST_OF, Candidate, choose_champion, held_to
from burnish.evaluation.winrate import Examiner, head_to_head, win_rate
from burnish.models.artefacts import is_saved, load_reward_model
from burnish.models.generate import sample_rollout
from burnish.models.heads import ScalarHead, raw_scores
from burnish.models.logprobs import Policy
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import kl_to_reference
from burnish.pipeline.concise import Instructed
from burnish.pipeline.context import Data, Journal, Models
from burnish.pipeline.judge import examine_by_judge
from burnish.pipeline.people import examine_by_people
from burnish.pipeline.regression_sets import measure_regression_sets
from burnish.pipeline.rounds import account_of_rounds, policies
from burnish.randomness import derive_seed
from burnish.records import Decision, Interval, Prompt, Rollout
from burnish.rehearse.annotators import panel
from burnish.reward.ensemble import best_of, load_ensemble, prepare
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json, write_json
from burnish.stats import clustered_proportion, length_controlled_win_rate

PANEL_SIZE = 5
FEWEST = 8  # minimum number of verdicts for a win rate
CONCISE = "_concise"  # suffix of the name of a policy sampled with ppo.concise
EXAMPLES = 8
ANSWERS = "examination_answers.json"  # the answers that people compare


@dataclass
class Answers:
    """A policy's responses to the selection and then the test prompts, with their lengths in tokens.

    `rollout` is None for responses that were read from a file.
    """

    texts: list[str]
    lengths: list[int]
    kl: dict[str, Any] | None = None
    rollout: Rollout | None = None

    @classmethod
    def of(cls, rollout: Rollout, kl: dict[str, Any] | None = None) -> Answers:
        """Build the answers from a rollout and its KL figures."""
        return cls(rollout.texts, rollout.lengths, kl, rollout)


def evaluate(
    models: Models,
    data: Data,
    journal: Journal,
    config: EvaluateConfig,
    concise: str | None,
    rounds: int,
    seed: int,
) -> list[str]:
    """Compare policies with SFT on held-out prompts, choose the champion, then read true preferences.

    Answers with the instruction `concise` (of SFT and PPO) are shown but are no candidates.
    """
    selection = list(data.splits.selection[: config.n_selection])
    test = list(data.splits.test[: config.n_test])
    if len(selection) < config.n_selection or len(test) < config.n_test:
        journal.view.note(
            f"evaluate: {len(selection)} selection and {len(test)} test prompts are there, "
            f"{config.n_selection} and {config.n_test} were asked for"
        )
    prompts = [*selection, *test]
    prepare(models.base, journal.path / "reward")
    if config.examiner == "people":
        answers = frozen(models, journal.run, prompts, config, seed)
    else:
        answers = sample_all(models, journal.run, prompts, config, seed)
        if concise is not None:
            answers |= sample_instructed(models, journal.path, prompts, config, concise, seed)
    describe, verdicts, behaved = examine(models, data, journal, config, answers, prompts, seed)
    accounts: dict[str, dict[str, Any]] = {
        "sft": {"mean_length": mean_length(answers["sft"], len(selection))}
    }
    candidates = []
    for name, answer in answers.items():
        if name == "sft":
            continue
        figures, candidate = account(
            name, prompts, len(selection), answer, answers["sft"], verdicts[name], config, seed
        )
        accounts[name] = figures
        shown = name.endswith(CONCISE) or (name.startswith(BEST_OF) and not config.best_of_n_candidate)
        if not shown:
            candidates.append(candidate)
    decision = choose_champion(candidates)
    held = []
    if decision.champion in answers and not decision.champion.startswith(("sft", BEST_OF)):
        folder = policies(journal.run)[decision.champion]
        held = measure_regression_sets(models, folder, config, derive_seed(seed, "guard sets"))
        decision = held_to(decision, held)
    journal.decide(0, Decision("champion", decision.reason, decision.evidence))
    # The true preference is read only after the decision is recorded.
    gold = gold_account(data.gold, test, answers, len(selection), config, seed) if data.gold else None
    by_round = account_of_rounds(models, data, journal.run, config.confidence) if rounds > 1 else None
    report = {
        "examiner": describe,
        "judge": behaved,
        "provisional": config.examiner == "reward_model",
        "n_selection": len(selection),
        "n_test": len(test),
        "policies": accounts,
        "selected": decision.selected,
        "champion": decision.champion,
        "reason": decision.reason,
        "regression_sets": [asdict(h) | {"loses": h.loses} for h in held],
        "gold": gold,
        "rounds": by_round,
        "examples": examples(test, answers, len(selection)),
    }
    write_json(journal.path / "evaluation.json", report)
    return ["evaluation.json"]


def sample_all(
    models: Models, run: RunDirectory, prompts: Sequence[Prompt], config: EvaluateConfig, seed: int
) -> dict[str, Answers]:
    """Sample SFT, every trained policy (also of earlier rounds) and best-of-n; measure KL to SFT."""
    reference = models.reference(config.temperature)
    answers = {"sft": Answers.of(sample(models, reference, prompts, config, seed, "sft"))}
    for name, folder in policies(run).items():
        policy = models.saved_policy(folder)
        policy.temperature = reference.temperature
        rollout = sample(models, policy, prompts, config, seed, name)
        answers[name] = Answers.of(rollout, measured_kl(policy, reference, rollout, config.kl_prompts))
    n = config.best_of_n
    if n > 1:
        samples = [sample(models, reference, prompts, config, seed, "best_of", turn) for turn in range(n)]
        ensemble = load_ensemble(models.base, run.path / "reward")
        extra = sample(models, reference, prompts, config, seed, "best_of", n) if ensemble.relative else None
        answers[f"{BEST_OF}{n}"] = Answers.of(best_of(ensemble, samples, extra, models.codec.pad_id))
    return answers


def frozen(
    models: Models, run: RunDirectory, prompts: Sequence[Prompt], config: EvaluateConfig, seed: int
) -> dict[str, Answers]:
    """Return the answers that people compare, sampled once so that a resumed run asks the same.

    They are of candidates only. Raises RunError if the file holds answers to other prompts.
    """
    file = run.path / ANSWERS
    if not collectives.from_lead(file.exists):
        fewer = config if config.best_of_n_candidate else config.model_copy(update={"best_of_n": 1})
        answers = sample_all(models, run, prompts, fewer, seed)
        kept = {n: {"texts": a.texts, "lengths": a.lengths, "kl": a.kl} for n, a in answers.items()}
        write_json(file, {"prompts": [p.id for p in prompts], "answers": kept})
    found = read_json(file)
    if found["prompts"] != [p.id for p in prompts]:
        raise RunError(f"{file} contains answers to other prompts; pass --redo to sample and ask again")
    return {name: Answers(**a) for name, a in found["answers"].items()}


def sample_instructed(
    models: Models, path: Path, prompts: Sequence[Prompt], config: EvaluateConfig, concise: str, seed: int
) -> dict[str, Answers]:
    """Sample SFT and PPO with the instruction, which is removed from the prompts that judges read."""
    instructed = Instructed.of(prompts, concise, models.codec, models.prompt_room)
    reference = models.reference(config.temperature)
    answers = {}
    for name in ("sft", "ppo"):
        policy = reference
        if name != "sft":
            if not is_saved(path / name):
                continue
            policy = models.saved_policy(path / name)
            policy.temperature = reference.temperature
        rollout = sample(models, policy, instructed.prompts, config, seed, name + CONCISE)
        kl = None if name == "sft" else measured_kl(policy, reference, rollout, config.kl_prompts)
        answers[name + CONCISE] = Answers.of(instructed.plain(rollout), kl)
    return answers


def sample(
    models: Models,
    policy: Policy,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    seed: int,
    name: str,
    turn: int = 0,
) -> Rollout:
    """Sample one response to each prompt."""
    return sample_rollout(
        policy,
        models.codec,
        prompts,
        max_tokens=models.config.max_response_tokens,
        batch_size=config.batch_size,
        seed=seed,
        where=("evaluate", name, turn),
    )


def measured_kl(policy: Policy, reference: Policy, rollout: Rollout, kl_prompts: int) -> dict[str, Any]:
    """Return KL(policy || SFT) and standard error in nats per response, exact over the vocabulary."""
    n = min(kl_prompts, len(rollout))
    values = kl_to_reference(policy, reference, rollout, range(len(rollout) - n, len(rollout)))
    return {
        "kl": float(values.mean()),
        "kl_se": float(values.std(unbiased=True)) / math.sqrt(n),
        "kl_n": n,
        "kl_kind": "exact over the vocabulary at every token of sampled responses",
    }


def examine(
    models: Models,
    data: Data,
    journal: Journal,
    config: EvaluateConfig,
    answers: dict[str, Answers],
    prompts: Sequence[Prompt],
    seed: int,
) -> tuple[str, dict[str, list[float | None]], dict[str, Any] | None]:
    """Return the examiner's name, its preferences over SFT's responses, and its report.

    Preferences are by policy and prompt (None: an abstention). Only AI judges and people have reports.
    """
    texts = {name: answer.texts for name, answer in answers.items()}
    baseline = texts.pop("sft")
    if config.examiner == "people":
        return collectives.from_lead(
            lambda: examine_by_people(
                journal.path, prompts, texts, baseline, config.labels_per_pair, data.label.guidelines
            )
        )
    if config.examiner == "judge":
        return collectives.from_lead(
            lambda: examine_by_judge(
                data.store,
                prompts,
                texts,
                baseline,
                config.judge,
                data.label.guidelines,
                journal.path / "judge" / "examiner.jsonl",
                journal.view,
                data.snapshot,
            )
        )
    describe, judge = build_examiner(models, data, journal.path, config, answers, seed)
    return (
        describe,
        {name: [*head_to_head(judge, prompts, ours, baseline)] for name, ours in texts.items()},
        None,
    )


def build_examiner(
    models: Models,
    data: Data,
    path: Path,
    config: EvaluateConfig,
    answers: dict[str, Answers],
    seed: int,
) -> tuple[str, Examiner]:
    """Build the examiner: a fresh panel of simulated annotators, or a reward model with own pairs."""
    if config.examiner == "panel":
        assert data.gold is not None, "checked with the configuration"
        votes = panel(data.gold, data.label.simulated, derive_seed(seed, "panel"), PANEL_SIZE)
        return f"panel of {PANEL_SIZE} fresh simulated annotators", votes
    model = load_reward_model(models.base, path / "reward" / "examiner")
    scores: dict[tuple[str, str], float] = {}
    for answer in answers.values():
        assert answer.rollout is not None, "only an examination by people reads answers from a file"
        scores |= examiner_scores(models, model, answer.rollout)

    def judge(prompt: Prompt, first: str, second: str) -> float:
        # A score does not depend on the other response, so both orders compare the same two scores.
        a, b = scores[prompt.id, first], scores[prompt.id, second]
        return 1.0 if a > b else 0.0 if a < b else 0.5

    return "a reward model trained on pairs of its own", judge


def examiner_scores(models: Models, model: ScalarHead, rollout: Rollout) -> dict[tuple[str, str], float]:
    """Return the examiner reward model's score of every response, by prompt id and text."""
    sequences = Sequences.of(model.top.base, rollout, models.codec.pad_id)
    values = raw_scores(model, sequences).tolist()
    ids = [p.id for p in rollout.prompts]
    return dict(zip(zip(ids, rollout.texts, strict=True), values, strict=True))


def account(
    name: str,
    prompts: Sequence[Prompt],
    n_selection: int,
    answer: Answers,
    sft: Answers,
    verdicts: Sequence[float | None],
    config: EvaluateConfig,
    seed: int,
) -> tuple[dict[str, Any], Candidate]:
    """Return one policy's figures and candidate: win rates on both splits, raw and length-controlled.

    Abstentions count in no win rate but are reported. Raises DataError if verdicts are too few.
    """
    seed = derive_seed(seed, "bootstrap", name) % 2**32
    decided = [(i, verdict) for i, verdict in enumerate(verdicts) if verdict is not None]
    parts = {
        "selection": [(i, v) for i, v in decided if i < n_selection],
        "test": [(i, v) for i, v in decided if i >= n_selection],
    }
    for split, rows in parts.items():
        asked = n_selection if split == "selection" else len(verdicts) - n_selection
        if len(rows) < min(FEWEST, asked):
            raise DataError(
                f"the examiner gave {len(rows)} verdicts on {name}'s {split} responses, {FEWEST} are needed: look at "
                "evaluate.judge, and at the abstentions in judge/examiner.jsonl, or at what people flagged"
            )

    def rate(rows: list[tuple[int, float]]) -> Interval:
        groups = [prompts[i].group for i, _ in rows]
        outcomes = [v for _, v in rows]
        return win_rate(outcomes, groups, seed=seed, draws=config.bootstrap, confidence=config.confidence)

    selection, test = rate(parts["selection"]), rate(parts["test"])
    deltas = [float(a - b) for a, b in zip(answer.lengths, sft.lengths, strict=True)]
    outcomes = [v for _, v in parts["test"]]
    controlled = length_controlled_win_rate(
        outcomes,
        [deltas[i] for i, _ in parts["test"]],
        clusters=[prompts[i].group for i, _ in parts["test"]],
        seed=seed,
        confidence=config.confidence,
    )
    ties = sum(o == 0.5 for o in outcomes) / len(outcomes)
    figures = {
        "mean_length": mean_length(answer, n_selection),
        **(answer.kl or {}),
        "selection": as_win_rate(selection),
        "test": {**as_win_rate(test), "ties": ties},
        "abstained": len(verdicts) - len(decided),
        "length_controlled": as_win_rate(controlled),
        "longer": longer_than(deltas[n_selection:], [p.group for p in prompts[n_selection:]], config),
    }
    return figures, Candidate(name, selection, test)


def longer_than(
    deltas: Sequence[float], groups: Sequence[str], config: EvaluateConfig
) -> dict[str, Any] | None:
    """Return how often an answer is longer than SFT's, by differences in tokens; zeros are left out."""
    compared = [(float(d > 0), g) for d, g in zip(deltas, groups, strict=True) if d]
    if not compared:
        return None
    longer, clusters = zip(*compared, strict=True)
    return asdict(clustered_proportion(list(longer), list(clusters), confidence=config.confidence))


def as_win_rate(interval: Interval) -> dict[str, float]:
    """Return an interval with its value renamed to `win_rate`, as in evaluation.json."""
    row = asdict(interval)
    return {"win_rate": row.pop("value"), **row}


def mean_length(answers: Answers, n_selection: int) -> float:
    """Return the mean response length in tokens on test prompts, end-of-sequence token included."""
    return mean(answers.lengths[n_selection:])


def gold_account(
    gold: Callable[[Prompt, str], float],
    test: Sequence[Prompt],
    answers: dict[str, Answers],
    n_selection: int,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """Return the win rate of every policy against SFT by a rehearsal's true preference."""
    golds = {
        name: [gold(p, t) for p, t in zip(test, a.texts[n_selection:], strict=True)]
        for name, a in answers.items()
    }
    base = golds["sft"]
    report: dict[str, Any] = {}
    for name, values in golds.items():
        if name == "sft":
            continue
        outcomes = [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(values, base, strict=True)]
        interval = win_rate(
            outcomes,
            [p.group for p in test],
            seed=derive_seed(seed, "gold", name) % 2**32,
            draws=config.bootstrap,
            confidence=config.confidence,
        )
        report[name] = {
            **as_win_rate(interval),
            "mean": mean(values),
            "sft_mean": mean(base),
            "sd": stdev(values) if len(values) > 1 else None,
        }
    return report


def examples(test: Sequence[Prompt], answers: dict[str, Answers], n_selection: int) -> list[dict[str, str]]:
    """Return the first test prompts with every policy's response, without selection."""
    return [
        {"prompt": p.text, **{name: a.texts[n_selection + i] for name, a in answers.items()}}
        for i, p in enumerate(test[:EXAMPLES])
    ]
