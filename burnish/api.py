"""The Python API: load a model, train rewards, PPO and DPO, and evaluate, in a notebook or a script.

The functions need no run directory. They use the code of the pipeline's stages and keep its files in a
temporary folder, which is deleted with the returned object. `run` executes a whole configuration.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from weakref import finalize

import torch

from burnish.commands.reward_score import AT_ONCE, scored
from burnish.config import RunConfig
from burnish.config.dpo import DPOConfig
from burnish.config.evaluate import EvaluateConfig
from burnish.config.guard import GuardConfig
from burnish.config.loading import load_config
from burnish.config.model import ModelConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import FunctionReward, PPOConfig
from burnish.config.reward import RewardConfig
from burnish.data.preferences import ImportResult
from burnish.data.prompts import PromptSplits
from burnish.data.text import Unusable, prompt_of
from burnish.errors import DataError, RunError
from burnish.evaluation.winrate import head_to_head, win_rate
from burnish.models.artefacts import is_saved, load_reward_model, save_policy
from burnish.models.generate import sample_rollout
from burnish.models.heads import raw_scores
from burnish.models.logprobs import Policy
from burnish.models.optim import USUAL, ladder
from burnish.models.sequences import Sequences
from burnish.monitor.live import Unseen
from burnish.monitor.trackers import Trackers
from burnish.pipeline.align import (
    SCALE_PROMPTS,
    assemble_ppo,
    measured_shaping,
    new_value,
    run_under_guard,
)
from burnish.pipeline.answers import sample_answers
from burnish.pipeline.context import Data, Journal, Models, misfit
from burnish.pipeline.dpo import HEALTHY, UNKNOWN, new_dpo, settle_rate
from burnish.pipeline.evaluate import measured_kl
from burnish.pipeline.reward import reward
from burnish.pipeline.run import run_pipeline
from burnish.policy.rollouts import ScoreFn
from burnish.randomness import derive_seed
from burnish.records import Interval, Preference, Prompt, Rollout, Scores, StepStats
from burnish.reward.ensemble import (
    EnsembleScorer,
    RewardEnsemble,
    load_ensemble,
    load_watcher,
    prepare,
)
from burnish.reward.functions import SummedRewards
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json
from burnish.stats import length_controlled_win_rate

OnUpdate = Callable[[StepStats], None]
"""Function that gets the figures of every update."""

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]
"""(prompts, responses) of a batch to a number for each response."""

Judge = Callable[[str, str, str], float]
"""(prompt, first response, second response) to the preference for the first, in [0, 1]."""

PromptLike = str | Prompt | Sequence[dict[str, str]]
"""Text, a Prompt, or messages with `role` and `content`."""


@dataclass(frozen=True)
class _Listening(Journal):
    """Journal in a temporary folder that keeps the figures of every update."""

    heard: list[StepStats] = field(default_factory=list)
    on_update: OnUpdate | None = None

    def log(self, name: str, stats: StepStats, extra: Any = None) -> None:
        super().log(name, stats, extra)
        self.heard.append(stats)
        if self.on_update is not None:
            self.on_update(stats)


def _journal(folder: Path, stage: str, on_update: OnUpdate | None) -> _Listening:
    run = RunDirectory(folder, RunConfig())
    return _Listening(run, Unseen("", 0.0), Trackers({}, warnings.warn), stage, on_update=on_update)


@dataclass
class _PairsData(Data):
    """Data of given pairs: their prompts are for training, and no label store is read."""

    given: Sequence[Preference] = ()

    @cached_property
    def splits(self) -> PromptSplits:
        return PromptSplits(list({p.prompt.id: p.prompt for p in self.given}.values()), [], [])

    def _usable_pairs(self) -> list[Preference]:
        return list(self.given)


class LanguageModel:
    """A causal language model with its tokenizer and the policy that was trained, if any.

    `history` has the figures of every update. `outcome` says how PPO ended: `state` is `finished` or
    `given_up`, and `reason` explains the latter.
    """

    def __init__(
        self,
        models: Models,
        policy: Policy | None = None,
        history: Sequence[StepStats] = (),
        outcome: dict[str, Any] | None = None,
    ) -> None:
        self.models, self.policy = models, policy or models.reference()
        self.trained = policy is not None
        self.history, self.outcome = list(history), outcome or {}

    def generate(
        self, prompts: Sequence[PromptLike], *, temperature: float = 1.0, seed: int = 0
    ) -> list[str]:
        """Sample one response to each prompt; the same seed gives the same responses."""
        return self._rollout(as_prompts(prompts), temperature, derive_seed(seed, "generate")).texts

    def save(self, folder: str | Path) -> None:
        """Save weights and tokenizer for `from_pretrained`; LoRA policies are saved as an adapter."""
        save_policy(self.policy.top, Path(folder), self.models.codec.tokenizer)

    def _rollout(self, prompts: Sequence[Prompt], temperature: float, seed: int) -> Rollout:
        return sample_rollout(
            replace(self.policy, temperature=temperature),
            self.models.codec,
            prompts,
            max_tokens=self.models.config.max_response_tokens,
            batch_size=EvaluateConfig().batch_size,
            seed=seed,
            where=("api",),
        )

    def _untrained(self) -> Models:
        if self.trained:
            raise RunError(
                "training starts from a model as it was loaded, but this one was trained already; save it and load "
                "the folder"
            )
        return self.models


class RewardModels:
    """A trained reward ensemble, its watcher and examiner, and the report on held-out pairs.

    Scores are in standard deviations of the SFT model's own responses. `report` is the content of
    reward/examination.json: accuracy with intervals, calibration, baselines, length bias.
    """

    def __init__(self, models: Models, folder: Path, history: Sequence[StepStats]) -> None:
        self.models, self.folder, self.history = models, folder, list(history)
        self.ensemble: RewardEnsemble = load_ensemble(models.base, self.folder)
        self.report: dict[str, Any] = read_json(self.folder / "examination.json")

    def score(self, prompts: Sequence[PromptLike], responses: Sequence[str]) -> list[float]:
        """Return the ensemble's score of each response; responses that are too long are cut."""
        rows = [(p, r, True) for p, r in zip(as_prompts(prompts), responses, strict=True)]
        return [
            float(row["score"])
            for at in range(0, len(rows), AT_ONCE)
            for row in scored(self.ensemble, self.models, rows[at : at + AT_ONCE])
        ]

    def save(self, folder: str | Path) -> None:
        """Save the models and the report; each member loads as a sequence classifier."""
        copytree(self.folder, folder, dirs_exist_ok=True)


