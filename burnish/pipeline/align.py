"""The align stage: PPO under the guard, with DPO from SFT on the same preferences as fallback."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from shutil import rmtree
from typing import Any

from safetensors.torch import load_file

from burnish.config.align import AlignConfig, of_method
from burnish.config.distill import DistillConfig
from burnish.config.dpo import DPOConfig
from burnish.config.evaluate import EvaluateConfig
from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import PPOConfig
from burnish.distributed import collectives
from burnish.errors import ConfigError, Diverged
from burnish.evaluation.champion import AVERAGE, BEST, TRAINED
from burnish.models.artefacts import is_saved, save_policy
from burnish.models.memory import give_back
from burnish.models.optim import ladder
from burnish.pipeline.answers import OwnAnswers
from burnish.pipeline.assemble import LOOKS, build_ppo, ensemble_of, find_first_rate, looks_of
from burnish.pipeline.context import Data, Journal, Models
from burnish.pipeline.distill import run_distill
from burnish.pipeline.dpo import HEALTHY, START, run_dpo
from burnish.pipeline.gate import barely_moved, pass_gate
from burnish.pipeline.guarded import Guarded, run_guarded
from burnish.pipeline.oversight import Oversight
from burnish.policy.looks import Looks
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import self_check, start_from
from burnish.records import Decision
from burnish.reward.ensemble import (
    SavedWatcher,
    load_watcher,
    prepare,
)
from burnish.runs.files import read_json, write_json
from burnish.stats import clustered_error

CHECK_PROMPTS = 16
STARTED = "align/start.json"  # DPO's entry of align.json, written when it has run before PPO
Begin = Callable[[PPO], dict[str, float]]
"""Change of an untrained policy's weights before the first update; returns its figures."""
LEAST_MOVED = 0.02  # share of the KL target, below which a trial shows nothing


def align(
    models: Models,
    data: Data,
    journal: Journal,
    how: AlignConfig,
    ppo: PPOConfig,
    guard: GuardConfig,
    dpo: DPOConfig,
    distill: DistillConfig,
    monitor: MonitorConfig,
    looks_every: int,
    evaluation: EvaluateConfig,
    seed: int,
) -> list[str]:
    """Run PPO, distillation and DPO (as fallback or if asked for); write align.json and the models.

    PPO is looked at on held-out prompts every `looks_every` updates; 0: never.
    """
    prepare(models.base, journal.path / "reward")
    found = journal.latest_checkpoint()
    state: dict[str, Any] = found.state if found else {"phase": "ppo"}
    outcome: dict[str, Any] = state.get("outcome", {})
    own = OwnAnswers(models, data, journal, ppo.batch_size, seed)
    if state["phase"] in ("start", "trial", "ppo"):

        def first() -> dict[str, Any]:
            entry = run_dpo(models, data, own, journal, dpo, None, seed)
            if distill.when != "always":
                own.forget()
            return entry

        settings = (how, ppo, guard, monitor, looks_every, evaluation)
        outcome = run_ppo(models, data, journal, *settings, seed, first)
        journal.checkpoint(state={"phase": "dpo", "outcome": outcome})
    collectives.settled()  # every process has read the weights of the look that is a candidate
    collectives.by_lead(partial(rmtree, journal.path / "align" / LOOKS, ignore_errors=True))()
    for name in (START, STARTED):
        collectives.by_lead(partial((journal.path / name).unlink, missing_ok=True))()
    if distill.when == "always" and "distill" not in outcome:
        outcome["distill"] = run_distill(models, own, journal, distill, seed)
        journal.checkpoint(state={"phase": "dpo", "outcome": outcome})
    given_up = outcome["ppo"]["state"] in ("given_up", "stopped")
    falls_back = given_up and dpo.when != "never" and "dpo" not in outcome
    outcome["fallback"] = {
        "triggered": falls_back,
        "reason": outcome["ppo"]["reason"] if falls_back else None,
    }
    wanted = dpo.when == "always" or (given_up and dpo.when == "fallback")
    if wanted and "dpo" not in outcome:
        outcome["dpo"] = run_dpo(models, data, own, journal, dpo, outcome, seed)
    write_json(journal.path / "align.json", outcome)
    return ["align.json", *(name for name in (*TRAINED, HEALTHY) if is_saved(journal.path / name))]


