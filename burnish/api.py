"""The Python API: load a model, train rewards, PPO and DPO, and evaluate, in a notebook or a script.

The functions need no run directory. They use the code of the pipeline's stages and keep its files in a
temporary folder, which is deleted with the returned object. `run` executes a whole configuration.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, get_args
from weakref import finalize

import torch

from burnish.commands.reward_score import AT_ONCE, scored
from burnish.config import RunConfig
from burnish.config.align import Method, of_method
from burnish.config.checks import check_config
from burnish.config.dpo import DPOConfig
from burnish.config.evaluate import EvaluateConfig
from burnish.config.guard import GuardConfig
from burnish.config.loading import load_config
from burnish.config.model import TINY_MODEL, ModelConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import FunctionReward, PPOConfig
from burnish.config.reward import RewardConfig
from burnish.data.preferences import ImportResult
from burnish.data.prompts import PromptSplits
from burnish.data.text import Unusable, number_of, prompt_of
from burnish.distributed import collectives
from burnish.environment import prepare_environment
from burnish.errors import ConfigError, DataError, RunError
from burnish.evaluation.winrate import head_to_head, win_rate
from burnish.models.artefacts import is_saved, load_reward_model, save_policy
from burnish.models.generate import sample_rollout
from burnish.models.heads import raw_scores
from burnish.models.logprobs import Policy
from burnish.models.optim import USUAL, ladder
from burnish.models.sequences import Sequences
from burnish.monitor.live import Unseen
from burnish.monitor.trackers import Trackers
from burnish.pipeline.align import run_under_guard
from burnish.pipeline.answers import sample_answers
from burnish.pipeline.assemble import SCALE_PROMPTS, assemble_ppo, measured_shaping, new_value
from burnish.pipeline.candidates import measured_kl
from burnish.pipeline.context import Data, Journal, Models, misfit
from burnish.pipeline.dpo import HEALTHY, UNKNOWN, new_dpo, settle_rate
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
from burnish.reward.functions import LocalReward, SummedRewards, as_given, load_term
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json
from burnish.stats import length_controlled_win_rate

OnUpdate = Callable[[StepStats], None]
"""Function that gets the figures of every update."""

RewardFunction = Callable[[list[Any], list[str]], Sequence[float]]
"""(prompts, responses) of a batch to a number for each response.

