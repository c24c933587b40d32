"""Conditions on the whole configuration, which no single section can check."""

from __future__ import annotations

from burnish.config.align import of_method
from burnish.config.run import RunConfig
from burnish.errors import ConfigError


def check_config(config: RunConfig) -> None:
    """Raise ConfigError for sections that do not fit together."""
    if config.evaluate.examiner == "panel" and config.label.source != "simulated":
        raise ConfigError(
            f"evaluate.examiner is 'panel' but label.source is {config.label.source!r}: only a rehearsal has simulated "
            "annotators; set evaluate.examiner: reward_model, judge or people"
        )
    if config.label.source == "judge" and config.label.judge.model is None:
        raise ConfigError("label.source is 'judge' but label.judge.model names no model")
    if config.evaluate.examiner == "judge":
        judge, labeler = config.evaluate.judge, config.label.judge
        if judge.model is None:
            raise ConfigError("evaluate.examiner is 'judge' but evaluate.judge.model names no model")
        if config.label.source == "judge" and (judge.model, judge.rubric) == (labeler.model, labeler.rubric):
            raise ConfigError(
                f"evaluate.judge and label.judge are the same ({judge.model}, the same rubric): it would confirm its "
                "own labels; give another model or another rubric"
            )
    if config.evaluate.kinds is not None and config.data.prompts == "stories":
        raise ConfigError(
            f"evaluate.kinds names the column {config.evaluate.kinds!r}, but the rehearsal's stories have no columns; "
            "leave evaluate.kinds out for clusters of prompts"
        )
    methods = config.align.compared if config.align.method == "auto" else (config.align.method,)
    for method in methods:
        of_method(config.ppo, method)  # raises if no groups of responses divide the batch
    if config.align.method == "auto" and not config.reward.watcher_share:
        raise ConfigError(
            "align.method is 'auto', which chooses by the watcher, but reward.watcher_share is 0; set it, or name a "
            "method"
        )
    if config.align.method == "auto" and not config.ppo.ensemble_weight:
        raise ConfigError(
            "align.method is 'auto', which chooses by the watcher, but ppo.ensemble_weight is 0: the watcher judges "
            "another reward than the one that is optimised; name a method"
        )
    grouped = config.training.advantage in ("rloo", "grpo") and config.align.method not in (
        "distill",
        "online_dpo",
    )
    if config.ppo.credit == "prefix" and not (grouped and config.ppo.ensemble_weight):
        raise ConfigError(
            "ppo.credit is 'prefix', which needs the reward ensemble (ppo.ensemble_weight) and ppo.advantage or "
            "align.method rloo or grpo; set these, or ppo.credit: response"
        )
    for lacking in (given.lacks() for given in config.evaluate.regression_sets):
        if lacking:
            raise ConfigError(lacking)
    if config.label.source == "imported" and config.label.preferences is None:
        raise ConfigError("label.source is 'imported' but label.preferences names no file")
    if config.label.source == "imported" and (config.rounds > 1 or config.collect.previous_run is not None):
        raise ConfigError(
            "label.source is 'imported', so the samples of further rounds cannot be labelled: set rounds: 1 (and no "
            "collect.previous_run), or another label.source"
        )
    if config.rounds > 1 and config.collect.n_pairs < config.rounds:
        raise ConfigError(
            f"rounds={config.rounds} share collect.n_pairs={config.collect.n_pairs}: give more pairs"
        )
    if config.data.prompts == "preferences" and config.label.preferences is None:
        raise ConfigError("data.prompts is 'preferences' but label.preferences names no file")
    if config.label.source == "imported" and config.data.prompts == "stories":
        raise ConfigError(
            "imported preferences need prompts of their own kind: set data.prompts to 'preferences' or a file"
        )
    if config.scale.shard and config.model.layers == "all":
        raise ConfigError(
            "scale.shard cuts frozen layers over processes, but model.layers is 'all': every layer is trained; set "
            "model.layers: lora or top:N"
        )
    if config.scale.shard and config.ppo.update_seconds is not None:
        raise ConfigError(
            "ppo.update_seconds times a whole model by one process, but scale.shard leaves none; set ppo.batch_size"
        )
    if config.reward.shared_head and (config.reward.layers or config.model.layers).startswith("lora"):
        raise ConfigError(
            "reward.shared_head averages whole layers, but adapters are trained (model.layers, reward.layers): the "
            "mean of two products is none of their means; set reward.layers: top:2, or shared_head: false"
        )
    if config.model.layers.startswith("lora") and config.ppo.value_init == "reward_model":
        raise ConfigError(
            f"ppo.value_init='reward_model' needs whole layers, but model.layers={config.model.layers!r} trains "
            "adapters; use zero"
        )
