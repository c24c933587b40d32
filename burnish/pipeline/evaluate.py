"""The evaluate stage: every candidate against SFT on held-out prompts, and the champion rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from burnish.config.evaluate import EvaluateConfig
from burnish.distributed import collectives
from burnish.errors import ConfigError, DataError
from burnish.evaluation.champion import BEST_OF, Candidate, choose_champion, held_to
from burnish.evaluation.paired import by_kind, differences
from burnish.evaluation.winrate import Examiner, head_to_head, win_rate
from burnish.models.artefacts import load_reward_model
from burnish.models.heads import ScalarHead, raw_scores
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import repeated
from burnish.pipeline.candidates import CONCISE, Answers, frozen, sample_all, sample_instructed
from burnish.pipeline.context import Data, Journal, Models
from burnish.pipeline.judge import examine_by_judge
from burnish.pipeline.people import examine_by_people
from burnish.pipeline.regression_sets import measure_regression_sets
from burnish.pipeline.rounds import account_of_rounds, policies
from burnish.randomness import derive_seed
from burnish.records import Decision, Interval, Prompt, Rollout
from burnish.rehearse.annotators import panel
from burnish.reward.ensemble import prepare
from burnish.reward.slices import topics
from burnish.runs.files import write_json
from burnish.stats import clustered_proportion, length_controlled_win_rate

PANEL_SIZE = 5
FEWEST = 8  # minimum number of prompts with verdicts for a win rate
EXAMPLES = 8


@dataclass
class Examined:
    """Preferences over SFT's responses, by policy and row (None: an abstention), and who gave them.

    `report` is that of an AI judge or of people. `judge` compares any two responses; it is None where
    further questions cost.
    """

    examiner: str
    verdicts: dict[str, list[float | None]]
    report: dict[str, Any] | None = None
    judge: Examiner | None = None


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
    kinds = kinds_of_prompts(data, prompts, config, seed)
    prepare(models.base, journal.path / "reward")
    if config.examiner == "people":
        answers = frozen(models, journal.run, prompts, config, seed)
    else:
        answers = sample_all(models, journal.run, prompts, config, seed)
        if concise is not None:
            answers |= sample_instructed(models, journal.path, prompts, config, concise, seed)
    asked = repeated(prompts, config.answers)  # the prompt of every response
    n_selection = len(selection) * config.answers  # responses to selection prompts, which come first
    found = examine(models, data, journal, config, answers, asked, seed)
    accounts: dict[str, dict[str, Any]] = {"sft": {"mean_length": mean_length(answers["sft"], n_selection)}}
    candidates = []
    for name, answer in answers.items():
        if name == "sft":
            continue
        figures, candidate = account(name, asked, n_selection, answer, answers["sft"], found, config, seed)
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
    gold = gold_account(data.gold, asked, answers, n_selection, config, seed) if data.gold else None
    by_round = account_of_rounds(models, data, journal.run, config.confidence) if rounds > 1 else None
    report = {
        "examiner": found.examiner,
        "judge": found.report,
        "provisional": config.examiner == "reward_model",
        "n_selection": len(selection),
        "n_test": len(test),
        "answers": config.answers,
        "policies": accounts,
        "pairs": pairs_of(asked, n_selection, answers, found, config, seed),
        "kinds": by_kinds(asked, kinds, n_selection, found, config, seed),
        "selected": decision.selected,
        "champion": decision.champion,
        "reason": decision.reason,
        "regression_sets": [asdict(h) | {"loses": h.loses} for h in held],
        "gold": gold,
        "rounds": by_round,
        "examples": examples(test, answers, n_selection, config.answers),
    }
    write_json(journal.path / "evaluation.json", report)
    return ["evaluation.json"]


def examine(
    models: Models,
    data: Data,
    journal: Journal,
    config: EvaluateConfig,
    answers: dict[str, Answers],
    asked: Sequence[Prompt],
    seed: int,
) -> Examined:
    """Let the examiner compare every policy's responses with SFT's; `asked` has each response's prompt.

    A judge without cost compares each response with all of SFT's to the same prompt, and its mean
    preference is the response's. Other examiners compare the k-th response with SFT's k-th.
    """
    texts = {name: answer.texts for name, answer in answers.items()}
    baseline = texts.pop("sft")
    if config.examiner == "people":
        return Examined(
            *collectives.from_lead(
                lambda: examine_by_people(
                    journal.path, asked, texts, baseline, config.labels_per_pair, data.label.guidelines
                )
            )
        )
    if config.examiner == "judge":
        return Examined(
            *collectives.from_lead(
                lambda: examine_by_judge(
                    data.store,
                    asked,
                    texts,
                    baseline,
                    config.judge,
                    data.label.guidelines,
                    journal.path / "judge" / "examiner.jsonl",
                    journal.view,
                    data.snapshot,
                )
            )
        )
    describe, judge = build_examiner(models, data, journal.path, config, answers, seed)
    verdicts: dict[str, list[float | None]] = {
        name: [*compared(judge, asked, answer, answers["sft"], config.answers)]
        for name, answer in answers.items()
        if name != "sft"
    }
    return Examined(describe, verdicts, judge=judge)


def compared(
    judge: Examiner, asked: Sequence[Prompt], ours: Answers, theirs: Answers, answers: int
) -> list[float]:
    """Return the preference for each of our responses over theirs to the same prompt, a mean over them."""
    if not ours.independent:
        return head_to_head(judge, asked, ours.texts, theirs.texts)
    turns = [head_to_head(judge, asked, ours.texts, turned(theirs.texts, answers, k)) for k in range(answers)]
    return [mean(values) for values in zip(*turns, strict=True)]


def turned(texts: Sequence[str], answers: int, by: int) -> list[str]:
    """Return texts, `answers` to a prompt in a row, each row rotated by `by`."""
    return [texts[i - i % answers + (i + by) % answers] for i in range(len(texts))]


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
    asked: Sequence[Prompt],
    n_selection: int,
    answer: Answers,
    sft: Answers,
    found: Examined,
    config: EvaluateConfig,
    seed: int,
) -> tuple[dict[str, Any], Candidate]:
    """Return one policy's figures and candidate: win rates on both splits, raw and length-controlled.

    `asked` has the prompt of each response; the first `n_selection` responses are to selection prompts.
    Abstentions count in no win rate but are reported. `ties` is None where an outcome is a mean of
    several comparisons. Raises DataError if verdicts are too few.
    """
    seed, verdicts = derive_seed(seed, "bootstrap", name) % 2**32, found.verdicts[name]
    decided = [(i, verdict) for i, verdict in enumerate(verdicts) if verdict is not None]
    parts = {
        "selection": [(i, v) for i, v in decided if i < n_selection],
        "test": [(i, v) for i, v in decided if i >= n_selection],
    }
    for split, rows in parts.items():
        of_split = len(
            {p.group for p in (asked[:n_selection] if split == "selection" else asked[n_selection:])}
        )
        judged = len({asked[i].group for i, _ in rows})
        if judged < min(FEWEST, of_split):
            raise DataError(
                f"the examiner gave verdicts on {name}'s responses to {judged} {split} prompts, {FEWEST} are needed: "
                "look at evaluate.judge, and at the abstentions in judge/examiner.jsonl, or at what people flagged"
            )

    def rate(rows: list[tuple[int, float]]) -> Interval:
        groups = [asked[i].group for i, _ in rows]
        outcomes = [v for _, v in rows]
        return win_rate(outcomes, groups, seed=seed, draws=config.bootstrap, confidence=config.confidence)

    selection, test = rate(parts["selection"]), rate(parts["test"])
    deltas = length_deltas(answer, sft, config.answers if found.judge and answer.independent else 1)
    outcomes = [v for _, v in parts["test"]]
    controlled = length_controlled_win_rate(
        outcomes,
        [deltas[i] for i, _ in parts["test"]],
        clusters=[asked[i].group for i, _ in parts["test"]],
        seed=seed,
        confidence=config.confidence,
    )
    means = found.judge is not None and answer.independent and config.answers > 1
    ties = None if means else sum(o == 0.5 for o in outcomes) / len(outcomes)
    figures = {
        "mean_length": mean_length(answer, n_selection),
        **(answer.kl or {}),
        "selection": as_win_rate(selection),
        "test": {**as_win_rate(test), "ties": ties},
        "abstained": len(verdicts) - len(decided),
        "length_controlled": as_win_rate(controlled),
        "longer": longer_than(deltas[n_selection:], [p.group for p in asked[n_selection:]], config),
    }
    return figures, Candidate(name, selection, test)


def length_deltas(ours: Answers, theirs: Answers, answers: int) -> list[float]:
    """Return the length of each of our responses less the mean of theirs in its row of `answers`."""
    means = [mean(theirs.lengths[i : i + answers]) for i in range(0, len(theirs.lengths), answers)]
    return [float(n - means[i // answers]) for i, n in enumerate(ours.lengths)]


def pairs_of(
    asked: Sequence[Prompt],
    n_selection: int,
    answers: dict[str, Answers],
    found: Examined,
    config: EvaluateConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Return every two candidates compared on the test prompts.

    `difference` is that of their win rates against SFT, paired by prompt. `win_rate` is the first's over
    the second by the same examiner, and None where a question costs.
    """
    test = asked[n_selection:]
    groups = [p.group for p in test]
    seed = derive_seed(seed, "bootstrap", "pairs") % 2**32
    draws, confidence = config.bootstrap, config.confidence
    names = [name for name in found.verdicts if not name.endswith(CONCISE)]
    verdicts = {name: found.verdicts[name][n_selection:] for name in names}
    rows = []
    for (first, second), difference in differences(
        verdicts, groups, seed=seed, draws=draws, confidence=confidence
    ).items():
        direct = None
        if found.judge is not None:
            outcomes = compared(found.judge, asked, answers[first], answers[second], config.answers)
            direct = as_win_rate(
                win_rate(outcomes[n_selection:], groups, seed=seed, draws=draws, confidence=confidence)
            )
        rows.append({"first": first, "second": second, "difference": difference, "win_rate": direct})
    return rows