A prompt is text, or a list of messages if it was given as messages.
"""

Judge = Callable[[Any, str, str], float]
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
        """Sample one response to each prompt; the same seed gives the same responses.

        Raises DataError for a prompt that is too long, ValueError for a temperature of 0 or less.
        """
        return self._rollout(as_prompts(prompts), temperature, derive_seed(seed, "generate")).texts

    def save(self, folder: str | Path) -> None:
        """Save weights and tokenizer for `from_pretrained`; LoRA policies are saved as an adapter."""
        save_policy(self.policy.top, Path(folder), self.models.codec.tokenizer)

    def _rollout(self, prompts: Sequence[Prompt], temperature: float, seed: int) -> Rollout:
        if not temperature > 0:
            raise ValueError(
                f"temperature={temperature!r} must be above 0; use 0.01 for nearly greedy responses"
            )
        _check_prompts(self.models, prompts)
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
                "the folder (an adapter of LoRA must be merged first)"
            )
        return self.models


class RewardModels:
    """A trained reward ensemble, its watcher and examiner, and the report on held-out pairs.

    Scores are in standard deviations of the SFT model's own responses. `report` is the content of
    reward/examination.json: accuracy with intervals, calibration, baselines, length bias.
    """

    def __init__(
        self, models: Models, folder: Path, history: Sequence[StepStats], temperature: float = 1.0
    ) -> None:
        self.models, self.folder, self.history = models, folder, list(history)
        self.temperature = temperature
        self.ensemble: RewardEnsemble = load_ensemble(models.base, self.folder)
        self.report: dict[str, Any] = read_json(self.folder / "examination.json")

    def score(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[str],
        ended: Sequence[bool] | None = None,
    ) -> list[float]:
        """Return the mean score of the members for each response; too long responses are cut.

        `ended` is False for a response that was cut off before its end-of-sequence token (default: all
        have ended). Raises DataError for a prompt that is too long.
        """
        asked = as_prompts(prompts)
        _check_prompts(self.models, asked)
        whole = [True] * len(responses) if ended is None else list(ended)
        if not len(asked) == len(responses) == len(whole):
            raise DataError(f"{len(asked)} prompts, {len(responses)} responses and {len(whole)} of `ended`")
        rows = list(zip(asked, responses, whole, strict=True))
        return [
            float(row["score"])
            for at in range(0, len(rows), AT_ONCE)
            for row in scored(self.ensemble, self.models, rows[at : at + AT_ONCE])
        ]

    def save(self, folder: str | Path) -> None:
        """Save the models and the report.

        A member that reads the last token loads as a sequence classifier. One that reads the mean over the
        response's tokens has a README with the code to load it.
        """
        copytree(self.folder, folder, dirs_exist_ok=True)


@dataclass(frozen=True)
class Evaluation:
    """Comparison of two models on the same prompts.

    `win_rate` and `length_controlled` are preferences for the first model, with intervals by prompt.
    `kl` is KL(first || second) in nats per response with its standard error `kl_se`; both are None
    if the models do not share a base, or for one prompt. `lengths` are the mean response lengths in tokens.
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
    if isinstance(prompts, str):
        raise DataError("prompts is a text; give a list of prompts")
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
    limits in tokens. `config` has all settings of section `model` and replaces the other arguments but
    `path`. Raises ModelError if the model cannot be loaded.
    """
    if config is None:
        config = ModelConfig(
            path=str(path),
            layers=layers,
            device=device,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
        )
    elif str(path) != TINY_MODEL:
        config = config.model_copy(update={"path": str(path)})
    return LanguageModel(Models(config, None, 1.0))


def train_rewards(
    model: LanguageModel,
    pairs: ImportResult | Sequence[Preference],
    *,
    config: RewardConfig | None = None,
    examiner: bool = True,
    temperature: float = 1.0,
    seed: int = 0,
    on_update: OnUpdate | None = None,
) -> RewardModels:
    """Train a reward ensemble with the Bradley-Terry loss, its watcher, and an examiner for `evaluate`.

    The prompts of the pairs are split by role, so that members, watcher, validation and examiner share
    none. Scores are normalised on responses of the model at `temperature`, which PPO must use too.
    Pairs that exceed the model's limits are left out with a warning. Raises DataError if too few are
    left.
    """
    models = _at(model._untrained(), temperature)
    config = config or RewardConfig()
    check_config(RunConfig(model=models.config, reward=config))
    usable = _fitting(models, pairs)
    run = RunConfig()
    home = Path(mkdtemp(prefix="burnish-"))
    try:
        journal = _journal(home, "reward", on_update)
        data = _PairsData(run.data, run.label, config, examiner, models, journal, seed, usable)
        with closing(data):
            reward(models, data, journal, config, PPOConfig(updates=0), EvaluateConfig(), seed)
        found = RewardModels(models, home / "reward", journal.heard, temperature)
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
    method: Method = "ppo",
    seed: int = 0,
    on_update: OnUpdate | None = None,
) -> LanguageModel:
    """Train the policy with PPO, or another `method` of `align.method`, under KL control and the guard.

    `reward` is an ensemble, or a function (prompts, responses) -> numbers, which has no watcher.
    `config.rewards` are added to either. The returned model's `outcome` says how PPO ended. If the guard
    gave PPO up, the model is the policy of the last healthy checkpoint if the optimiser failed, else the
    model as it was. DPO from `model` is the usual next step. The gate of `burnish run` is not asked:
    read `RewardModels.report` first.
    """
    if method not in get_args(Method):
        raise ConfigError(
            f"method={method!r} is none of {', '.join(get_args(Method))}; auto needs a run (burnish.run)"
        )
    config = of_method(config or PPOConfig(), method)
    models, asked = _at(model._untrained(), config.temperature), as_prompts(prompts)
    check_config(RunConfig(model=models.config, ppo=config))
    for name in ("concise", "update_seconds"):
        if getattr(config, name) is not None:
            raise RunError(f"ppo.{name} needs a run (burnish.run); leave it out here")
    _check_prompts(models, asked)
    asked = asked[: max(1, config.updates * config.batch_size // config.samples_per_prompt)]
    if isinstance(reward, RewardModels):
        _check_rewards(models, reward, config)
        saved = read_json(reward.folder / "ensemble.json")
        rewards, own_sd = (reward.ensemble, reward.folder), float(saved["score_sd"])
        rate = float(read_json(reward.folder / "readings.json")["learning_rate"])
        prepare(models.base, reward.folder)
        watch = load_watcher(models.base, reward.folder)
        score: ScoreFn = _ensemble_scorer(models, reward.ensemble, asked, config, seed)
        functions: list[tuple[FunctionReward, Any]] = []
    else:
        if config.shaping.bounded:
            raise RunError(
                "ppo.shaping.bounded compares scores of the ensemble; use shaping.clip for a function"
            )
        config = config.model_copy(update={"ensemble_weight": 0.0})
        rewards, own_sd, watch, rate = None, 1.0, None, ladder(models.base)[USUAL]
        score, functions = _nothing, [_term(reward)]
    score_sd, shaping = own_sd, None
    own_scale = bool(functions or config.rewards) or config.ensemble_weight != 1
    if own_scale or config.shaping.active:
        functions += [(term, load_term(term)) for term in config.rewards]
        score = summed = SummedRewards(score, config.ensemble_weight, functions)
        shaping = measured_shaping(
            models, summed, asked[:SCALE_PROMPTS], config.shaping.given(own_scale), seed
        )
        score_sd = shaping.unit
    value = None
    if config.advantage in ("auto", "gae"):
        value = new_value(models, config, rewards, score_sd / own_sd)
    ppo = assemble_ppo(models, score, asked, config, seed, score_sd, shaping, value, rate, method=method)
    with TemporaryDirectory(prefix="burnish-") as home:
        journal = _journal(Path(home), "align", on_update)
        monitor = MonitorConfig(trackers=())
        given = guard or GuardConfig()
        chosen = {"method": method}
        outcome = run_under_guard(ppo, watch, models, journal, given, monitor, seed, chosen=chosen)
        policy: Policy | None = ppo.policy
        if outcome["state"] != "finished":
            healthy = journal.path / HEALTHY
            policy = models.saved_policy(healthy) if is_saved(healthy) else None
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
    models = _at(model._untrained(), 1.0)
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
        outcomes = head_to_head(partial(_judged, judge), asked, ours.texts, theirs.texts)
    groups = [p.group for p in asked]
    seed = derive_seed(seed, "bootstrap") % 2**32
    draws = EvaluateConfig.bootstrap
    rate = win_rate(outcomes, groups, seed=seed, draws=draws, confidence=confidence)
    deltas = [float(a - b) for a, b in zip(ours.lengths, theirs.lengths, strict=True)]
    controlled = length_controlled_win_rate(
        outcomes, deltas, clusters=groups, seed=seed, confidence=confidence
    )
    kl: dict[str, Any] = {}
    if model.models.base is baseline.models.base and len(asked) > 1:
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
    is runs/NAME by default. Several processes (`scale.workers`, Ray, torchrun) need the command line.
    Raises the errors of burnish.errors.
    """
    from burnish.report.summary import build_summary

    prepare_environment()

    if isinstance(config, RunConfig):
        if sets:
            raise RunError("sets are overrides of a file; change the RunConfig with model_copy instead")
        loaded = config
    else:
        loaded = load_config(Path(config), sets)
    if collectives.launched() or loaded.scale.workers > 1 or loaded.scale.ray is not None:
        raise RunError("several processes need the command line: use `burnish run`, or scale.workers: 1")
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