@dataclass(frozen=True)
class Evaluation:
    """Comparison of two models on the same prompts.

    `win_rate` and `length_controlled` are preferences for the first model, with intervals by prompt.
    `kl` is KL(first || second) in nats per response with its standard error `kl_se`; both are None
    if the models do not share a base. `lengths` are the mean response lengths in tokens.
    """

    win_rate: Interval
    length_controlled: Interval
    kl: float | None
    kl_se: float | None
    lengths: tuple[float, float]
    prompts: list[Prompt]
    responses: list[str]
    baseline_responses: list[str]


def as_prompts(prompts: Sequence[PromptLike]) -> list[Prompt]:
    """Return prompts from text or messages; raise DataError that names the first unusable one."""
    found = []
    for number, prompt in enumerate(prompts):
        try:
            found.append(prompt if isinstance(prompt, Prompt) else prompt_of(prompt))
        except Unusable as error:
            raise DataError(f"prompt {number} cannot be used: {error}") from None
    if not found:
        raise DataError("there are no prompts; give at least one")
    return found


def load_model(
    path: str | Path = "embedded",
    *,
    layers: str = "auto",
    device: str = "auto",
    max_prompt_tokens: int = 64,
    max_response_tokens: int = 56,
    config: ModelConfig | None = None,
) -> LanguageModel:
    """Load a causal language model from a folder or the hub; `embedded` is the package's own.

    `layers` says what training changes: `top:N`, `all`, `lora`, `lora_top:N` or `auto`. The lengths are
    limits in tokens. `config` has all settings of section `model` and replaces the other arguments.
    Raises ModelError if the model cannot be loaded.
    """
    config = config or ModelConfig(
        path=str(path),
        layers=layers,
        device=device,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )
    return LanguageModel(Models(config, None, 1.0))