def kinds_of_prompts(
    data: Data, prompts: Sequence[Prompt], config: EvaluateConfig, seed: int
) -> list[str | None]:
    """Return the kind of each prompt: its cluster, or its value in the column evaluate.kinds.

    Raises ConfigError if no prompt has a value in that column.
    """
    if config.kinds is None:
        return [*topics([p.text for p in prompts], derive_seed(seed, "kinds") % 2**32)]
    known = data.kinds(config.kinds)
    if not any(p.id in known for p in prompts):
        raise ConfigError(
            f"evaluate.kinds={config.kinds!r}: the data give no held-out prompt a value in that column; name a column "
            "of text, or leave evaluate.kinds out for clusters of prompts"
        )
    return [known.get(p.id) for p in prompts]


def by_kinds(
    asked: Sequence[Prompt],
    kinds: Sequence[str | None],
    n_selection: int,
    found: Examined,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """Return every policy's win rate on the test prompts by their kind, and where the kinds come from."""
    of_rows = repeated(kinds, config.answers)[n_selection:]
    groups = [p.group for p in asked[n_selection:]]
    seed, draws, confidence = derive_seed(seed, "kinds") % 2**32, config.bootstrap, config.confidence
    return {
        "from": "clusters of prompts" if config.kinds is None else f"column {config.kinds}",
        "policies": {
            name: by_kind(
                verdicts[n_selection:], groups, of_rows, seed=seed, draws=draws, confidence=confidence
            )
            for name, verdicts in found.verdicts.items()
        },
    }


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
    asked: Sequence[Prompt],
    answers: dict[str, Answers],
    n_selection: int,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """Return the win rate of every policy against SFT by a rehearsal's true preference."""
    test = asked[n_selection:]
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


def examples(
    test: Sequence[Prompt], answers: dict[str, Answers], n_selection: int, each: int
) -> list[dict[str, str]]:
    """Return the first test prompts with every policy's first response, without selection."""
    return [
        {"prompt": p.text, **{name: a.texts[n_selection + i * each] for name, a in answers.items()}}
        for i, p in enumerate(test[:EXAMPLES])
    ]