def _at(models: Models, temperature: float) -> Models:
    """Return the models with another sampling temperature; both share the loaded base."""
    _ = models.base
    found = copy(models)
    found.temperature = temperature
    return found


def _check_prompts(models: Models, prompts: Sequence[Prompt]) -> None:
    """Raise DataError for the first prompt that the model cannot read."""
    for number, prompt in enumerate(prompts):
        if (why := misfit(models.codec, models.config, prompt)) is not None:
            raise DataError(f"prompt {number} cannot be used: {why}; see load_model(max_prompt_tokens=...)")


def _check_rewards(models: Models, reward: RewardModels, config: PPOConfig) -> None:
    """Raise RunError for reward models of another model, or normalised at another temperature."""
    if reward.models.base is not models.base:
        raise RunError("the reward models were trained on another model; train them on the one given here")
    if reward.temperature != config.temperature:
        raise RunError(
            f"ppo.temperature={config.temperature:g}, but the reward models were normalised at "
            f"{reward.temperature:g}; use train_rewards(temperature={config.temperature:g})"
        )


def _ensemble_scorer(
    models: Models, ensemble: RewardEnsemble, prompts: Sequence[Prompt], config: PPOConfig, seed: int
) -> EnsembleScorer:
    """Build PPO's scorer, with a reference response to every prompt."""
    batch = EvaluateConfig().batch_size
    rollout = sample_answers(models, prompts, batch, seed, "reference")
    sequences = Sequences.of(ensemble.base, rollout, models.codec.pad_id)
    reference = ensemble.normalised(sequences)
    # Relative to itself a response has no spread, so every aggregation equals the mean.
    anchor = ensemble.corrected(reference.mean(1), sequences) if config.shaping.bounded else None
    return EnsembleScorer(ensemble, models.codec.pad_id, prompts, reference, anchor)


def _nothing(rollout: Rollout) -> Scores:
    """Score every response 0, in place of an ensemble."""
    zeros = torch.zeros(len(rollout), device=rollout.response_mask.device)
    return Scores(zeros, zeros[:, None], zeros)


def _term(function: RewardFunction) -> tuple[FunctionReward, LocalReward]:
    """Return a function as a term of PPO's reward, under its own name where it has one."""
    name = getattr(function, "__name__", "function")
    name = name if name.isidentifier() else "function"
    return FunctionReward(function=f"api:{name}", name=name), LocalReward(function)


def _judged(judge: Judge, prompt: Prompt, first: str, second: str) -> float:
    """Return the judge's preference; raise DataError for an answer that is no number."""
    value = number_of(judge(as_given(prompt), first, second))
    if value is None:
        raise DataError(f"the judge gave no number for prompt {prompt.text[:60]!r}; it must be in [0, 1]")
    return value


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