def train_rewards(
    model: LanguageModel,
    pairs: ImportResult | Sequence[Preference],
    *,
    config: RewardConfig | None = None,
    examiner: bool = True,
    seed: int = 0,
    on_update: OnUpdate | None = None,
) -> RewardModels:
    """Train a reward ensemble with the Bradley-Terry loss, its watcher, and an examiner for `evaluate`.

    The prompts of the pairs are split by role, so that members, watcher, validation and examiner share
    none. Pairs that exceed the model's limits are left out with a warning. Raises DataError if too few
    are left.
    """
    models = model._untrained()
    usable = _fitting(models, pairs)
    config = config or RewardConfig()
    run = RunConfig()
    home = Path(mkdtemp(prefix="burnish-"))
    try:
        journal = _journal(home, "reward", on_update)
        data = _PairsData(run.data, run.label, config, examiner, models, journal, seed, usable)
        with closing(data):
            reward(models, data, journal, config, PPOConfig(updates=0), EvaluateConfig(), seed)
        found = RewardModels(models, home / "reward", journal.heard)
    except BaseException:
        rmtree(home)
        raise
    finalize(found, rmtree, home, ignore_errors=True)
    return found


def train_ppo(
    model: LanguageModel,
    prompts: Sequence[PromptLike],
    reward: RewardModels | RewardFunction,
    *,
    config: PPOConfig | None = None,
    guard: GuardConfig | None = None,
    seed: int = 0,
    on_update: OnUpdate | None = None,
) -> LanguageModel:
    """Train the policy with PPO under an adaptive KL penalty and the guard.

    `reward` is an ensemble, or a function (prompts, responses) -> numbers, which has no watcher. The
    returned model's `outcome` says how PPO ended. If the guard gave PPO up, the model is the policy of
    the last healthy checkpoint where the optimiser failed, else the model as it was; DPO is the usual
    next step. The gate of `burnish run` is not asked: read `RewardModels.report` first.
    """
    models, asked = model._untrained(), as_prompts(prompts)
    config = config or PPOConfig()
    models.temperature = config.temperature
    for number, prompt in enumerate(asked):
        if (why := misfit(models.codec, models.config, prompt)) is not None:
            raise DataError(f"prompt {number} cannot be used: {why}; see load_model(max_prompt_tokens=...)")
    watch = None
    score_sd, rate = 1.0, ladder(models.base)[USUAL]
    own_scale = bool(config.rewards) or config.ensemble_weight != 1
    if isinstance(reward, RewardModels):
        if reward.models is not models:
            raise RunError(
                "the reward models were trained on another model; train them on the one given here"
            )
        if own_scale or config.shaping.active:
            raise RunError(
                "ppo.rewards, ppo.ensemble_weight and ppo.shaping need a run (burnish.run), or a function that calls "
                "reward.score and adds or changes what you want"
            )
        prepare(models.base, reward.folder)
        scorer = _ensemble_scorer(models, reward.ensemble, asked, seed)
        watch = load_watcher(models.base, reward.folder)
        rate = read_json(reward.folder / "readings.json")["learning_rate"]
        score_sd = float(read_json(reward.folder / "ensemble.json")["score_sd"])
        score: ScoreFn = scorer
        shaping, rewards = None, (reward.ensemble, reward.folder)
    else:
        config = config.model_copy(update={"ensemble_weight": 0.0})
        score = summed = _summed(reward)
        few = asked[:SCALE_PROMPTS]
        shaping, rewards = measured_shaping(models, summed, few, config.shaping.given(True), seed), None
        score_sd = shaping.unit
    value = new_value(models, config, rewards) if config.advantage in ("auto", "gae") else None
    ppo = assemble_ppo(models, score, asked, config, seed, score_sd, shaping, value, rate)
    with TemporaryDirectory(prefix="burnish-") as home:
        journal = _journal(Path(home), "align", on_update)
        monitor = MonitorConfig(trackers=())
        outcome = run_under_guard(ppo, watch, models, journal, guard or GuardConfig(), monitor, seed)
        policy: Policy = ppo.policy
        if outcome["state"] != "finished":
            healthy = journal.path / HEALTHY
            policy = models.saved_policy(healthy) if is_saved(healthy) else models.new_policy()
    return LanguageModel(models, policy, journal.heard, outcome)