def run_ppo(
    models: Models,
    data: Data,
    journal: Journal,
    how: AlignConfig,
    config: PPOConfig,
    guard: GuardConfig,
    monitor: MonitorConfig,
    looks_every: int,
    evaluation: EvaluateConfig,
    seed: int,
    first: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Run PPO, or another method, to its last update or until the guard gives it up.

    `first` runs DPO, for `align.start: dpo`. Returns the entry `ppo` of align.json, and `dpo` if it ran.
    """
    if not config.updates:
        return {"ppo": {"state": "off", "reason": "ppo.updates is 0", "rollbacks": 0}}
    watch = load_watcher(models.base, journal.path / "reward")
    found = journal.latest_checkpoint()
    if not found and config.ensemble_weight:
        stopped = pass_gate(models, data, journal, config, watch, seed)
        give_back()  # frees the memory of hundreds of sampled answers
        if stopped:
            return {"ppo": {"state": "stopped", "reason": stopped, "rollbacks": 0}}
    entry: dict[str, Any] = {}
    begin: Begin | None = None
    if how.start == "dpo":
        done = journal.path / STARTED
        if not collectives.from_lead(done.exists):
            collectives.by_lead(partial(write_json, done, first()))()
            give_back()
        entry["dpo"] = read_json(done)

        def begin(ppo: PPO) -> dict[str, float]:
            weights = load_file(journal.path / START)
            return start_from(ppo, weights, most=how.start_share * config.kl.target)

    if found and found.state["phase"] == "ppo":
        chosen = found.state.get("chosen", {"method": "ppo"})  # not in older checkpoints
    else:
        chosen, found = choose_method(models, data, journal, how, config, watch, seed, begin), None
    config, rewards = of_method(config, chosen["method"]), journal.path / "reward"
    ppo = build_ppo(models, data, rewards, config, seed, fresh=found is None, method=chosen["method"])
    looks = None
    if looks_every:
        looks = looks_of(ppo, watch, models, data, journal.path, looks_every, evaluation, seed)
    entry["ppo"] = run_under_guard(ppo, watch, models, journal, guard, monitor, seed, looks, chosen, begin)
    return entry


def choose_method(
    models: Models,
    data: Data,
    journal: Journal,
    how: AlignConfig,
    config: PPOConfig,
    watch: SavedWatcher | None,
    seed: int,
    begin: Begin | None,
) -> dict[str, Any]:
    """Return the method that `align.method` names, or for auto the best of short trials.

    Each trial starts where the method would. The best has the highest ratio of the watcher's gain to
    sqrt(2 KL), the gain in standard deviations that the optimum for a Gaussian score has at that KL.
    The ensemble's own gain would favour the method that exploits it most. A finished trial is kept in a
    checkpoint.
    """
    if how.method != "auto":
        return {"method": how.method}
    if watch is None or not watch.armed:
        text = (
            f"align.method auto takes {how.compared[0]}: the watcher is not armed, and cannot compare methods"
        )
        journal.decide(0, Decision("method", text, {"method": how.compared[0]}))
        return {"method": how.compared[0]}
    groups = {p.group for p in data.splits.selection[: EvaluateConfig.look_prompts]}
    if len(groups) < 2:
        raise ConfigError(
            f"align.method is 'auto', but there are {len(groups)} different selection prompts; the watcher compares "
            "methods on at least 2; raise data.selection_share, or name a method"
        )
    found = journal.latest_checkpoint()
    trials: dict[str, Any] = dict(found.state.get("trials", {})) if found else {}
    for method in how.compared:
        if method not in trials:
            journal.view.note(f"align: trial of {method}, {how.trial_updates} updates")
            trials[method] = tried(models, data, journal, how, config, watch, method, seed, begin)
            journal.checkpoint(state={"phase": "trial", "trials": trials})
            give_back()
    shares = {m: t["share"] for m, t in trials.items() if t["share"] is not None}
    best = max(shares, key=lambda m: shares[m]) if shares else how.compared[0]
    why = "the watcher gains most for its KL" if shares else "no trial gave a figure"
    if shares and shares[best] <= 0:
        why = "the watcher loses least for its KL, and gains by no method"
    each = "; ".join(
        f"{m} {t['failed']}" if t["failed"] else f"{m} {t['gain']:+.2f} sd at {t['kl']:.2f} nats"
        for m, t in trials.items()
    )
    text = f"align.method auto takes {best}: {why} in {how.trial_updates} updates ({each})"
    chosen = {"method": best, "trials": trials}
    journal.decide(0, Decision("method", text, chosen))
    return chosen


def tried(
    models: Models,
    data: Data,
    journal: Journal,
    how: AlignConfig,
    config: PPOConfig,
    watch: SavedWatcher,
    method: str,
    seed: int,
    begin: Begin | None,
) -> dict[str, Any]:
    """Run the first updates of a method; return the watcher's gain, its standard error, KL and share.

    The share is None, and `failed` says why, if the method diverged or did not move.
    """
    ppo = build_ppo(models, data, journal.path / "reward", of_method(config, method), seed, method=method)
    looks = looks_of(ppo, watch, models, data, journal.path, 1, EvaluateConfig(), seed)
    assert looks is not None
    looks.look(ppo)  # at SFT, so that gain and KL have the same origin
    if begin is not None:
        begin(ppo)
    updates = how.trial_updates + ppo.config.value_warmup
    try:
        if config.learning_rate == "auto":
            find_first_rate(ppo, ladder(models.base)[-1], journal)
        for stats in islice(ppo.updates(), updates):
            journal.log("trial", stats, {"method": method})
        looks.look(ppo)
    except Diverged as error:
        return {"gain": None, "gain_se": None, "kl": None, "share": None, "failed": f"diverged ({error})"}
    (before, after), groups = looks.seen, [p.group for p in looks.prompts]
    gains = [b - a for a, b in zip(before["values"], after["values"], strict=True)]
    gain, kl = sum(gains) / len(gains), after["kl"]
    moved = kl >= LEAST_MOVED * config.kl.target
    return {
        "gain": gain,
        "gain_se": clustered_error(gains, groups),
        "kl": kl,
        "share": gain / math.sqrt(2 * kl) if moved else None,
        "failed": None if moved else f"hardly moved ({kl:.2g} nats)",
    }


def run_under_guard(
    ppo: PPO,
    watch: SavedWatcher | None,
    models: Models,
    journal: Journal,
    guard: GuardConfig,
    monitor: MonitorConfig,
    seed: int,
    looks: Looks | None = None,
    chosen: dict[str, Any] | None = None,
    begin: Begin | None = None,
) -> dict[str, Any]:
    """Run a built PPO under the guard, from the last checkpoint if there is one.

    Saves the policy, or that of the last healthy checkpoint if the optimiser failed. With `looks`, also
    saves the checkpoint that they prefer. `chosen` names the method, and is kept in checkpoints.
    `begin` changes the weights of the untrained policy. Returns the entry of align.json.
    """
    config, found = ppo.config, journal.latest_checkpoint()
    if found and found.state["phase"] != "ppo":  # before the first update of the method that was chosen
        found = None
    scorer = ensemble_of(ppo.score)
    oversight = Oversight.of(
        guard,
        monitor,
        kl_target=config.kl.target,
        responses=config.batch_size,
        armed=watch is not None and watch.armed,
        looks=config.looks,
        tightest=0 if scorer is None else scorer.given.tightest,
    )
    guarded = Guarded(ppo, oversight, watch, journal, scorer, looks, chosen or {"method": "ppo"})
    if found:
        guarded.restore(found.folder, found.state)
    else:
        check = self_check(
            ppo.policy,
            ppo.reference,
            models.codec,
            ppo.prompts[:CHECK_PROMPTS],
            max_tokens=ppo.max_tokens,
            seed=seed,
        )
        text = f"before the first update KL is {check['kl']:.2g} and log-probabilities agree"
        journal.decide(0, Decision("self_check", text, check))
        if begin is not None:
            spent = begin(ppo)
            scale, kl = spent["scale"], spent["kl"]
            text = f"{ppo.method} starts from DPO's change of the weights times {scale:.3g}, at {kl:.2f} nats"
            if not scale:
                text = f"{ppo.method} starts from SFT: even a small part of DPO's change spends too much KL"
            journal.decide(0, Decision("start", text, spent))
            if looks is not None:
                journal.log("looks", looks.look(ppo))
        if config.learning_rate == "auto":
            find_first_rate(ppo, ladder(models.base)[-1], journal)
        journal.decide(0, oversight.introduced())
        guarded.checkpoint(healthy=True, proven=True)
    reason = run_guarded(guarded, monitor.sample_every)
    state = "given_up" if reason else "finished"
    if state == "finished":
        save_policy(ppo.policy.top, journal.path / "ppo", models.codec.tokenizer)
        if ppo.average:
            with ppo.averaged():
                save_policy(ppo.policy.top, journal.path / AVERAGE, models.codec.tokenizer)
        best = looks.best() if looks is not None else None
        if looks is not None and best is not None and best["step"] != ppo.step:
            with ppo.with_weights(looks.weights(best)):
                save_policy(ppo.policy.top, journal.path / BEST, models.codec.tokenizer)
            journal.decide(ppo.step, looks.chosen(best))
        done = f"{ppo.step} updates kept, {guarded.oversight.guard.rollbacks} roll-backs"
        name = "PPO" if ppo.method == "ppo" else ppo.method
        journal.decide(ppo.step, Decision("finish", f"{name} finished: {done}", {"tick": ppo.tick}))
        little = barely_moved(journal.run.read_rows("metrics/ppo.jsonl"), ppo.attempt, config)
        if little is not None:
            journal.decide(ppo.step, little)
    elif guarded.cause == "optimiser" and guarded.oversight.healthy_tick:
        # The reward is still trusted, so the policy of the last healthy checkpoint is kept.
        ppo.load(journal.run.checkpoint_at("align", guarded.oversight.healthy).folder)
        save_policy(ppo.policy.top, journal.path / HEALTHY, models.codec.tokenizer)
    return {
        **guarded.chosen,
        "state": state,
        "reason": reason,
        "cause": guarded.cause,
        "updates": ppo.step,
        "ticks": ppo.tick,
        "rollbacks": guarded.oversight.guard.rollbacks,
        "kl_raises": guarded.raises,
        "tightenings": guarded.oversight.guard.tightenings,
        "kl_target": config.kl.target,
        "kl_last": ppo.controller.smoothed,
        "kl_coef": ppo.controller.coef,
    }