def train_dpo(
    model: LanguageModel,
    pairs: ImportResult | Sequence[Preference],
    *,
    config: DPOConfig | None = None,
    seed: int = 0,
    on_update: OnUpdate | None = None,
) -> LanguageModel:
    """Train the policy with DPO (Rafailov et al. 2023) or IPO on preference pairs.

    Label smoothing of `auto` is 0.1 for the sigmoid loss. Pairs that exceed the model's limits are left
    out with a warning.
    """
    models = model._untrained()
    usable, config = _fitting(models, pairs), config or DPOConfig()
    smoothing = config.label_smoothing
    if smoothing == "auto":
        smoothing = UNKNOWN if config.smooths else 0.0
    with TemporaryDirectory(prefix="burnish-") as home:
        journal = _journal(Path(home), "align", on_update)
        dpo = new_dpo(models, usable, config, smoothing, seed)
        dpo.reference_sums = dpo.cache_reference()
        settle_rate(dpo, journal)
        for stats in dpo.updates():
            journal.log("dpo", stats)
    return LanguageModel(models, dpo.policy, journal.heard)


def evaluate(
    model: LanguageModel,
    baseline: LanguageModel,
    prompts: Sequence[PromptLike],
    judge: RewardModels | Judge,
    *,
    temperature: float = 1.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Compare a model with a baseline on prompts that no training has used.

    `judge` is a function that is asked in both orders, or reward models, whose examiner decides (it
    was trained on pairs of its own). Intervals are bootstraps over prompts, ties count half. Raises
    RunError for reward models without an examiner.
    """
    asked = as_prompts(prompts)
    ours = model._rollout(asked, temperature, derive_seed(seed, "evaluate", "model"))
    theirs = baseline._rollout(asked, temperature, derive_seed(seed, "evaluate", "baseline"))
    if isinstance(judge, RewardModels):
        outcomes = _by_examiner(judge, ours, theirs)
    else:
        ask = judge
        outcomes = head_to_head(lambda p, a, b: float(ask(p.text, a, b)), asked, ours.texts, theirs.texts)
    groups = [p.group for p in asked]
    seed = derive_seed(seed, "bootstrap") % 2**32
    draws = EvaluateConfig.bootstrap
    rate = win_rate(outcomes, groups, seed=seed, draws=draws, confidence=confidence)
    deltas = [float(a - b) for a, b in zip(ours.lengths, theirs.lengths, strict=True)]
    controlled = length_controlled_win_rate(
        outcomes, deltas, clusters=groups, seed=seed, confidence=confidence
    )
    kl: dict[str, Any] = {}
    if model.models is baseline.models and len(asked) > 1:
        kl = measured_kl(
            replace(model.policy, temperature=temperature),
            replace(baseline.policy, temperature=temperature),
            ours,
            len(asked),
        )
    n = len(asked)
    return Evaluation(
        rate,
        controlled,
        kl.get("kl"),
        kl.get("kl_se"),
        (sum(ours.lengths) / n, sum(theirs.lengths) / n),
        asked,
        ours.texts,
        theirs.texts,
    )


@dataclass(frozen=True)
class FinishedRun:
    """A run directory after `run`: its path, its summary, and the champion's name."""

    path: Path
    summary: dict[str, Any]

    @property
    def champion(self) -> str | None:
        """`sft`, `ppo`, `dpo` or another candidate; None before the evaluation."""
        champion = self.summary.get("champion")
        return None if champion is None else str(champion)


def run(
    config: RunConfig | str | Path,
    directory: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    until: str | None = None,
) -> FinishedRun:
    """Execute a configuration, or continue its run, as `burnish run` does.

    `config` is a RunConfig or a YAML file, `sets` are overrides such as `ppo.updates=20`. The directory
    is runs/NAME by default. Raises the errors of burnish.errors.
    """
    from burnish.report.summary import build_summary

    if isinstance(config, RunConfig):
        if sets:
            raise RunError("sets are overrides of a file; change the RunConfig with model_copy instead")
        loaded = config
    else:
        loaded = load_config(Path(config), sets)
    place = run_pipeline(loaded, Path(directory or Path("runs") / loaded.name), until=until)
    return FinishedRun(place.path, build_summary(place.path))


def _fitting(models: Models, pairs: ImportResult | Sequence[Preference]) -> list[Preference]:
    """Return the pairs within the model's limits, and warn about the others."""
    given = pairs.pairs if isinstance(pairs, ImportResult) else list(pairs)
    sides = [((p.chosen, p.chosen_ended), (p.rejected, p.rejected_ended)) for p in given]
    reasons = [misfit(models.codec, models.config, p.prompt, *s) for p, s in zip(given, sides, strict=True)]
    left_out = [why for why in reasons if why is not None]
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(given)} pairs are left out ({left_out[0]}); see load_model(max_prompt_tokens="
            "..., max_response_tokens=...)",
            stacklevel=3,
        )
    usable = [p for p, why in zip(given, reasons, strict=True) if why is None]
    if not usable:
        raise DataError("no pair fits the model's limits; raise max_prompt_tokens or max_response_tokens")
    return usable


def _ensemble_scorer(
    models: Models, ensemble: RewardEnsemble, prompts: Sequence[Prompt], seed: int
) -> EnsembleScorer:
    """Build PPO's scorer, with a reference response to every prompt."""
    batch = EvaluateConfig().batch_size
    rollout = sample_answers(models, prompts, batch, seed, "reference")
    reference = ensemble.normalised(Sequences.of(ensemble.base, rollout, models.codec.pad_id))
    return EnsembleScorer(ensemble, models.codec.pad_id, prompts, reference)


def _summed(function: RewardFunction) -> SummedRewards:
    """Build PPO's scorer of a function alone."""

    def nothing(rollout: Rollout) -> Scores:
        zeros = torch.zeros(len(rollout))
        return Scores(zeros, zeros[:, None], zeros)

    name = getattr(function, "__name__", "function")
    name = name if name.isidentifier() else "function"
    term = FunctionReward(function=f"api:{name}", name=name)
    return SummedRewards(nothing, 0.0, [(term, lambda prompts, responses, _: function(prompts, responses))])


def _by_examiner(judge: RewardModels, ours: Rollout, theirs: Rollout) -> list[float]:
    """Return the examiner's preference for each of our responses: 1, 0, or 0.5 for a tie."""
    if not (judge.folder / "examiner").exists():
        raise RunError("these reward models have no examiner; train them with examiner=True, or give a judge")
    examiner = load_reward_model(judge.models.base, judge.folder / "examiner")
    codec, limit = judge.models.codec, judge.models.config.max_response_tokens

    def scores(rollout: Rollout) -> list[float]:
        # The rollout may come from another model, so its texts are encoded again.
        asked = [codec.encode_prompt(p) for p in rollout.prompts]
        rows = zip(rollout.prompts, rollout.texts, rollout.ended, strict=True)
        said = [codec.encode_response(text, end=ended, to=p)[:limit] for p, text, ended in rows]
        return raw_scores(examiner, Sequences(examiner.top.base, asked, said, codec.pad_id)).tolist()

    return [
        1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(scores(ours), scores(theirs), strict=True)
    ]
